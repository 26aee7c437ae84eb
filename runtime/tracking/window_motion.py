"""Motion-compensated search windows.

An object that crosses the frame is far from its place on the annotated frame, and a window around its present place
holds background there. So search windows are shifted by the object's displacement. The annotated frame is searched
both at the shifted and at the original position, because the background needs the latter. Recent frames are searched
only at the shifted position, since their windows are wide enough for both.

An object that moves far from one frame to the next leaves the windows of recent frames as well. Its displacement is
measured first, see object_motion.py. From FAR_CELLS on, recent frames are searched there too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from corrflow.runtime.backends.search_plan import ReferenceFrame
from corrflow.runtime.settings import MAX_WINDOWS, TrackingSettings
from corrflow.runtime.tracking.object_motion import FeatureBlocks, measure_displacement

MIN_WINDOW_DISTANCE = 3
"""Cells between two windows of one frame; nearer windows count as the same."""
FAR_CELLS = 6
"""Cells that an object moves from one frame to the next, from which recent frames are searched there as well."""


class WindowMotion:
    """Positions of a group's objects on the frames in memory, as (row, column) in cells.

    A hidden object stays at its last position. Removed objects are still followed, so that a removal does not change
    the results of the others.
    """

    def __init__(self, settings: TrackingSettings, channels: Sequence[int], soft_masks: np.ndarray) -> None:
        """Start at the annotated frame.

        channels:   channel of each object
        soft_masks: [N, h, w] float32
        """
        self._permanent_frames = settings.permanent_frames
        self._oldest = max(settings.recent_offsets, default=0)
        self._channels = list(channels)
        self._last: list[np.ndarray] = []
        self._positions: dict[int, list[np.ndarray]] = {}
        self._moved = [np.zeros(2)] * len(self._channels)
        self._frame = -1
        self.observe(soft_masks)

    def observe(self, soft_masks: np.ndarray) -> None:
        """Add the next frame; soft_masks: [N, h, w] float32 as they are stored in memory."""
        self._frame += 1
        self._soft_masks = soft_masks
        earlier = self._last or [None] * len(self._channels)
        self._last = [
            _position(soft_masks[channel], previous) for channel, previous in zip(self._channels, earlier, strict=True)
        ]
        self._positions[self._frame] = self._last
        expired = self._frame - self._oldest
        if expired not in self._permanent_frames:
            self._positions.pop(expired, None)

    @property
    def current(self) -> Sequence[np.ndarray]:
        """Position [2] of each object on the newest frame."""
        return self._last

    def resume(self, positions: Sequence[np.ndarray]) -> None:
        """Go on from these positions of the objects; an object that is hidden now is taken to be there."""
        self._last = list(positions)

    def measure(self, previous: FeatureBlocks, current: FeatureBlocks) -> None:
        """Measure how far each object has moved on the next frame; call it before `offsets`.

        previous, current: features of the last frame observed, and of the next
        """
        self._moved = [measure_displacement(previous, current, self._soft_masks[channel]) for channel in self._channels]

    def offsets(self, references: Sequence[ReferenceFrame]) -> dict[int, list[tuple[int, int]]]:
        """Return the offsets (down, right) in cells of each reference frame's windows for the next frame."""
        return {reference.frame: self._offsets(reference.frame) for reference in references}

    def _offsets(self, frame: int) -> list[tuple[int, int]]:
        displacements = [then - now for then, now in zip(self._positions[frame], self._last, strict=True)]
        shifted = [displacement - moved for displacement, moved in zip(displacements, self._moved, strict=True)]
        if frame in self._permanent_frames:
            return _distinct([(0, 0), *map(_rounded, shifted)])
        far = [index for index, moved in enumerate(self._moved) if np.abs(moved).max() >= FAR_CELLS]
        return _distinct([*map(_rounded, displacements), *(_rounded(shifted[index]) for index in far)])


def _distinct(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the first MAX_WINDOWS offsets that are MIN_WINDOW_DISTANCE from each other."""
    distinct: list[tuple[int, int]] = []
    for down, right in offsets:
        near = any(max(abs(down - other[0]), abs(right - other[1])) < MIN_WINDOW_DISTANCE for other in distinct)
        if not near:
            distinct.append((down, right))
    return distinct[:MAX_WINDOWS]


def _rounded(offset: np.ndarray) -> tuple[int, int]:
    down, right = np.rint(offset).astype(int).tolist()
    return down, right


def _position(soft_mask: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
    """Return the centroid [2] of a mask [h, w]; a hidden one keeps its previous position.

    previous: None on the first frame, where every object is visible
    """
    cells = np.argwhere(soft_mask > 0.5)
    if cells.size:
        return cells.mean(0)
    if previous is not None:
        return previous
    return np.array(np.unravel_index(int(soft_mask.argmax()), soft_mask.shape), np.float64)
