"""Labels between pixels and cells: masks and points to soft label maps, and back.

A cell is 4x4 pixels of the working frame; the centre of cell i lies at pixel 4i + 1.5. The working frame is the given
frame shrunk; pixel centres lie at integers in both, so x_working = (x + 0.5) * scale - 0.5.
Labels are never blended as integers: each object has its own map of numbers from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from corrflow.runtime.backends.resize import resize
from corrflow.runtime.settings import STRIDE
from corrflow.runtime.tracking.blas import matmul_single_threaded

# Width of a point's bump in cells at 480 rows, and at least: it has to survive sampling on cells, and the same part of
# an animal is fewer cells in a smaller frame.
POINT_SIGMA, NARROWEST_SIGMA = 1.5, 1.0


@dataclass(frozen=True)
class Geometry:
    """The three grids of a stream: given frame, working frame, cells; each as (height, width)."""

    frame: tuple[int, int]
    working: tuple[int, int]

    @classmethod
    def of(cls, frame: tuple[int, int], short_side: int) -> Geometry:
        """Shrink so that the short side is `short_side`; frames that are small already, and rows = 0, stay as they are."""
        short = min(frame)
        if short_side == 0 or short <= short_side:
            return cls(frame, frame)
        height, width = (max(1, round(side * short_side / short)) for side in frame)
        return cls(frame, (height, width))

    @property
    def cells(self) -> tuple[int, int]:
        height, width = self.working
        return -(-height // STRIDE), -(-width // STRIDE)

    @property
    def scale(self) -> float:
        """The working frame's size over the given frame's."""
        return min(self.working) / min(self.frame)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """A given frame [H, W, 3] uint8 -> the working frame."""
        return resize(image, self.working)

    def mask_to_cells(self, mask: np.ndarray) -> np.ndarray:
        """Share of each cell that a mask [H, W] bool covers: [h, w] float32, 0..1."""
        share = mask.astype(np.float32)
        if self.working != self.frame:
            share = cv2.resize(share, self.working[::-1], interpolation=cv2.INTER_AREA)
        (height, width), (rows, columns) = self.working, self.cells
        # Cells at the right and bottom edge may reach out of the frame; the frame's last pixels stand for the rest.
        share = np.pad(share, ((0, rows * STRIDE - height), (0, columns * STRIDE - width)), mode="edge")
        return share.reshape(rows, STRIDE, columns, STRIDE).mean((1, 3), dtype=np.float32)

    def points_to_cells(self, points: np.ndarray) -> np.ndarray:
        """One bump for each point: [P, 2] (x, y) in pixels -> [P, h, w] float32, highest at the point."""
        rows, columns = self.cells
        u, v = self._to_cell(points.astype(np.float64)).T
        across = np.exp(-0.5 * ((np.arange(columns) - u[:, None]) / self._point_sigma) ** 2)
        along = np.exp(-0.5 * ((np.arange(rows) - v[:, None]) / self._point_sigma) ** 2)
        return (along[:, :, None] * across[:, None, :]).astype(np.float32)

    def cells_to_points(self, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each map [P, h, w] is highest: points [P, 2] float32 in pixels, and the heights [P] float32.

        The place is found between cells by mean shift from the highest cell, with a bump's own width.
        """
        points = np.empty((len(maps), 2), np.float64)
        for place, bump in zip(points, maps, strict=True):
            v, u = (float(index) for index in np.unravel_index(int(bump.argmax()), bump.shape))
            for _ in range(8):
                top, left = max(0, round(v) - 3), max(0, round(u) - 3)
                patch = bump[top : round(v) + 4, left : round(u) + 4].astype(np.float64)
                y, x = np.arange(top, top + patch.shape[0]), np.arange(left, left + patch.shape[1])
                near = np.exp(-0.5 * ((y[:, None] - v) ** 2 + (x - u) ** 2) / self._point_sigma**2)
                if (mass := (patch * near).sum()) <= 0:
                    break
                # A bump that lies here has its mean elsewhere where the patch is cut off by the border.
                pull = patch * near / mass - near**2 / (near**2).sum()
                v, u = v + float((pull.sum(1) * y).sum()), u + float((pull.sum(0) * x).sum())
            place[:] = u, v
        return self._to_pixel(points).astype(np.float32), maps.max((1, 2))

    @property
    def _point_sigma(self) -> float:
        return min(POINT_SIGMA, max(NARROWEST_SIGMA, POINT_SIGMA * min(self.working) / 480))

    def upsampler(self) -> Upsampler:
        """What brings soft labels from cells to the given frame."""
        rows, columns = (
            _interpolation(cells, working, frame)
            for cells, working, frame in zip(self.cells, self.working, self.frame, strict=True)
        )
        return Upsampler(rows, columns)

    def _to_cell(self, points: np.ndarray) -> np.ndarray:
        scale = np.array(self.working[::-1]) / np.array(self.frame[::-1])
        return ((points + 0.5) * scale - 0.5 - (STRIDE - 1) / 2) / STRIDE

    def _to_pixel(self, cells: np.ndarray) -> np.ndarray:
        scale = np.array(self.working[::-1]) / np.array(self.frame[::-1])
        pixels = (cells * STRIDE + (STRIDE - 1) / 2 + 0.5) / scale - 0.5
        return pixels.clip(0, np.array(self.frame[::-1]) - 1)


