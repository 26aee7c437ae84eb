"""Where to look for what moves: windows that go along with the objects.

An object that has crossed the picture is far from where the frame it was given on shows it, and a window around the
same place sees background there. So the middle of a reference's window is moved by as much as the object has moved
since: of the frame it was given on in addition to the unmoved window, which the background needs; of the recent frames
in place of it, for they are searched widely enough for both. Points do not move the windows of recent frames, since
each goes its own way from one frame to the next. Back ends say whether they can do this (`supports_window_offsets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corrflow.runtime.settings import MAX_WINDOWS, TrackingSettings
from corrflow.runtime.types import LOST_POINT

NEAR = 3


@dataclass(frozen=True)
class Followed:
    """An object of a group: its channels, and whether each is a point and not a mask."""

    channels: slice
    points: bool


class WindowMotion:
    """Where the objects of a group were on the frames it remembers. Places are (row, column) of cells.

    An object out of sight stays where it was last. All that were given keep their part even after they have been
    removed, because what is left must not change by that.
    """

    def __init__(self, settings: TrackingSettings, objects: Sequence[Followed], labels: np.ndarray) -> None:
        """labels: [N, h, w] float32 of the frame the objects are given on."""
        self._anchors, self._oldest = settings.permanent_frames, max(settings.recent_offsets, default=0)
        self._objects = objects
        self._now = [np.zeros((0, 2))] * len(objects)
        self._places: dict[int, list[np.ndarray]] = {}
        self._frame = -1
        self.see(labels)

    def see(self, labels: np.ndarray) -> None:
        """The next frame's labels [N, h, w], as they are remembered."""
        self._frame += 1
        self._now = [
            _places(labels[one.channels], one.points, before)
            for one, before in zip(self._objects, self._now, strict=True)
        ]
        self._places[self._frame] = self._now
        gone = self._frame - self._oldest
        if gone not in self._anchors:
            self._places.pop(gone, None)

    def aims(self, frames: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
        """How far (down, right) the windows of these remembered frames are moved for the next frame, in cells."""
        return {frame: self._moves(frame) for frame in frames}

    def _moves(self, frame: int) -> list[tuple[int, int]]:
        moved = np.array(
            [np.median(then - now, axis=0) for then, now in zip(self._places[frame], self._now, strict=True)]
        )
        if frame not in self._anchors:
            masks = moved[[not one.points for one in self._objects]]
            return [_whole(masks.mean(0)) if len(masks) else (0, 0)]
        moves = [(0, 0)]
        for move in map(_whole, moved):
            apart = min(max(abs(move[0] - other[0]), abs(move[1] - other[1])) for other in moves)
            if apart >= NEAR and len(moves) < MAX_WINDOWS:
                moves.append(move)
        return moves


def _whole(move: np.ndarray) -> tuple[int, int]:
    down, right = np.rint(move).astype(int).tolist()
    return down, right


def _places(labels: np.ndarray, points: bool, before: np.ndarray) -> np.ndarray:
    """The middle of a mask's cells, or the highest cell of each point: [n, 2]; what is not seen is where it was before.

    before: [n, 2]; [0, 2] on the first frame, when everything is somewhere
    """
    first = not len(before)
    if not points and (cells := np.argwhere(labels[0] > 0.5)).size:
        return cells.mean(0)[None]
    highest = labels.reshape(len(labels), -1)
    places = np.stack(np.unravel_index(highest.argmax(1), labels.shape[1:]), 1).astype(np.float64)
    seen = highest.max(1) > LOST_POINT if points else np.zeros(1, bool)
    return places if first else np.where(seen[:, None], places, before)
