"""Edge refinement moves contours to the edges of the image, and keeps certain pixels."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.errors import InputError
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.edge_refinement import refine_edges
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

RADIUS = 8


def disc(size: tuple[int, int] = (120, 160), radius: float = 30.0) -> tuple[np.ndarray, np.ndarray]:
    """Render a coloured disc on another colour, both a little noisy: frame [H, W, 3] uint8, and the disc's mask."""
    y, x = np.mgrid[: size[0], : size[1]]
    mask = (y - size[0] / 2) ** 2 + (x - size[1] / 2) ** 2 < radius**2
    colours = np.where(mask[..., None], (40, 90, 200), (160, 150, 60))
    noise = np.random.default_rng(0).integers(-6, 7, (*size, 3))
    return (colours + noise).astype(np.uint8), mask


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize(("size", "rows"), [((120, 160), 0), ((240, 320), 120)], ids=["as it is", "shrunk to a half"])
def test_a_soft_mask_of_cells_moves_to_the_edge_in_the_image(size: tuple[int, int], rows: int) -> None:
    frame, mask = disc(size, size[0] / 4)
    geometry = Geometry.of(size, rows)
    # Three pixels off, as a label that was copied from frame to frame is.
    shifted = np.roll(mask, 3, 1)
    label = geometry.upsampler()(geometry.mask_to_cells(shifted)[None])[0]
    filtered = refine_edges(label.copy(), frame, RADIUS, geometry.scale)
    before, after = (overlap(one > 0.5, mask) for one in (label, filtered))
    assert after > 0.97 and after > before + 0.03, (before, after)
    assert filtered.dtype == np.float32 and filtered.min() >= 0 and filtered.max() <= 1


def test_certain_pixels_are_kept() -> None:
    frame, mask = disc()
    label = cv2.GaussianBlur(mask.astype(np.float32), (9, 9), 2)
    filtered = refine_edges(label.copy(), frame, RADIUS, 1.0)
    unsure = ((label > 0) & (label < 1)).astype(np.uint8)
    near = cv2.dilate(unsure, np.ones((4 * RADIUS + 1, 4 * RADIUS + 1), np.uint8)) > 0
    np.testing.assert_allclose(filtered[~near], label[~near], atol=1e-4)
    for sure in (np.zeros_like(label), np.ones_like(label), mask.astype(np.float32)):
        np.testing.assert_array_equal(refine_edges(sure.copy(), frame, RADIUS, 1.0), sure)


def test_an_image_without_edges_only_smoothes() -> None:
    frame = np.full((60, 80, 3), 117, np.uint8)
    label = np.zeros((60, 80), np.float32)
    label[:, 40:], label[:, 38:40] = 1, 0.5
    filtered = refine_edges(label, frame, RADIUS, 1.0)
    assert (np.diff(filtered, axis=1) >= -1e-6).all()
    assert filtered[:, :15] == pytest.approx(0, abs=1e-5) and filtered[:, -15:] == pytest.approx(1, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    radius=st.integers(1, 20),
    scale=st.sampled_from([1.0, 0.5, 0.31, 0.05]),
    seed=st.integers(0, 2**16),
    grey=st.booleans(),
)
def test_any_size_gives_soft_masks(height: int, width: int, radius: int, scale: float, seed: int, grey: bool) -> None:
    generator = np.random.default_rng(seed)
    frame = generator.integers(0, 256, (height, width, 1 if grey else 3), np.uint8)
    frame = np.broadcast_to(frame, (height, width, 3)) if grey else frame
    label = generator.random((height, width), np.float32) * (generator.random((height, width)) < 0.5)
    filtered = refine_edges(label.astype(np.float32), frame, radius, scale)
    assert filtered.shape == label.shape and np.isfinite(filtered).all()
    assert filtered.min() >= 0 and filtered.max() <= 1


@pytest.mark.parametrize("colours", [(1, 1, 1), (1.0, 0.5, 0.25), (1, 0, 0)], ids=["grey", "of one hue", "one channel"])
def test_correlated_colours_are_stable(colours: tuple[float, ...]) -> None:
    """Where one channel says what the others say, the filter's equations are all but singular."""
    y, x = np.mgrid[:240, :320]
    mask = (y - 120) ** 2 + (x - 160) ** 2 < 3600
    light = np.where(mask, 220, 40) + np.random.default_rng(0).integers(-30, 31, mask.shape)
    frame = (light[..., None] * np.array(colours)).clip(0, 255).astype(np.uint8)
    label = cv2.GaussianBlur(np.roll(mask, 2, 1).astype(np.float32), (9, 9), 2)
    filtered = refine_edges(label, frame, RADIUS, 1.0)
    assert np.isfinite(filtered).all() and overlap(filtered > 0.5, mask) > 0.97


def test_the_tracker_stores_unrefined_soft_masks() -> None:
    """The filter changes the result of a frame, and no later frame."""
    artifact = load_artifact(resolve_model(None))
    frame, mask = disc((96, 128), 24)
    frames = [np.roll(frame, 2 * step, 1) for step in range(4)]
    shown = {}
    for refine_radius in (0, RADIUS):
        tracker = Tracker(
            OnnxRuntimeBackend(artifact, 1, fused=True), replace(artifact.settings, refine_radius=refine_radius)
        )
        tracker.start(frames[0], [MaskObject(1, mask)])
        soft = [tracker.soft_step(one)[1] for one in frames[1:3]]
        shown[refine_radius] = tracker.step(frames[3]).mask, soft
    for plain, filtered in zip(shown[0][1], shown[RADIUS][1], strict=True):
        np.testing.assert_array_equal(plain, filtered)
    truth = np.roll(mask, 6, 1)
    assert overlap(shown[RADIUS][0] > 0, truth) > overlap(shown[0][0] > 0, truth)


def test_a_negative_radius_is_refused() -> None:
    with pytest.raises(InputError, match="refine_radius"):
        TrackingSettings(refine_radius=-1)
