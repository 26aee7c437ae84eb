"""Target model: what it decides, what it leaves alone, and what it costs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.evaluate.methods.protocols import PUBLISHED, apply_protocol
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.target_model import (
    ANNOTATED_SAMPLES,
    MAX_DOUBTFUL,
    RECENT_FRAMES,
    RECENT_SAMPLES,
    TargetModel,
)

OBJECT, BACKGROUND, OTHER = np.eye(8, dtype=np.float32)[:3]
OWN = (slice(10, 20), slice(10, 20))
NEW = (slice(12, 18), slice(20, 23))
"""A part beside the object that comes into view."""
UNCOVERED = (slice(12, 18), slice(7, 10))
"""Background on the other side."""


def features(*parts: tuple[tuple[slice, slice], np.ndarray], seed: int = 0) -> np.ndarray:
    """Return features [8, 30, 40] of the background, with those of parts, and noise."""
    values = np.tile(BACKGROUND[:, None, None], (1, 30, 40))
    for place, feature in parts:
        values[(slice(None), *place)] = feature[:, None, None]
    return values + np.random.default_rng(seed).normal(0, 0.05, values.shape).astype(np.float32)


def mask(doubtful: float | None = None) -> np.ndarray:
    """Return the object's soft mask [30, 40]; doubtful: label of the cells at both sides."""
    values = np.zeros((30, 40), np.float32)
    values[OWN] = 1
    if doubtful is not None:
        values[NEW] = values[UNCOVERED] = doubtful
    return values


def test_a_doubtful_part_that_looks_like_the_object_joins_it_and_background_does_not() -> None:
    model = TargetModel(features((OWN, OBJECT)), mask())
    refined = model.refine(features((OWN, OBJECT), (NEW, OBJECT), seed=1), mask(0.45))
    assert (refined[NEW] > 0.5).all() and (refined[UNCOVERED] < 0.4).all()
    assert refined.sum() == pytest.approx(mask(0.45).sum(), abs=0.05)  # the area stays
    refined[NEW] = refined[UNCOVERED] = 0
    np.testing.assert_array_equal(refined, mask())  # what is certain stays as it is, to the bit


def test_a_contour_stays_where_it_is() -> None:
    soft = cv2.GaussianBlur(mask(), (0, 0), 1.0)
    ring = (slice(9, 21), slice(9, 21))  # the cells around the object look like it, as mixed ones of a contour do
    values = features((ring, OBJECT), seed=1)
    model, area = TargetModel(features((OWN, OBJECT)), soft), soft.sum()
    for _ in range(100):
        soft = model.refine(values, soft)
        model.observe(values, soft)
    assert soft.sum() == pytest.approx(area, rel=0.02)


def test_a_changed_look_is_learned_from_recent_frames() -> None:
    model = TargetModel(features((OWN, OBJECT)), mask())
    changed = features((OWN, OTHER), (NEW, OTHER), seed=1)
    before = model.refine(changed, mask(0.45))[NEW].mean()
    for seed in range(2, 4):
        model.observe(features((OWN, OTHER), seed=seed), mask())
    assert model.refine(changed, mask(0.45))[NEW].mean() > before + 0.02


def test_its_size_does_not_grow_with_the_stream() -> None:
    model = TargetModel(features((OWN, OBJECT)), mask())
    for seed in range(3 * RECENT_FRAMES):
        model.observe(features((OWN, OBJECT), seed=seed), mask())
        model.refine(features((OWN, OBJECT), seed=seed), mask(0.4))
    assert len(model._kernel) <= ANNOTATED_SAMPLES + RECENT_FRAMES * RECENT_SAMPLES
    expected = TargetModel(features((OWN, OBJECT)), mask())
    for seed in range(2 * RECENT_FRAMES, 3 * RECENT_FRAMES):
        expected.observe(features((OWN, OBJECT), seed=seed), mask())
    np.testing.assert_allclose(model._kernel, expected._kernel, atol=1e-5)


def test_a_blurred_mask_has_its_most_doubtful_cells_decided() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (8, 80, 80)).astype(np.float32)
    annotated = np.zeros((80, 80), np.float32)
    annotated[20:60, 20:60] = 1
    blurred = random.uniform(0.1, 0.9, (80, 80)).astype(np.float32)
    changed = TargetModel(values, annotated).refine(values, blurred) != blurred
    assert 0.99 * MAX_DOUBTFUL <= changed.sum() <= MAX_DOUBTFUL
    assert np.abs(blurred[changed] - 0.5).max() <= np.abs(blurred[~changed] - 0.5).min() + 0.05


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from((0.0, 0.5, 1.0)))
def test_labels_stay_between_0_and_1_for_every_shape(height: int, width: int, seed: int, rounding: float) -> None:
    random = np.random.default_rng(seed)
    values = (random.normal(0, 1, (3, height, width)) * random.integers(0, 2)).astype(np.float32)
    soft = random.uniform(0, 1, (2, height, width)).astype(np.float32)
    annotated, propagated = np.where(random.uniform(size=soft.shape) < rounding, soft.round(), soft)
    model = TargetModel(values, annotated)
    for _ in range(3):
        propagated = model.refine(values, propagated)
        assert propagated.dtype == np.float32 and propagated.shape == (height, width)
        assert np.isfinite(propagated).all() and propagated.min() >= 0 and propagated.max() <= 1
        model.observe(values, propagated)


@pytest.mark.parametrize("protocol", PUBLISHED)
def test_published_protocols_have_none(protocol: str) -> None:
    assert not apply_protocol(protocol, TrackingSettings(target_model=True)).target_model