@dataclass(frozen=True)
class _Interpolation:
    """Along one side: lower [pixels] int, the first of the two cells around each pixel, ascending; weights
    [pixels, cells] float32."""

    lower: np.ndarray
    weights: np.ndarray

    def part(self, cells: np.ndarray) -> tuple[slice, slice, np.ndarray]:
        """From the first to the last of these cells (ascending): the pixels they reach, the cells, their weights."""
        own = slice(cells[0], cells[-1] + 1)
        reached = slice(np.searchsorted(self.lower, cells[0] - 1), np.searchsorted(self.lower, cells[-1], "right"))
        return reached, own, self.weights[reached, own]


@dataclass(frozen=True)
class Upsampler:
    """Bilinear interpolation from cells to pixels as two small matrices, exact for every pair of sizes."""

    rows: _Interpolation
    columns: _Interpolation

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """[N, h, w] -> [N, H, W], float32. Only what is not 0 costs time."""
        pixels = np.zeros((len(labels), len(self.rows.lower), len(self.columns.lower)), np.float32)
        used: np.ndarray = np.any(labels, 0)
        if used.any():
            height, top, down = self.rows.part(np.flatnonzero(used.any(1)))
            width, left, right = self.columns.part(np.flatnonzero(used.any(0)))
            pixels[:, height, width] = matmul_single_threaded(
                matmul_single_threaded(down, labels[:, top, left]), right.T
            )
        return pixels


def _interpolation(cells: int, working: int, frame: int) -> _Interpolation:
    """The edge cells are held beyond their centres."""
    pixel = (np.arange(frame) + 0.5) * working / frame - 0.5
    place = ((pixel - (STRIDE - 1) / 2) / STRIDE).clip(0, cells - 1)
    lower = np.minimum(place.astype(int), max(cells - 2, 0))
    weights = np.zeros((frame, cells), np.float32)
    weights[np.arange(frame), lower] = 1 - (place - lower)
    if cells > 1:
        weights[np.arange(frame), lower + 1] = place - lower
    return _Interpolation(lower, weights)


def indexed_mask(ids: Sequence[int], labels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The picture of all objects: each pixel shows the object with the highest soft label above one half.

    labels: [H, W] float32 for each of the objects `ids`, at least one -> [H, W] uint8. An object's own pixels are those
    where its label is above one half, whatever the others do. Where several claim a pixel the highest shows, then the
    lowest id.
    """
    order = sorted(range(len(ids)), key=lambda index: ids[index])
    own = labels[order[0]]
    mask = np.multiply(own > 0.5, ids[order[0]], dtype=np.uint8)
    if len(order) > 1:
        # One pass for each object over two running pictures; a stack of all labels would be sorted in memory instead.
        best = np.maximum(own, np.float32(0.5))
        for index in order[1:]:
            higher = labels[index] > best
            np.copyto(mask, np.uint8(ids[index]), where=higher)
            np.copyto(best, labels[index], where=higher)
    return mask
