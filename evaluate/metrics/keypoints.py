"""Measures of tracked keypoints: PCK in body lengths, and calibration of the reported confidences.

All arrays have F frames and K points. A point counts where `is_scored`; truth is NaN where a point is not visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PCK_SHARES = (0.05, 0.1, 0.2, 0.5)
RIGHT_SHARE = 0.2
"""Largest error of a right point, in body lengths."""
HIDDEN_BELOW = 0.5
"""Confidence below which a point is reported as hidden."""
CALIBRATION_BINS = 10
TIME_BINS = 40


@dataclass(frozen=True)
class Calibration:
    """Reliability diagram: points by their confidence, in ten bins of equal width.

    counts:      [10] number of reported points
    confidences: [10] mean confidence; NaN for an empty bin
    right:       [10] fraction of right points; a point that is hidden in truth is never right
    """

    counts: np.ndarray
    confidences: np.ndarray
    right: np.ndarray

    @property
    def expected_error(self) -> float:
        """Expected calibration error: mean distance of confidence and fraction, weighted by the counts."""
        filled = self.counts > 0
        if not filled.any():
            return float("nan")
        distances = np.abs(self.confidences - self.right)[filled]
        return float(np.average(distances, weights=self.counts[filled]))


@dataclass(frozen=True)
class KeypointScore:
    """Score of points; NaN where there is nothing to measure.

    pck:            fraction of visible points within each of `PCK_SHARES` body lengths
    pck_late:       fraction within `RIGHT_SHARE` in the last third of the video
    median_error:   pixels, over visible points
    calibration:    reliability diagram
    hidden_found:   fraction of hidden points that are reported as hidden
    visible_hidden: fraction of visible points that are reported as hidden
    count:          number of visible points, over all frames
    hidden_count:   number of hidden points, over all frames
    """

    pck: tuple[float, ...]
    pck_late: float
    median_error: float
    calibration: Calibration
    hidden_found: float
    visible_hidden: float
    count: int
    hidden_count: int

    @property
    def pck_right(self) -> float:
        """Fraction of visible points within `RIGHT_SHARE` body lengths."""
        return self.pck[PCK_SHARES.index(RIGHT_SHARE)]


def body_length(points: np.ndarray, objects: Sequence[Sequence[int]]) -> float:
    """Return the median over frames and objects of the longest side of the box of an object's visible points.

    points:  [F, K, 2] pixels, NaN where not visible
    objects: indices of each object's points

    The result is NaN where no object has two visible points on a frame.
    """
    sides = []
    for indices in objects:
        own = points[:, indices]
        own = own[np.isfinite(own).all(-1).sum(1) >= 2]
        if len(own):
            sides.append((np.nanmax(own, axis=1) - np.nanmin(own, axis=1)).max(-1))
    return float(np.median(np.concatenate(sides))) if sides else float("nan")


def errors_of(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the distances [F, K] in pixels: infinite without a prediction, NaN where the truth is not visible."""
    distances = np.linalg.norm(predicted - true, axis=-1)
    is_missing = ~np.isfinite(predicted).all(-1) & np.isfinite(true).all(-1)
    return np.where(is_missing, np.inf, distances)


def calibration(confidences: np.ndarray, is_right: np.ndarray) -> Calibration:
    """Compute the reliability diagram of reported points: confidences [N] from 0 to 1, and is_right [N] bool."""
    bins = np.clip((confidences * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        means = np.bincount(bins, confidences, CALIBRATION_BINS) / counts
        right = np.bincount(bins, is_right, CALIBRATION_BINS) / counts
    return Calibration(counts, means, right)


def keypoint_score(
    errors: np.ndarray, confidences: np.ndarray, is_scored: np.ndarray, length: float, is_late: np.ndarray
) -> KeypointScore:
    """Score points.

    errors:      [F, K] pixels, as of `errors_of`
    confidences: [F, K] 0..1
    is_scored:   [F, K] bool
    length:      body length in pixels
    is_late:     [F] bool: True for frames of the last third
    """
    is_visible = ~np.isnan(errors)
    shown, hidden = is_visible & is_scored, ~is_visible & is_scored
    is_right = np.nan_to_num(errors, nan=np.inf) <= RIGHT_SHARE * length
    visible_errors = errors[shown]
    return KeypointScore(
        pck=tuple(_mean(visible_errors <= share * length) for share in PCK_SHARES),
        pck_late=_mean(is_right[shown & is_late[:, None]]),
        # The middle of an even number would be NaN between two infinite errors.
        median_error=float(np.sort(visible_errors)[(len(visible_errors) - 1) // 2]) if shown.any() else float("nan"),
        calibration=calibration(confidences[is_scored], is_right[is_scored]),
        hidden_found=_mean(confidences[hidden] < HIDDEN_BELOW),
        visible_hidden=_mean(confidences[shown] < HIDDEN_BELOW),
        count=int(shown.sum()),
        hidden_count=int(hidden.sum()),
    )


def pck_over_time(
    errors: np.ndarray, is_scored: np.ndarray, length: float, frames: np.ndarray, bins: int = TIME_BINS
) -> tuple[np.ndarray, np.ndarray]:
    """Return frame indices and PCK at `RIGHT_SHARE` of up to `bins` equal parts of the time; NaN for an empty part."""
    first, last = int(frames.min()), int(frames.max())
    bins = min(bins, last - first + 1)
    edges = np.linspace(first, last + 1, bins + 1)
    part = np.clip(np.searchsorted(edges, frames, "right") - 1, 0, bins - 1)
    shown = ~np.isnan(errors) & is_scored
    right = shown & (errors <= RIGHT_SHARE * length)
    total = np.bincount(part, shown.sum(1), bins)
    with np.errstate(invalid="ignore"):
        return (edges[:-1] + edges[1:] - 1) / 2, np.bincount(part, right.sum(1), bins) / total


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
