"""Packed masks: what a file says of a mask, which is unpacked on its frame, because all frames' masks are in memory."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from corrflow.file_budget import FileBudget
from corrflow.runtime.formats.polygons import checked_polygon, crossings, filled_area_part

_NO_PLACE = 0.0, 0.0, 0.0
_SECONDS = 1e-7  # for a row of pixels that a side of a polygon crosses, on the frame of the polygon


class PackedMask(Protocol):
    """Mask [H, W] bool of an object, packed; with at least one pixel unless it was packed from an empty mask."""

    @property
    def shape(self) -> tuple[int, int]:
        """H and W."""
        ...

    @property
    def place(self) -> tuple[float, float, float]:
        """x and y of the centre, and the square root of the area, in pixels; zeros for an empty mask."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes in memory, about."""
        ...

    def content(self) -> bytes:
        """Return bytes that are equal for equal masks of one kind."""
        ...

    def unpacked(self) -> np.ndarray:
        """Return the mask [H, W] bool."""
        ...


@dataclass(frozen=True)
class BitMask:
    """Compressed bits of the part of a mask that has pixels.

    corner: row and column where the part begins
    size:   its rows and columns
    """

    shape: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]
    bits: bytes
    place: tuple[float, float, float]

    @classmethod
    def of(cls, mask: np.ndarray, corner: tuple[int, int] = (0, 0), shape: tuple[int, int] | None = None) -> BitMask:
        """Pack a mask [h, w] bool.

        corner, shape: row and column where `mask` begins in the image, and the image's size, for a part of an image
        """
        shape = (mask.shape[0], mask.shape[1]) if shape is None else shape
        rows = np.flatnonzero(mask.any(1))
        if not len(rows):
            return cls(shape, (0, 0), (0, 0), b"", _NO_PLACE)
        part = mask[rows[0] : rows[-1] + 1]
        counts = np.count_nonzero(part, axis=0)
        columns = np.flatnonzero(counts)
        part = part[:, columns[0] : columns[-1] + 1]
        top, left = corner[0] + int(rows[0]), corner[1] + int(columns[0])
        bits = zlib.compress(np.packbits(part).tobytes(), 1)
        down, across = np.count_nonzero(part, axis=1), counts[columns[0] : columns[-1] + 1]
        area = int(across.sum())
        x, y = (float(np.arange(len(found)) @ found) / area for found in (across, down))
        return cls(shape, (top, left), (part.shape[0], part.shape[1]), bits, (x + left, y + top, area**0.5))

    @property
    def num_bytes(self) -> int:
        return len(self.bits) + 400

    def content(self) -> bytes:
        return f"bits {self.corner} {self.size} ".encode() + self.bits

    def unpacked(self) -> np.ndarray:
        mask = np.zeros(self.shape, bool)
        if self.bits:
            (top, left), (height, width) = self.corner, self.size
            bits = np.frombuffer(zlib.decompress(self.bits), np.uint8)
            part = np.unpackbits(bits, count=height * width).reshape(height, width)
            mask[top : top + height, left : left + width] = part
        return mask


@dataclass(frozen=True)
class BoxMask:
    """Mask that is a box of pixels; right and bottom are exclusive."""

    shape: tuple[int, int]
    left: int
    top: int
    right: int
    bottom: int

    @property
    def place(self) -> tuple[float, float, float]:
        area = (self.right - self.left) * (self.bottom - self.top)
        return (self.left + self.right - 1) / 2, (self.top + self.bottom - 1) / 2, area**0.5

    @property
    def num_bytes(self) -> int:
        return 300

    def content(self) -> bytes:
        return f"box {self.left} {self.top} {self.right} {self.bottom}".encode()

    def unpacked(self) -> np.ndarray:
        mask = np.zeros(self.shape, bool)
        mask[self.top : self.bottom, self.left : self.right] = True
        return mask


@dataclass(frozen=True)
class RunMask:
    """Mask as runs down the columns: background and object alternate, and fill the image."""

    shape: tuple[int, int]
    runs: bytes
    place: tuple[float, float, float]

    @classmethod
    def of(cls, runs: np.ndarray, shape: tuple[int, int]) -> RunMask:
        """Pack runs [n] int64 whose sum is the number of pixels."""
        ends = runs.cumsum()
        starts, ends = ends[:-1:2][: len(ends) // 2], ends[1::2]
        area = int((ends - starts).sum())
        packed = zlib.compress(runs.astype("<u4").tobytes(), 1)
        if not area:
            return cls(shape, packed, _NO_PLACE)
        height = shape[0]

        def sums(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Return the sums of the columns, and of the rows, of all pixels before these."""
            column, row = pixels // height, pixels % height
            before = height * (column * (column - 1) // 2), column * (height * (height - 1) // 2)
            return before[0] + column * row, before[1] + row * (row - 1) // 2

        x, y = (int((last - first).sum()) / area for first, last in zip(sums(starts), sums(ends), strict=True))
        return cls(shape, packed, (x, y, area**0.5))

    @property
    def num_bytes(self) -> int:
        return len(self.runs) + 400

    def content(self) -> bytes:
        return b"runs " + self.runs

    def unpacked(self) -> np.ndarray:
        runs = np.frombuffer(zlib.decompress(self.runs), "<u4")
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(self.shape[::-1]).T


@dataclass(frozen=True)
class PolygonMask:
    """Pixels with their centre inside of one of several polygons [P, 2], see `polygons.filled_area`."""

    shape: tuple[int, int]
    polygons: Sequence[np.ndarray] = field(repr=False)

    @classmethod
    def of(cls, polygons: Sequence[np.ndarray], shape: tuple[int, int], budget: FileBudget) -> PolygonMask | None:
        """Return the mask of polygons, or None without a pixel in the image.

        Raises ValueError for polygons that are in no image or have too many corners, and BudgetExceeded.
        """
        polygons = [checked_polygon(one) for one in polygons]
        budget.take_time(_SECONDS * sum(crossings(one, shape[0]) for one in polygons))
        # A corner in the image has a pixel, so that most polygons are filled on their frame alone.
        edge = np.array([shape[1], shape[0]]) - 0.5
        if any(((one >= -0.5) & (one <= edge)).all(1).any() for one in polygons):
            return cls(shape, polygons)
        return cls(shape, polygons) if filled_area_part(polygons, shape)[0].any() else None

    @property
    def place(self) -> tuple[float, float, float]:
        return self._place

    @cached_property
    def _place(self) -> tuple[float, float, float]:
        return BitMask.of(*filled_area_part(self.polygons, self.shape)).place

    @property
    def num_bytes(self) -> int:
        return sum(polygon.nbytes + 200 for polygon in self.polygons) + 400

    def content(self) -> bytes:
        return b"polygons " + b" ".join(np.asarray(one, "<f8").tobytes() for one in self.polygons)

    def unpacked(self) -> np.ndarray:
        mask = np.zeros(self.shape, bool)
        part, (top, left) = filled_area_part(self.polygons, self.shape)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        return mask
