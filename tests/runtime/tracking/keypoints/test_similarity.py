"""Similarity transforms: found through outliers, and no freer than the points justify."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrflow.runtime.tracking.keypoints.similarity import apply, compose, fit_similarity, invert, scale_of

SHIFTS = st.floats(-500, 500)
TRANSFORMS = st.tuples(st.floats(-180, 180), st.floats(0.3, 3.5), SHIFTS, SHIFTS)


def transform_of(angle: float, scale: float, x: float, y: float) -> np.ndarray:
    turn = np.deg2rad(angle)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.column_stack([linear, [x, y]])


def places(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 200, (count, 2))


@given(TRANSFORMS, TRANSFORMS)
def test_transforms_are_composed_and_inverted(first, second) -> None:
    outer, inner, points = transform_of(*first), transform_of(*second), places(5)
    np.testing.assert_allclose(apply(compose(outer, inner), points), apply(outer, apply(inner, points)), atol=1e-6)
    np.testing.assert_allclose(apply(invert(outer), apply(outer, points)), points, atol=1e-6)
    assert scale_of(outer) == pytest.approx(first[1])


@pytest.mark.parametrize("scale", [0.5, 1, 1.4, 2])
def test_a_body_that_turns_is_found_through_outliers(scale: float) -> None:
    """Three of ten points are 100 to 200 pixels off, each in its own direction; nine in ten times all others fit."""
    found = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        truth = transform_of(generator.uniform(-180, 180), scale, *generator.uniform(-300, 300, 2))
        source = places(10, seed)
        exact = apply(truth, source)
        direction = generator.uniform(-np.pi, np.pi, 3)
        target = exact.copy()
        target[:3] += np.column_stack([np.cos(direction), np.sin(direction)]) * generator.uniform(100, 200, (3, 1))
        moved = apply(fit_similarity(source, target, np.ones(10)), source)
        found.append(np.linalg.norm(moved[3:] - exact[3:], axis=1).max() < 5)
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize(("angle", "scale"), [(90, 1), (180, 1), (-45, 1.5), (0, 0.5), (20, 2)])
def test_clear_turns_and_scales_are_taken_over_wholly(angle: float, scale: float) -> None:
    truth = transform_of(angle, scale, 30, -12)
    found = fit_similarity(places(12), apply(truth, places(12)), np.ones(12))
    np.testing.assert_allclose(found, truth, atol=1e-3)


def test_limbs_that_swing_leave_a_translation() -> None:
    """The body moves by (7, -3); the tips of its limbs swing as in a turn, with other places in between."""
    source = np.array([[x, y] for x in (0, 20, 40, 60, 80) for y in (0, 15, 30)], np.float64)
    target = np.add(source, (7, -3))
    target[[0, 3, 12]] += [(0, 9), (0, 5), (0, -8)]
    found = fit_similarity(source, target, np.ones(len(source)))
    np.testing.assert_allclose(found[:, :2], np.eye(2), atol=1e-2)
    np.testing.assert_allclose(apply(found, np.array([[40.0, 15]])), [[47, 12]], atol=0.3)


@given(SHIFTS, SHIFTS, st.integers(1, 6))
def test_points_without_extent_give_a_translation(x: float, y: float, count: int) -> None:
    """One point, or several at one place, have no rotation and no scale."""
    source = np.full((count, 2), 17.0)
    found = fit_similarity(source, np.add(source, (x, y)), np.ones(count))
    np.testing.assert_allclose(found, [[1, 0, x], [0, 1, y]], atol=1e-9)


@given(TRANSFORMS)
def test_two_points_stay_finite_and_near(one) -> None:
    source = np.array([[10.0, 20], [60, 50]])
    target = apply(transform_of(*one), source)
    found = fit_similarity(source, target, np.ones(2))
    assert np.isfinite(found).all()
    mean = np.linalg.norm(apply(found, source).mean(0) - target.mean(0))
    assert mean < 0.6 * np.ptp(target, axis=0).max() + 1


@given(TRANSFORMS, st.lists(st.sampled_from([0.0, 1e-9, 1.0]), min_size=4, max_size=4))
def test_weights_of_zero_are_no_fault(one, weights: list[float]) -> None:
    source = places(4)
    found = fit_similarity(source, apply(transform_of(*one), source), np.array(weights))
    assert np.isfinite(found).all() and 0.2 < scale_of(found) < 4.1


def test_points_without_weight_do_not_count() -> None:
    source = places(9)
    target = np.add(source, (5, 8))
    target[:4] += (40, 0)
    found = fit_similarity(source, target, np.array([0] * 4 + [1] * 5, np.float64))
    np.testing.assert_allclose(apply(found, source[4:]), target[4:], atol=0.1)


def test_the_scale_is_bounded() -> None:
    source = places(9)
    for factor, bound in ((100, 4), (0.001, 0.25)):
        assert scale_of(fit_similarity(source, source * factor, np.ones(9))) == pytest.approx(bound, rel=1e-3)
