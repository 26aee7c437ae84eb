"""Weights of keypoint confidence: recovered from a sample of known weights, and fitted to a clip by the command."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.textured_body import frame_and_points, motion

from corrflow.bench.experiments import keypoint_confidence
from corrflow.bench.experiments.keypoint_confidence import clip_of_video, error, fitted, samples
from corrflow.runtime.tracking.keypoints.confidence import WEIGHTS


def sample(weights: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw terms, and which points are right with the probability that the weights state."""
    generator = np.random.default_rng(seed)
    terms = np.column_stack([generator.uniform(-1, 1, (count, len(weights) - 1)), np.ones(count)])
    return terms, generator.random(count) < 1 / (1 + np.exp(-terms @ weights))


def test_the_weights_of_a_sample_are_found_and_calibrated() -> None:
    weights = np.array([2.0, -1.0, 0.5, 0.3])
    clips = [sample(weights, 4000, seed) for seed in range(3)]
    found = fitted(clips)
    np.testing.assert_allclose(found, weights, atol=0.15)
    for clip in clips:
        assert error(found, *clip) < 0.04 < error(np.array([0, 0, 0, 5.0]), *clip)


def test_every_clip_counts_alike() -> None:
    """A clip of a hundred times the points is one of two; the bias is that of both shares of right points."""
    ones = np.ones((10000, 1))
    few, many = (ones[:100], np.ones(100, bool)), (ones, np.zeros(10000, bool))
    assert 1 / (1 + np.exp(-fitted([few, many])[0])) == pytest.approx(0.5, abs=0.01)


def test_points_that_are_all_right_give_finite_weights() -> None:
    found = fitted([(np.column_stack([np.linspace(0, 1, 50), np.ones(50)]), np.ones(50, bool))])
    assert np.isfinite(found).all() and (found > 0).all()


def test_a_clip_is_tracked_and_fitted_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mouse"
    folder.mkdir()
    places = np.full((10, 1, 5, 2), np.nan)
    for t in range(10):
        image, points = frame_and_points(motion(4 * t))
        cv2.imwrite(str(folder / f"{t:02d}.png"), image)
        places[t, 0] = points if t % 3 == 0 else np.nan
    labels = tmp_path / "labels.npz"
    np.savez(labels, xy=places, nodes=np.array(["a", "b", "c", "d", "e"]))
    clip = clip_of_video(str(folder), labels)
    assert np.isfinite(clip.lengths).sum() == 4
    terms, right = samples(clip, "fast-int8")
    # Three of four labelled frames are starts: the first is scored on three, the second on two, the third on one.
    assert terms.shape == (5 * 6, len(WEIGHTS)) and right.all()
    command = ["keypoint_confidence", str(folder), str(labels), "--model", "fast-int8"]
    monkeypatch.setattr(sys, "argv", command)
    keypoint_confidence.main()
    printed = capsys.readouterr().out
    assert "mouse: 30 points, right 1.000" in printed and "all points: error" in printed
