"""Points as published protocols track them: labels copied on cells of the whole frame, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from corrflow.runtime.backends.base import Backend
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.parts import whole_blocks
from corrflow.runtime.types import KeypointsObject

MIN_PEAK = 0.05
"""Peak of a copied label up to which a point counts as lost."""


def copy_points(
    backend: Backend,
    settings: TrackingSettings,
    images: Iterable[np.ndarray],
    prompts: Mapping[int, Sequence[KeypointsObject]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each frame the positions [P, 2] float64 and confidences [P] of all points prompted so far.

    prompts: objects by frame index; each frame's points have a memory of their own, which begins there
    """
    geometry, sets = None, list[_PointSet]()
    for index, image in enumerate(images):
        geometry = geometry or Geometry.of((image.shape[0], image.shape[1]), settings.short_side, backend.stride)
        features = backend.encode(image, geometry.working)
        found = [one.step(features) for one in sets]
        new = [one.points for one in prompts.get(index, ())]
        if new:
            points = np.concatenate(new)
            sets.append(_PointSet(backend, settings, geometry, features, points))
            found.append((points.astype(np.float64), np.ones(len(points))))
        yield (
            np.concatenate([np.zeros((0, 2)), *(points for points, _ in found)]),
            np.concatenate([np.zeros(0), *(confidence for _, confidence in found)]),
        )


class _PointSet:
    """Points prompted on one frame, with their memory."""

    def __init__(
        self, backend: Backend, settings: TrackingSettings, geometry: Geometry, features: object, points: np.ndarray
    ) -> None:
        self._backend, self._settings, self._geometry = backend, settings, geometry
        self._count = len(points)
        self._memory = backend.new_memory(settings, whole_blocks(self._count), geometry.cells)
        self._remember(features, geometry.points_to_cells(points))

    def step(self, features: object) -> tuple[np.ndarray, np.ndarray]:
        """Copy the labels into the next frame: points [P, 2] float64, and 1 or 0 for points that are lost."""
        references = self._memory.references
        params = self._settings.attributes_for([one.age for one in references])
        copied = self._backend.propagate(features, self._memory, SearchPlan.of(references, params))[: self._count]
        points, peaks = self._geometry.cells_to_points(copied)
        is_found = peaks > MIN_PEAK
        # Half of a label is drawn anew, for copied labels spread from frame to frame.
        stored = copied.copy()
        stored[is_found] = (copied[is_found] + self._geometry.points_to_cells(points[is_found])) / 2
        self._remember(features, stored)
        return points.astype(np.float64), is_found.astype(np.float64)

    def _remember(self, features: object, maps: np.ndarray) -> None:
        blocks = np.zeros((self._memory.num_channels, *self._geometry.cells), np.float32)
        blocks[: self._count] = maps
        self._memory.add_frame(features, blocks)
