"""Sub-pixel matching: exact on smooth pictures, and honest where there is nothing to match."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.textured_body import smooth_texture
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.runtime.tracking.keypoints.crop import Crop
from corrflow.runtime.tracking.keypoints.patch_matching import (
    FINE_RADIUS,
    PATCH_RADIUS,
    correlate_patches,
    match_patches,
    match_points,
    sample_patches,
    sample_turned_patches,
)

PICTURE = (255 * smooth_texture(1, (140, 180), 2.5)).astype(np.uint8)
POINTS = np.array([[40.0, 40], [90.5, 60.25], [130, 100], [60, 95.75]])


def moved(picture: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    transform = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float64)
    return Crop(transform, (picture.shape[0], picture.shape[1]), 1.0).cut(picture, transform)


@settings(max_examples=25, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_a_shift_of_less_than_a_pixel_is_found(x: float, y: float) -> None:
    found = match_points(PICTURE, moved(PICTURE, (x, y)), POINTS, POINTS)
    assert found.consistent.all()
    np.testing.assert_allclose(found.points, np.add(POINTS, (x, y)), atol=0.1)


def test_a_guess_bridges_long_ways() -> None:
    found = match_points(PICTURE, moved(PICTURE, (30.4, -18.2)), POINTS, np.add(POINTS, (29, -17)))
    assert found.consistent.all()
    np.testing.assert_allclose(found.points, np.add(POINTS, (30.4, -18.2)), atol=0.1)


def test_flat_places_and_covered_ones_are_not_consistent() -> None:
    flat = PICTURE.copy()
    flat[20:60, 20:60] = 120
    assert not match_points(flat, moved(flat, (2, 1)), POINTS, POINTS).consistent[0]
    covered = moved(PICTURE, (2, 1))
    covered[30:75, 60:125] = (255 * smooth_texture(7, (45, 65), 2.5)).astype(np.uint8)
    found = match_points(PICTURE, covered, POINTS, POINTS)
    np.testing.assert_array_equal(found.consistent, [True, False, True, True])


def test_points_without_a_place_are_harmless() -> None:
    points = np.concatenate([POINTS[:1], np.full((1, 2), np.nan), POINTS[2:], [[1e6, -1e6]]])
    found = match_points(PICTURE, moved(PICTURE, (1, 1)), points, points)
    np.testing.assert_array_equal(found.consistent, [True, False, True, True, False])
    np.testing.assert_allclose(found.points[0], POINTS[0] + 1, atol=0.1)
    assert sample_patches(PICTURE, points).shape == (5, 2 * PATCH_RADIUS + 1, 2 * PATCH_RADIUS + 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(-30, 210), st.integers(-30, 170), st.integers(0, 9))
def test_patches_are_the_picture_and_its_border_around(x: int, y: int, radius: int) -> None:
    (patch,) = sample_patches(PICTURE, np.array([[float(x), float(y)]]), radius)
    rows = np.arange(y - radius, y + radius + 1).clip(0, PICTURE.shape[0] - 1)
    columns = np.arange(x - radius, x + radius + 1).clip(0, PICTURE.shape[1] - 1)
    np.testing.assert_array_equal(patch, PICTURE[np.ix_(rows, columns)])


def test_turned_patches_have_turned_axes() -> None:
    quarter = np.array([[0.0, -1], [1, 0]])  # across the patch is down in the picture
    straight = sample_patches(PICTURE, POINTS[:1], 6)[0]
    turned = sample_turned_patches(PICTURE, POINTS[:1], quarter, 6)[0]
    np.testing.assert_array_equal(turned, np.rot90(straight))


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 99), st.floats(0.2, 3), st.floats(-20, 20))
def test_correlation_is_one_for_equal_patches_at_any_light(count, side, seed, gain, offset) -> None:
    patches = np.random.default_rng(seed).uniform(0, 200, (count, side, side)).astype(np.float32)
    found = correlate_patches(patches, patches * np.float32(gain) + np.float32(offset))
    if side > 1:
        np.testing.assert_allclose(found, 1, atol=1e-2)
    other = correlate_patches(patches, np.random.default_rng(seed + 1).uniform(0, 200, patches.shape))
    assert (np.abs(other) <= 1 + 1e-5).all()


def test_correlation_of_patches_without_contrast_is_zero() -> None:
    flat, textured = np.full((1, 9, 9), 80, np.uint8), np.random.default_rng(0).integers(0, 256, (1, 9, 9), np.uint8)
    assert correlate_patches(flat, flat) == pytest.approx(0)
    assert correlate_patches(flat, textured) == pytest.approx(0, abs=1e-5)
    assert correlate_patches(textured, 255 - textured) == pytest.approx(-1, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.floats(-1.8, 1.8), st.floats(-1.8, 1.8))
def test_patches_side_by_side_are_matched_each_on_its_own(x: float, y: float) -> None:
    before = sample_patches(PICTURE, POINTS, FINE_RADIUS)
    found = match_patches(before, sample_patches(moved(PICTURE, (x, y)), POINTS, FINE_RADIUS))
    assert found.consistent.all()
    np.testing.assert_allclose(found.points, np.broadcast_to((x, y), POINTS.shape), atol=0.1)
