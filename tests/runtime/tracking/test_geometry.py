"""Labels keep their place between pixels and cells."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.runtime.tracking.geometry import Geometry, indexed_mask

sides = st.integers(1, 90)


def test_upsampling_puts_cell_centres_at_4i_plus_one_and_a_half() -> None:
    geometry = Geometry.of((32, 40), short_side=0)
    ramp = np.broadcast_to(np.arange(10, dtype=np.float32), (1, 8, 10))
    row = geometry.upsampler()(ramp)[0, 16]
    # Linear in between, so pixel 4i + 1.5 would carry i: its two neighbours average to it.
    for i in range(10):
        assert (row[4 * i + 1] + row[4 * i + 2]) / 2 == pytest.approx(i, abs=0.13 if i in (0, 9) else 1e-5)


def test_upsampling_matches_opencv_where_sizes_divide() -> None:
    labels = np.random.default_rng(0).random((3, 30, 54), np.float32)
    expected = np.stack([cv2.resize(label, (216, 120), interpolation=cv2.INTER_LINEAR) for label in labels])
    np.testing.assert_allclose(Geometry.of((120, 216), 0).upsampler()(labels), expected, atol=1e-5)


@settings(max_examples=80, deadline=None)
@given(height=sides, width=sides, rows=st.integers(16, 64))
def test_upsampling_keeps_a_constant_for_any_size(height: int, width: int, rows: int) -> None:
    geometry = Geometry.of((height, width), rows)
    labels = np.full((1, *geometry.cells), 0.7, np.float32)
    pixels = geometry.upsampler()(labels)
    assert pixels.shape == (1, height, width)
    np.testing.assert_allclose(pixels, 0.7, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(height=sides, width=sides, rows=st.integers(16, 64), seed=st.integers(0, 99))
def test_labels_of_part_of_the_picture_are_enlarged_as_those_of_the_whole(
    height: int, width: int, rows: int, seed: int
) -> None:
    geometry = Geometry.of((height, width), rows)
    generator = np.random.default_rng(seed)
    labels = generator.random((2, *geometry.cells), np.float32)
    (top, bottom), (left, right) = (np.sort(generator.integers(0, side + 1, 2)) for side in geometry.cells)
    labels[:, :top] = labels[:, bottom:] = labels[:, :, :left] = labels[:, :, right:] = 0
    upsample = geometry.upsampler()
    expected = np.einsum("yh,nhw,xw->nyx", upsample.rows.weights, labels, upsample.columns.weights, dtype=np.float64)
    np.testing.assert_allclose(upsample(labels), expected, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(height=sides, width=sides, rows=st.integers(16, 64), seed=st.integers(0, 99))
def test_cells_hold_the_covered_share_of_a_mask(height: int, width: int, rows: int, seed: int) -> None:
    geometry = Geometry.of((height, width), rows)
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    share = geometry.mask_to_cells(mask)
    assert share.shape == geometry.cells
    assert share.min() >= 0 and share.max() <= 1 + 1e-6
    if geometry.working == (height, width) and height % 4 == width % 4 == 0:
        assert share.mean() == pytest.approx(mask.mean(), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.sampled_from([0, 60, 96]))
def test_a_point_comes_back_to_where_it_was(seed: int, rows: int) -> None:
    geometry = Geometry.of((120, 160), rows)
    generator = np.random.default_rng(seed)
    points = generator.uniform((12, 12), (147, 107), (4, 2)).astype(np.float32)
    found, heights = geometry.cells_to_points(geometry.points_to_cells(points))
    # A tenth of a cell, which is 4 pixels of the working frame.
    np.testing.assert_allclose(found, points, atol=0.4 * 120 / geometry.working[0])
    assert heights.min() > 0.7


def test_points_in_corners_stay_inside_the_frame() -> None:
    geometry = Geometry.of((50, 70), 0)
    corners = np.array([[0, 0], [69, 0], [0, 49], [69, 49]], np.float32)
    found, _ = geometry.cells_to_points(geometry.points_to_cells(corners))
    assert (found >= 0).all() and (found <= [69, 49]).all()
    # Most of a corner's bump lies outside the frame; that must not draw its centre in.
    np.testing.assert_allclose(found, corners, atol=0.5)


def test_frames_shrink_to_their_short_side_and_never_grow() -> None:
    assert Geometry.of((1080, 1920), 480).working == (480, 853)
    assert Geometry.of((1920, 1080), 480).working == (853, 480)
    assert Geometry.of((240, 427), 480).working == (240, 427)
    assert Geometry.of((1080, 1920), 0).working == (1080, 1920)
    assert Geometry.of((480, 854), 480).cells == (120, 214)


def test_the_higher_label_above_one_half_shows() -> None:
    labels = np.zeros((3, 1, 4), np.float32)
    labels[0, 0] = [0.6, 0.6, 0.5, 0.9]
    labels[1, 0] = [0.0, 0.7, 0.4, 0.9]
    labels[2, 0] = [0.0, 0.0, 0.4, 0.2]
    # Objects 9 and 3 tie in the last pixel, where the lower id shows.
    np.testing.assert_array_equal(indexed_mask([9, 3, 5], labels), [[9, 3, 0, 3]])


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(1, 255), min_size=1, max_size=5, unique=True), seed=st.integers(0, 1000))
def test_the_indexed_mask_is_the_argmax_over_all_objects(ids: list[int], seed: int) -> None:
    # Quarters make ties of every kind, the boundary of one half included.
    labels = np.random.default_rng(seed).integers(0, 5, (len(ids), 6, 7)).astype(np.float32) / 4
    got = indexed_mask(ids, labels)
    assert got.dtype == np.uint8
    for place in np.ndindex(6, 7):
        claims = [(-labels[(index, *place)], own) for index, own in enumerate(ids) if labels[(index, *place)] > 0.5]
        assert got[place] == min(claims, default=(0, 0))[1]
