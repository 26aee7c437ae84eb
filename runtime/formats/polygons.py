"""Masks as polygons, without loss, for formats that have neither images nor run lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np


def polygons_of(mask: np.ndarray) -> list[np.ndarray]:
    """Convert a mask [H, W] bool to polygons [P, 2] int32 (x, y) of pixel centres, P >= 3.

    The filled polygons together are the mask. Polygons have no holes: a component with a hole is cut in two there.
    """
    return list(_pieces(mask.astype(np.uint8), 0))


def filled(polygons: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Fill polygons [P, 2] in pixels, edges included, and return their union, [H, W] bool.

    (0, 0) is the centre of the top-left pixel. Corners are rounded to pixels. Raises ValueError for corners far
    outside.
    """
    mask = np.zeros(shape, np.uint8)
    for polygon in polygons:
        corners = np.asarray(polygon, np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2 or not len(corners):
            raise ValueError("a polygon that is no list of (x, y)")
        if not np.abs(corners).max() < 1e6:
            raise ValueError("a polygon with corners that are not in any image")
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    return mask.astype(bool)


def _pieces(mask: np.ndarray, left: int) -> Iterator[np.ndarray]:
    """Yield the polygons of a mask [H, W] uint8 of 0 and 1, whose first column is column `left` of the image."""
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for index, contour in enumerate(contours):
        _, _, child, parent = hierarchy[0][index].tolist()
        if parent >= 0:
            continue  # a hole, handled with the component around it
        if child < 0:
            corners = contour[:, 0]
            padded = np.concatenate([corners, np.repeat(corners[-1:], max(0, 3 - len(corners)), 0)])
            yield padded + np.array([left, 0], np.int32)
            continue
        component = np.zeros_like(mask)
        cv2.fillPoly(component, [contour], 1)
        component &= mask
        # The contour of a hole runs over the pixels around the hole, so that its second column is in the hole.
        cut = int(contours[child][:, 0, 0].min()) + 1
        yield from _pieces(np.ascontiguousarray(component[:, :cut]), left)
        yield from _pieces(np.ascontiguousarray(component[:, cut:]), left + cut)
