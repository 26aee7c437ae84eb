"""Motion-compensated search windows.

An object that crosses the frame is far from its place on the annotated frame, and a window around its present place
holds background there. So search windows are shifted by the object's displacement. The annotated frame is searched
both at the shifted and at the original position, because the background needs the latter. Recent frames are searched
only at the shifted position, since their windows are wide enough for both. Points do not shift the windows of recent
frames, because each moves on its own from one frame to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corrflow.runtime.backends.search_plan import ReferenceFrame
from corrflow.runtime.settings import MAX_WINDOWS, TrackingSettings
from corrflow.runtime.types import MIN_POINT_PEAK

MIN_WINDOW_DISTANCE = 3
"""Cells between two windows of one frame; nearer windows count as the same."""


@dataclass(frozen=True)
class ObjectChannels:
    """Mask channels of one object of a group; points: True where each channel is a point."""

    channels: slice
    points: bool


class WindowMotion:
    """Positions of a group's objects on the frames in memory, as (row, column) in cells.

    A hidden object stays at its last position. Removed objects are still followed, so that a removal does not change
    the results of the others.
    """

    def __init__(self, settings: TrackingSettings, objects: Sequence[ObjectChannels], soft_masks: np.ndarray) -> None:
        """Start at the annotated frame; soft_masks: [N, h, w] float32."""
        self._permanent_frames = settings.permanent_frames
        self._oldest = max(settings.recent_offsets, default=0)
        self._objects = objects
        self._current = [np.zeros((0, 2))] * len(objects)
        self._positions: dict[int, list[np.ndarray]] = {}
        self._frame = -1
        self.observe(soft_masks)

    def observe(self, soft_masks: np.ndarray) -> None:
        """Add the next frame; soft_masks: [N, h, w] float32 as they are stored in memory."""
        self._frame += 1
        self._current = [
            _positions(soft_masks[one.channels], one.points, previous)
            for one, previous in zip(self._objects, self._current, strict=True)
        ]
        self._positions[self._frame] = self._current
        expired = self._frame - self._oldest
        if expired not in self._permanent_frames:
            self._positions.pop(expired, None)

    def offsets(self, references: Sequence[ReferenceFrame]) -> dict[int, list[tuple[int, int]]]:
        """Return the offsets (down, right) in cells of each reference frame's windows for the next frame."""
        return {reference.frame: self._offsets(reference.frame) for reference in references}

    def _offsets(self, frame: int) -> list[tuple[int, int]]:
        displacements = np.array(
            [np.median(then - now, axis=0) for then, now in zip(self._positions[frame], self._current, strict=True)]
        )
        if frame not in self._permanent_frames:
            masks = displacements[[not one.points for one in self._objects]]
            return [_rounded(masks.mean(0)) if len(masks) else (0, 0)]
        offsets = [(0, 0)]
        for offset in map(_rounded, displacements):
            distance = min(max(abs(offset[0] - other[0]), abs(offset[1] - other[1])) for other in offsets)
            if distance >= MIN_WINDOW_DISTANCE and len(offsets) < MAX_WINDOWS:
                offsets.append(offset)
        return offsets


def _rounded(offset: np.ndarray) -> tuple[int, int]:
    down, right = np.rint(offset).astype(int).tolist()
    return down, right


def _positions(soft_masks: np.ndarray, points: bool, previous: np.ndarray) -> np.ndarray:
    """Return the centroid of a mask, or the peak of each point: [n, 2]; hidden ones keep their previous position.

    previous: [n, 2], or [0, 2] on the first frame, where everything is visible
    """
    is_first = not len(previous)
    if not points and (cells := np.argwhere(soft_masks[0] > 0.5)).size:
        return cells.mean(0)[None]
    flat = soft_masks.reshape(len(soft_masks), -1)
    positions = np.stack(np.unravel_index(flat.argmax(1), soft_masks.shape[1:]), 1).astype(np.float64)
    visible = flat.max(1) > MIN_POINT_PEAK if points else np.zeros(1, bool)
    return positions if is_first else np.where(visible[:, None], positions, previous)
