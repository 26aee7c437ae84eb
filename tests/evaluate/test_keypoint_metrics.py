"""Measures of keypoints, compared with their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from corrflow.evaluate.metrics.keypoints import (
    PCK_SHARES,
    body_length,
    calibration,
    errors_of,
    keypoint_score,
    pck_over_time,
)


def test_the_body_length_is_the_median_side_over_frames_and_objects() -> None:
    points = np.full((3, 4, 2), np.nan)
    points[:, 0] = 0
    points[0, 1], points[1, 1], points[2, 1] = (10, 4), (3, 20), (30, 1)
    points[0, 2] = (5, 5)  # the second object has one visible point
    assert body_length(points, [[0, 1], [2, 3]]) == 20
    assert np.isnan(body_length(points, [[2, 3]]))


def test_errors_are_infinite_without_a_prediction_and_nan_without_a_truth() -> None:
    true = np.array([[[0, 0], [0, 0], [np.nan, np.nan]]], float)
    predicted = np.array([[[3, 4], [np.nan, np.nan], [1, 1]]], float)
    np.testing.assert_array_equal(errors_of(predicted, true), [[5, np.inf, np.nan]])


def test_the_calibration_error_is_weighted_by_the_counts() -> None:
    confidences = np.array([1.0, 0.95, 0.95, 0.25])
    result = calibration(confidences, np.array([True, True, False, False]))
    assert result.counts.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 3]
    assert result.right[9] == pytest.approx(2 / 3) and result.confidences[9] == pytest.approx(2.9 / 3)
    assert result.expected_error == pytest.approx((0.9 / 3 * 3 + 0.25) / 4)
    assert np.isnan(calibration(np.zeros(0), np.zeros(0, bool)).expected_error)


def test_scores_are_those_of_the_definitions() -> None:
    nan = np.nan
    errors = np.array([[0.0, 30.0], [4.0, nan], [19.0, nan], [21.0, np.inf]])
    confidences = np.array([[1.0, 0.4], [1.0, 0.2], [1.0, 0.9], [0.3, 0.0]])
    scored = np.ones((4, 2), bool)
    scored[0] = False
    score = keypoint_score(errors, confidences, scored, 100.0, np.array([False, False, False, True]))
    visible = [4.0, 19.0, 21.0, np.inf]
    assert score.pck == tuple(np.mean([error <= 100 * share for error in visible]) for share in PCK_SHARES)
    assert (score.pck_right, score.pck_late, score.median_error) == (0.5, 0.0, 19.0)
    assert (score.hidden_found, score.visible_hidden) == (0.5, 0.5)
    assert (score.count, score.hidden_count) == (4, 2)
    # A hidden point is wrong at any confidence.
    assert score.calibration.right[9] == pytest.approx(2 / 3)
    assert score.calibration.right[2] == 0


def test_the_curve_over_time_has_gaps_where_nothing_is_scored() -> None:
    frames = np.array([10, 11, 18, 19])
    errors = np.array([[0.0, 9.0], [0.0, 0.0], [9.0, 9.0], [np.nan, 0.0]])
    at, shares = pck_over_time(errors, np.ones((4, 2), bool), 10.0, frames, bins=5)
    np.testing.assert_allclose(at, [10.5, 12.5, 14.5, 16.5, 18.5])
    np.testing.assert_allclose(shares, [0.75, np.nan, np.nan, np.nan, 1 / 3])
