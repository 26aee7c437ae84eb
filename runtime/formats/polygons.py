"""Masks as polygons that, filled, are the same pixels again: what formats without pictures and run lengths need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np


def polygons_of(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons [P, 2] int32 (x, y) of pixel centres, P >= 3, whose fillings together are the mask [H, W] bool.

    Polygons have no holes: a part with a hole is cut in two there, as often as it takes.
    """
    return list(_pieces(mask.astype(np.uint8), 0))


def filled(polygons: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """[H, W] bool of polygons [P, 2] in pixels, their edges included, each filled on its own; (0, 0) is the centre of
    the top-left pixel. Corners are rounded to pixels. Raises ValueError where they are not finite or far outside.
    """
    mask = np.zeros(shape, np.uint8)
    for polygon in polygons:
        corners = np.asarray(polygon, np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2 or not len(corners):
            raise ValueError("a polygon that is no list of (x, y)")
        if not np.abs(corners).max() < 1e6:
            raise ValueError("a polygon with corners that are not in any picture")
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    return mask.astype(bool)


def _pieces(mask: np.ndarray, left: int) -> Iterator[np.ndarray]:
    """Of a mask [H, W] uint8 of 0 and 1 whose first column is column `left` of the whole."""
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for index, contour in enumerate(contours):
        _, _, child, parent = hierarchy[0][index].tolist()
        if parent >= 0:
            continue  # a hole, met with what is around it
        if child < 0:
            corners = contour[:, 0]
            whole = np.concatenate([corners, np.repeat(corners[-1:], max(0, 3 - len(corners)), 0)])
            yield whole + np.array([left, 0], np.int32)
            continue
        own = np.zeros_like(mask)
        cv2.fillPoly(own, [contour], 1)
        own &= mask
        # The contour of a hole runs over the pixels around it, so that its second column is in the hole.
        cut = int(contours[child][:, 0, 0].min()) + 1
        yield from _pieces(np.ascontiguousarray(own[:, :cut]), left)
        yield from _pieces(np.ascontiguousarray(own[:, cut:]), left + cut)
