"""Refinement: copied points move to where the pictures match, by the label before the last frame, and not far."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.textured_body import smooth_texture

from corrflow.runtime.tracking.keypoints.crop import Crop
from corrflow.runtime.tracking.keypoints.patch_matching import FINE_RADIUS, sample_patches, sample_turned_patches
from corrflow.runtime.tracking.keypoints.refinement import (
    MAX_CORRECTION,
    MAX_FINE_CORRECTION,
    LabelledPicture,
    Refined,
    best_correlation,
    refine_in_crop,
    refine_in_video,
)

PICTURE = (255 * smooth_texture(1, (140, 180), 2.5)).astype(np.uint8)
OTHER = (255 * smooth_texture(5, (140, 180), 2.5)).astype(np.uint8)
POINTS = np.array([[40.0, 40], [90.5, 60.25], [130, 100]])


def moved(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    transform = np.array([[1.0, 0, x], [0, 1, y]])
    return Crop(transform, (picture.shape[0], picture.shape[1]), 1.0).cut(picture, transform)


def labelled(picture: np.ndarray, points: np.ndarray, axes: np.ndarray | None = None) -> LabelledPicture:
    axes = np.eye(2) if axes is None else axes
    fine = sample_turned_patches(picture, points, axes, FINE_RADIUS)
    return LabelledPicture(points, picture, sample_patches(picture, points), fine)


def test_the_label_places_points_exactly() -> None:
    """The copied place is 2 pixels off, and so is the last frame's: its drift does not count."""
    picture, truth = moved(PICTURE, 3.3, -1.6), np.add(POINTS, (3.3, -1.6))
    found = refine_in_crop(
        picture, np.add(truth, (2, 1)), (PICTURE, np.add(POINTS, (1.5, 1.5))), [labelled(PICTURE, POINTS)]
    )
    np.testing.assert_allclose(found.points, truth, atol=0.1)
    np.testing.assert_array_equal(found.label, 0)
    assert not found.from_last.any()


def test_the_last_frame_places_points_that_no_longer_look_like_their_label() -> None:
    picture, truth = moved(PICTURE, 3.3, -1.6), np.add(POINTS, (3.3, -1.6))
    found = refine_in_crop(picture, np.add(truth, (2, 1)), (PICTURE, POINTS), [labelled(OTHER, POINTS)])
    np.testing.assert_allclose(found.points, truth, atol=0.1)
    np.testing.assert_array_equal(found.label, -1)
    assert found.from_last.all()


def test_the_label_that_looks_most_alike_counts() -> None:
    picture = moved(PICTURE, 1, 1)
    paler = labelled((PICTURE * 0.5 + OTHER * 0.12).astype(np.uint8), POINTS + 0.5)
    found = refine_in_crop(picture, POINTS + 1, (PICTURE, POINTS), [paler, labelled(PICTURE, POINTS), paler])
    np.testing.assert_array_equal(found.label, 1)
    np.testing.assert_allclose(found.points, POINTS + 1, atol=0.1)


def test_points_keep_their_copied_place_where_nothing_matches() -> None:
    noise = np.random.default_rng(0).integers(0, 256, PICTURE.shape, np.uint8)
    found = refine_in_crop(np.full_like(PICTURE, 90), POINTS + 1, (PICTURE, POINTS), [labelled(noise, POINTS)])
    np.testing.assert_array_equal(found.points, POINTS + 1)
    assert (found.label == -1).all() and not found.from_last.any()


def test_corrections_are_bounded() -> None:
    """A place that matches perfectly is refused where it lies too far from the copied one."""
    picture = moved(PICTURE, 2.5, 1)
    copied = np.add(POINTS, (2.5, 1)) + np.array([[MAX_CORRECTION + 4, 0], [0, 2], [0, -MAX_CORRECTION - 4]])
    found = refine_in_crop(picture, copied, (PICTURE, POINTS), [labelled(PICTURE, POINTS)])
    assert (np.linalg.norm(found.points - copied, axis=1) <= MAX_CORRECTION).all()
    np.testing.assert_allclose(found.points[1], POINTS[1] + (2.5, 1), atol=0.1)


def test_points_without_a_label_there_are_placed_by_the_last_frame() -> None:
    points = POINTS.copy()
    points[1] = np.nan
    one = labelled(PICTURE, points)
    np.testing.assert_array_equal(one.has_label, [True, False, True])
    picture = moved(PICTURE, 1.4, 0.7)
    found = refine_in_crop(picture, POINTS + 1, (PICTURE, POINTS), [one])
    np.testing.assert_array_equal(found.label, [0, -1, 0])
    np.testing.assert_array_equal(found.from_last, [False, True, False])
    np.testing.assert_allclose(found.points, np.add(POINTS, (1.4, 0.7)), atol=0.1)
    assert best_correlation(PICTURE, POINTS, [one])[1] == -1


def test_correlation_is_with_the_most_similar_label() -> None:
    found = best_correlation(PICTURE, POINTS, [labelled(OTHER, POINTS), labelled(PICTURE, POINTS)])
    np.testing.assert_allclose(found, 1, atol=1e-3)
    assert (best_correlation(PICTURE, POINTS, [labelled(OTHER, POINTS)]) < 0.8).all()


@pytest.mark.parametrize("angle", [0, 40, 180])
def test_the_second_stage_places_points_at_the_resolution_of_the_video(angle: float) -> None:
    """Crops at a third of the picture's scale know places to a pixel or so; the frame itself knows better."""
    turn = np.deg2rad(angle)
    axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    large = (255 * smooth_texture(2, (600, 800), 3)).astype(np.uint8)
    points = np.array([[300.0, 280], [420, 310], [380, 350]])
    centre = np.array([400.0, 300])
    to_now = np.column_stack([axes, centre - axes @ centre + (7.25, -3.5)])
    now, truth = Crop(to_now, (600, 800), 1.0).cut(large, to_now), points @ to_now[:, :2].T + to_now[:, 2]
    coarse = truth + np.array([[0.9, -0.8], [-1.1, 0.4], [0.2, 1.2]])
    refined = Refined(coarse, np.array([0, 0, -1]), np.array([False, False, True]))
    last = (now, truth)  # the frame before shows the same here
    found = refine_in_video(now, refined, last, [labelled(large, points)], axes)
    np.testing.assert_allclose(found, truth, atol=0.25)


def test_the_second_stage_moves_unsure_points_not_at_all_and_others_not_far() -> None:
    picture = moved(PICTURE, 5, 0)
    refined = Refined(np.add(POINTS, (2.5, 0)), np.array([0, -1, -1]), np.zeros(3, bool))
    found = refine_in_video(picture, refined, (PICTURE, POINTS), [labelled(PICTURE, POINTS)], np.eye(2))
    np.testing.assert_array_equal(found[1:], refined.points[1:])
    assert np.linalg.norm(found - refined.points, axis=1).max() <= MAX_FINE_CORRECTION
