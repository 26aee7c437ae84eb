"""Geometry of frames and cells: conversion of masks and points to soft masks, and back.

A cell is 4x4 pixels of the resized frame; the centre of cell i is at pixel 4i + 1.5. A backend may have cells of
another side, its `stride`. Pixel centres are at integers in the input frame and in the resized frame:
x_resized = (x + 0.5) * scale - 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from corrflow.runtime.backends.resize import linear_weights, resize
from corrflow.runtime.settings import STRIDE
from corrflow.runtime.tracking.blas import matmul_single_threaded

# Sigma of a point's Gaussian in cells for a short side of 480, which shrinks with the frame, and its minimum.
POINT_SIGMA, MIN_POINT_SIGMA = 1.5, 1.0


@dataclass(frozen=True)
class Geometry:
    """Sizes of a stream as (height, width).

    frame:   input frame
    working: resized frame
    cells:   soft masks and features
    stride:  side of a cell in pixels of the resized frame
    """

    frame: tuple[int, int]
    working: tuple[int, int]
    stride: int = STRIDE

    @classmethod
    def of(cls, frame: tuple[int, int], short_side: int, stride: int = STRIDE) -> Geometry:
        """Return the geometry for a short side; smaller frames, and all for short_side = 0, keep their size."""
        short = min(frame)
        if short_side == 0 or short <= short_side:
            return cls(frame, frame, stride)
        height, width = (max(1, round(side * short_side / short)) for side in frame)
        return cls(frame, (height, width), stride)

    @property
    def cells(self) -> tuple[int, int]:
        """Size of soft masks and features."""
        height, width = self.working
        return -(-height // self.stride), -(-width // self.stride)

    @property
    def scale(self) -> float:
        """Size of the resized frame, relative to the input frame."""
        return min(self.working) / min(self.frame)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resize an input frame [H, W, 3] uint8."""
        return resize(image, self.working)

    def mask_to_cells(self, mask: np.ndarray) -> np.ndarray:
        """Convert a mask [H, W] bool to the fraction of each cell that it covers: [h, w] float32, 0..1."""
        coverage = mask.astype(np.float32)
        if self.working != self.frame:
            coverage = cv2.resize(coverage, self.working[::-1], interpolation=cv2.INTER_AREA)
        (height, width), (rows, columns), stride = self.working, self.cells, self.stride
        # Cells at the right and bottom may extend beyond the frame; the last pixels are repeated there.
        coverage = np.pad(coverage, ((0, rows * stride - height), (0, columns * stride - width)), mode="edge")
        return coverage.reshape(rows, stride, columns, stride).mean((1, 3), dtype=np.float32)

    def points_to_cells(self, points: np.ndarray, sigma: float | None = None) -> np.ndarray:
        """Convert points [P, 2] (x, y) in pixels to Gaussians [P, h, w] float32.

        sigma: standard deviation in cells; None for that of a label
        """
        rows, columns = self.cells
        sigma = self._point_sigma if sigma is None else sigma
        u, v = self._to_cell(points.astype(np.float64)).T
        across = np.exp(-0.5 * ((np.arange(columns) - u[:, None]) / sigma) ** 2)
        along = np.exp(-0.5 * ((np.arange(rows) - v[:, None]) / sigma) ** 2)
        return (along[:, :, None] * across[:, None, :]).astype(np.float32)

    def cells_to_points(self, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the peak of each map [P, h, w]: points [P, 2] float32 in pixels, and peaks [P] float32.

        Mean shift from the highest cell, with the Gaussian of a point, gives subcell positions.
        """
        points = np.empty((len(maps), 2), np.float64)
        for point, heatmap in zip(points, maps, strict=True):
            v, u = (float(index) for index in np.unravel_index(int(heatmap.argmax()), heatmap.shape))
            for _ in range(8):
                top, left = max(0, round(v) - 3), max(0, round(u) - 3)
                patch = heatmap[top : round(v) + 4, left : round(u) + 4].astype(np.float64)
                y, x = np.arange(top, top + patch.shape[0]), np.arange(left, left + patch.shape[1])
                kernel = np.exp(-0.5 * ((y[:, None] - v) ** 2 + (x - u) ** 2) / self._point_sigma**2)
                if (mass := (patch * kernel).sum()) <= 0:
                    break
                # The second term is the mean of a Gaussian at (u, v), which a border of the map displaces.
                shift = patch * kernel / mass - kernel**2 / (kernel**2).sum()
                v, u = v + float((shift.sum(1) * y).sum()), u + float((shift.sum(0) * x).sum())
            point[:] = u, v
        return self._to_pixel(points).astype(np.float32), maps.max((1, 2))

    @property
    def _point_sigma(self) -> float:
        return min(POINT_SIGMA, max(MIN_POINT_SIGMA, POINT_SIGMA * min(self.working) / 480))

    def upsampler(self) -> Upsampler:
        """Return the upsampler of soft masks to the input frame."""
        rows, columns = (
            _interpolation(cells, working, frame, self.stride)
            for cells, working, frame in zip(self.cells, self.working, self.frame, strict=True)
        )
        return Upsampler(rows, columns)

    def _to_cell(self, points: np.ndarray) -> np.ndarray:
        scale = np.array(self.working[::-1]) / np.array(self.frame[::-1])
        return ((points + 0.5) * scale - 0.5 - (self.stride - 1) / 2) / self.stride

    def _to_pixel(self, cells: np.ndarray) -> np.ndarray:
        scale = np.array(self.working[::-1]) / np.array(self.frame[::-1])
        pixels = (cells * self.stride + (self.stride - 1) / 2 + 0.5) / scale - 0.5
        return pixels.clip(0, np.array(self.frame[::-1]) - 1)


@dataclass(frozen=True)
class _Interpolation:
    """Interpolation along one side.

    lower:   [pixels] int, first of the two cells around each pixel, ascending
    weights: [pixels, cells] float32
    """

    lower: np.ndarray
    weights: np.ndarray

    def part(self, cells: np.ndarray) -> tuple[slice, slice, np.ndarray]:
        """Return the affected pixels, the cells and the weights for the range of some cells, ascending."""
        selected = slice(cells[0], cells[-1] + 1)
        pixels = slice(np.searchsorted(self.lower, cells[0] - 1), np.searchsorted(self.lower, cells[-1], "right"))
        return pixels, selected, self.weights[pixels, selected]


@dataclass(frozen=True)
class Upsampler:
    """Bilinear interpolation from cells to pixels as two small matrices, exact for every pair of sizes."""

    rows: _Interpolation
    columns: _Interpolation

    def __call__(self, soft_masks: np.ndarray) -> np.ndarray:
        """Upsample [N, h, w] float32 to [N, H, W]; only the bounding box of nonzero cells is computed."""
        pixels = np.zeros((len(soft_masks), len(self.rows.lower), len(self.columns.lower)), np.float32)
        used: np.ndarray = np.any(soft_masks, 0)
        if used.any():
            height, top, down = self.rows.part(np.flatnonzero(used.any(1)))
            width, left, right = self.columns.part(np.flatnonzero(used.any(0)))
            pixels[:, height, width] = matmul_single_threaded(
                matmul_single_threaded(down, soft_masks[:, top, left]), right.T
            )
        return pixels


def _interpolation(cells: int, working: int, frame: int, stride: int) -> _Interpolation:
    """Return the interpolation; beyond the centres of the outer cells, their values continue."""
    pixel = (np.arange(frame) + 0.5) * working / frame - 0.5
    return _Interpolation(*linear_weights((pixel - (stride - 1) / 2) / stride, cells))


def indexed_mask(ids: Sequence[int], soft_masks: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Combine objects to a mask [H, W] uint8: each pixel has the id of the highest soft mask above 0.5, else 0.

    soft_masks: [H, W] float32 of each object, at least one

    For equal soft masks the lowest id wins.
    """
    order = sorted(range(len(ids)), key=lambda index: ids[index])
    first = soft_masks[order[0]]
    mask = np.multiply(first > 0.5, ids[order[0]], dtype=np.uint8)
    if len(order) > 1:
        # One pass for each object over two arrays needs less memory than a stack of all soft masks.
        best = np.maximum(first, np.float32(0.5))
        for index in order[1:]:
            higher = soft_masks[index] > best
            np.copyto(mask, np.uint8(ids[index]), where=higher)
            np.copyto(best, soft_masks[index], where=higher)
    return mask


def thinned(cells: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of these cells [n], evenly spread."""
    return cells if len(cells) <= count else cells[np.linspace(0, len(cells) - 1, count).astype(int)]


def unit_features(features: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return the features [C, n] of cells [n] of [C, h, w] float32, scaled to unit length."""
    sampled = features.reshape(len(features), -1)[:, cells]
    return sampled / np.maximum(np.sqrt((sampled**2).sum(0)), np.float32(1e-12))
