"""Polygons: few corners, the mask within one pixel, no specks."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from corrflow.runtime.formats.polygons import (
    MIN_COMPONENT,
    bridged,
    filled,
    filled_area,
    simplified_polygons,
    without_specks,
)

SQUARE = np.ones((3, 3), np.uint8)
FILLS = {False: filled, True: filled_area}


def blobs(seed: int, shape: tuple[int, int] = (60, 70)) -> np.ndarray:
    """Return a mask of several components with holes."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random(shape, np.float32), (0, 0), 3)
    return noise > np.quantile(noise, 0.5)


@pytest.mark.parametrize("along_edges", FILLS, ids=["centres", "edges"])
@pytest.mark.parametrize("seed", range(6))
def test_filled_polygons_are_the_mask_within_one_pixel(seed: int, along_edges: bool) -> None:
    mask = without_specks(blobs(seed))
    polygons = simplified_polygons(mask, along_edges=along_edges)
    found = FILLS[along_edges](polygons, (60, 70))
    padded = np.pad(mask, 1).astype(np.uint8)
    assert not (cv2.erode(padded, SQUARE)[1:-1, 1:-1] > found).any()
    assert not (found > cv2.dilate(padded, SQUARE)[1:-1, 1:-1]).any()
    assert sum(map(len, polygons)) < np.count_nonzero(mask) / 8


@pytest.mark.parametrize("along_edges", FILLS, ids=["centres", "edges"])
@settings(max_examples=100, deadline=None)
@given(mask=arrays.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))))
def test_polygons_without_tolerance_are_the_mask_without_specks(along_edges: bool, mask: np.ndarray) -> None:
    polygons = simplified_polygons(mask, tolerance=0, along_edges=along_edges)
    assert all(len(polygon) >= 3 for polygon in polygons)
    assert np.array_equal(FILLS[along_edges](polygons, (mask.shape[0], mask.shape[1])), without_specks(mask))


def test_specks_are_no_polygons_but_the_largest_component_is() -> None:
    mask = np.zeros((40, 40), bool)
    mask[2:4, 2:4] = True
    assert len(simplified_polygons(mask)) == 1
    mask[10:30, 10:30] = True
    mask[20:22, 20:22] = False
    (square,) = simplified_polygons(mask)
    assert sorted(map(tuple, square.tolist())) == [(10, 10), (10, 29), (29, 10), (29, 29)]
    mask[34:38, 34:38] = True
    assert mask[34:38, 34:38].sum() >= MIN_COMPONENT and len(simplified_polygons(mask)) == 2
    assert simplified_polygons(np.zeros((4, 4), bool)) == []


def test_outline_along_edges_has_the_area_of_its_pixels() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:30, 12:30] = True
    (square,) = simplified_polygons(mask, along_edges=True)
    assert sorted(map(tuple, square.tolist())) == [(11.5, 9.5), (11.5, 29.5), (29.5, 9.5), (29.5, 29.5)]


def test_joined_polygons_have_the_area_of_all() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:20, 10:20] = mask[15:30, 30:40] = mask[5:9, 50:56] = True
    polygons = simplified_polygons(mask, along_edges=True)
    assert len(polygons) == 3
    assert np.array_equal(filled_area([bridged(polygons)], (40, 60)), mask)


@pytest.mark.parametrize("fill", FILLS.values())
def test_corners_far_outside_are_refused(fill: Callable[..., np.ndarray]) -> None:
    for corners in ([[0, 0], [1e9, 0], [5, 5]], [[0, 0], [np.nan, 0], [5, 5]], [1, 2, 3]):
        with pytest.raises(ValueError, match="polygon"):
            fill([np.array(corners)], (20, 20))
    partly = fill([np.array([[-50, -50], [5, -50], [5, 5], [-50, 5]])], (20, 20))
    assert partly[:4, :4].all() and not partly[:, 8:].any()
