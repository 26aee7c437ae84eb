"""Measures of tracked points: PCK (JHMDB), BADJA's share of joints, and TAP-Vid's Jaccard, accuracy and occlusion.

Pixels in, shares from 0 to 1 out. A point that is lost has NaN for a place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INSTANCE_SHARE = 0.6
BADJA_SHARE = 0.2
TAPVID_THRESHOLDS = (1, 2, 4, 8, 16)
QUERY_MODES = ("first", "strided")


@dataclass(frozen=True)
class TapVidScore:
    """One video: average Jaccard, share of visible points within 1 to 16 pixels, occlusion accuracy; NaN where a video
    has nothing to measure."""

    average_jaccard: float
    delta_average: float
    occlusion_accuracy: float


def instance_sizes(joints: np.ndarray) -> np.ndarray:
    """PCKinstance's unit for joints [F, P, 2]: 0.6 of the diagonal of their extent in each frame, [F] pixels."""
    return INSTANCE_SHARE * np.linalg.norm(_extents(joints), axis=-1)


def box_sizes(joints: np.ndarray) -> np.ndarray:
    """PCKmax's unit for joints [F, P, 2]: the longer side of their box in each frame, [F] pixels."""
    return _extents(joints).max(-1)


def correct_points(found: np.ndarray, true: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Whether each point is at most its frame's threshold away from the truth; lost points are not: [F, P] bool.

    found, true: [F, P, 2] pixels; thresholds: [F] pixels
    """
    with np.errstate(invalid="ignore"):
        return np.linalg.norm(np.asarray(found, np.float64) - true, axis=-1) <= thresholds[:, None]


def share_per_joint(correct: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Share of the counted frames in which each joint is right: [F, P] bool twice -> [P], NaN for none counted."""
    total = counted.sum(0)
    return np.divide((correct & counted).sum(0), total, out=np.full(correct.shape[1], np.nan), where=total > 0)


def mean_share(shares: np.ndarray) -> float:
    """Mean over joints, those without a counted frame left out; NaN where there are none."""
    known = shares[np.isfinite(shares)]
    return float(known.mean()) if known.size else float("nan")


def badja_share(found: np.ndarray, true: np.ndarray, visible: np.ndarray, areas: np.ndarray) -> float:
    """Share of a video's visible joints that are at most 0.2 * sqrt(area of the true mask) pixels away.

    found, true: [F, P, 2] pixels; visible: [F, P] bool; areas: [F] pixels. NaN where no joint is visible.
    """
    right = correct_points(found, true, BADJA_SHARE * np.sqrt(areas)) & visible
    return float(right.sum() / visible.sum()) if visible.any() else float("nan")


def tapvid_score(
    query_frames: np.ndarray,
    true_occluded: np.ndarray,
    true_points: np.ndarray,
    found_occluded: np.ndarray,
    found_points: np.ndarray,
    mode: str,
) -> TapVidScore:
    """Scores of one video, as Doersch et al. (2022) define them.

    query_frames: [Q] frame on which each point is given
    *_occluded:   [Q, T] bool
    *_points:     [Q, T, 2] (x, y) on the raster of 256x256 pixels
    mode:         "first" counts the frames after the query, "strided" all others

    Raises ValueError for another mode or shapes that differ.
    """
    if mode not in QUERY_MODES:
        raise ValueError(f"expected a query mode among {', '.join(QUERY_MODES)}, got {mode!r}")
    shape = true_occluded.shape
    if not (found_occluded.shape == shape and found_points.shape == true_points.shape == (*shape, 2)):
        raise ValueError(f"expected points [Q, T, 2] and occlusion [Q, T], got {true_points.shape} and {shape}")
    frame = np.arange(shape[1])[None]
    query = np.asarray(query_frames)[:, None]
    counted = frame > query if mode == "first" else frame != query

    visible, shown = ~true_occluded & counted, ~found_occluded & counted
    distance = np.square(np.asarray(found_points, np.float64) - true_points).sum(-1)
    shares, jaccards = [], []
    for threshold in TAPVID_THRESHOLDS:
        near = distance < threshold**2  # False for NaN
        shares.append(_ratio((near & visible).sum(), visible.sum()))
        true_positives = (near & visible & shown).sum()
        false_positives = (shown & ~(near & visible)).sum()
        jaccards.append(_ratio(true_positives, visible.sum() + false_positives))
    agreed = ((found_occluded == true_occluded) & counted).sum()
    return TapVidScore(float(np.mean(jaccards)), float(np.mean(shares)), _ratio(agreed, counted.sum()))


def _ratio(part: int | np.integer, whole: int | np.integer) -> float:
    return float(part / whole) if whole else float("nan")


def _extents(joints: np.ndarray) -> np.ndarray:
    """Width and height of the joints of each frame: [F, P, 2] -> [F, 2]."""
    points = np.asarray(joints, np.float64)
    return points.max(1) - points.min(1)
