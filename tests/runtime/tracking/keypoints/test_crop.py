"""The crop of a body's points: inside the frame, bounded in cost, exact to the pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers.textured_body import smooth_texture
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.runtime.tracking.keypoints.crop import MAX_AREA, MAX_SCALE, MIN_HALF_PIXELS, Crop
from corrflow.runtime.tracking.keypoints.similarity import apply, compose, invert

SIDES = st.integers(1, 4000)
SHARES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8)


def points_on(frame: tuple[int, int], shares: list[tuple[float, float]]) -> np.ndarray:
    return np.array(shares) * (np.array(frame[::-1]) - 1)


@given(SIDES, SIDES, SHARES)
def test_crops_of_any_points_lie_in_the_frame_and_are_bounded(height: int, width: int, shares) -> None:
    points = points_on((height, width), shares)
    crop = Crop.around(points, (height, width))
    rows, columns = crop.size
    assert 0 < crop.scale <= MAX_SCALE
    assert rows >= 8 and columns >= 8
    # The smallest side is 8 pixels, and sides are rounded.
    assert rows * columns <= MAX_AREA + 9 * (rows + columns)
    inside = apply(crop.transform, points)
    assert (inside > -0.5 - 1e-6).all() and (inside <= np.array([columns, rows]) + 0.5).all()
    corners = apply(invert(crop.transform), np.array([[-0.5, -0.5], [columns - 0.5, rows - 0.5]]))
    room = np.where(np.array([columns, rows]) == 8, 8 / crop.scale, 0.5 / crop.scale) + 1e-6
    assert (corners[0] >= -0.5 - 1e-6).all() and (corners[1] <= np.array([width, height]) - 0.5 + room).all()


@given(SIDES, SIDES, SHARES)
def test_points_go_to_the_crop_and_back(height: int, width: int, shares) -> None:
    points = points_on((height, width), shares)
    crop = Crop.around(points, (height, width))
    np.testing.assert_allclose(apply(invert(crop.transform), apply(crop.transform, points)), points, atol=1e-6)


def test_a_single_point_has_room() -> None:
    crop = Crop.around(np.array([[960.0, 540]]), (1080, 1920))
    height, width = (side / crop.scale for side in crop.size)
    assert height == pytest.approx(216, abs=1) and width == pytest.approx(216, abs=1)
    small = Crop.around(np.array([[100.0, 100]]), (200, 200))
    assert min(small.size) / small.scale == pytest.approx(2 * MIN_HALF_PIXELS, abs=1)


def test_a_body_that_fills_a_4k_frame_costs_no_more() -> None:
    crop = Crop.around(np.array([[10.0, 10], [3800, 2100]]), (2160, 3840))
    assert 0.95 * MAX_AREA < crop.size[0] * crop.size[1] <= 1.01 * MAX_AREA


def test_small_bodies_are_enlarged_up_to_a_bound() -> None:
    assert Crop.around(np.array([[100.0, 100], [104, 103]]), (240, 320)).scale == MAX_SCALE


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.integers(0, 80))
def test_a_cut_without_scale_has_the_pixels_of_the_frame(left: int, top: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (160, 200, 3), np.uint8)
    crop = Crop(np.array([[1, 0, -left], [0, 1, -top]], np.float64), (60, 80), 1.0)
    np.testing.assert_array_equal(crop.cut(picture, crop.transform), picture[top : top + 60, left : left + 80])


def test_places_outside_the_frame_show_its_border() -> None:
    picture = np.full((20, 30), 90, np.uint8)
    crop = Crop(np.array([[1.0, 0, 10], [0, 1, 10]]), (40, 50), 1.0)
    assert (crop.cut(picture, crop.transform) == 90).all()


def test_a_smaller_crop_averages() -> None:
    """A chessboard of single pixels is grey at a quarter of its size; sampling alone would show black or white."""
    board = (np.indices((200, 240)).sum(0) % 2 * 255).astype(np.uint8)
    crop = Crop(np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]]), (50, 60), 0.25)
    assert np.abs(crop.cut(board, crop.transform).astype(int) - 127).max() <= 1


@pytest.mark.parametrize(("factor", "angle"), [(1.3, 0), (0.9, 30), (0.5, 0), (0.5, 70), (0.3, 200)])
def test_what_a_cut_shows_is_where_the_transform_says(factor: float, angle: float) -> None:
    """A smooth spot's centre, with and without shrinking first, and turned."""
    rows, columns = np.mgrid[:300, :400]
    spot = np.array([171.3, 139.8])
    picture = (250 * np.exp(-((columns - spot[0]) ** 2 + (rows - spot[1]) ** 2) / (2 * 12.0**2))).astype(np.uint8)
    crop = Crop(np.array([[factor, 0, 0], [0, factor, 0]]), (round(300 * factor), round(400 * factor)), factor)
    turn = cv2.getRotationMatrix2D((200.0, 150.0), angle, 1.0)
    to_crop = compose(crop.transform, turn)
    shown = crop.cut(picture, to_crop).astype(np.float64)
    rows, columns = np.mgrid[: shown.shape[0], : shown.shape[1]]
    centre = np.array([(shown * columns).sum(), (shown * rows).sum()]) / shown.sum()
    np.testing.assert_allclose(centre, apply(to_crop, spot[None])[0], atol=0.1)


def test_grey_frames_and_coloured_ones_are_cut_alike() -> None:
    grey = (255 * smooth_texture(3, (120, 160), 2)).astype(np.uint8)
    crop = Crop.around(np.array([[40.0, 40], [90, 70]]), grey.shape[:2])
    coloured = crop.cut(np.repeat(grey[..., None], 3, -1), crop.transform)
    np.testing.assert_array_equal(coloured[..., 0], crop.cut(grey, crop.transform))
    assert coloured.shape == (*crop.size, 3)
