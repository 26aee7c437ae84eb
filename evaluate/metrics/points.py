"""Measures of tracked points: PCK of JHMDB, PCK of BADJA, and TAP-Vid's average Jaccard, accuracy and occlusion.

Points are in pixels, scores are fractions from 0 to 1. An occluded or lost point may have NaN coordinates.
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
    """TAP-Vid scores of one video; NaN where the video has nothing to measure.

    average_jaccard:    AJ, the mean Jaccard index over the thresholds of 1 to 16 pixels
    delta_average:      <d avg, the mean fraction of visible points within the thresholds
    occlusion_accuracy: OA, the fraction of frames with the right occlusion flag
    within_one_pixel:   the fraction of visible points within one pixel, which <d avg has as its first part
    """

    average_jaccard: float
    delta_average: float
    occlusion_accuracy: float
    within_one_pixel: float


def instance_sizes(joints: np.ndarray) -> np.ndarray:
    """Return PCKinstance's unit for joints [F, P, 2]: 0.6 of the diagonal of their box in each frame, [F] pixels."""
    return INSTANCE_SHARE * np.linalg.norm(_extents(joints), axis=-1)


def box_sizes(joints: np.ndarray) -> np.ndarray:
    """Return PCKmax's unit for joints [F, P, 2]: the longer side of their box in each frame, [F] pixels."""
    return _extents(joints).max(-1)


def correct_points(predicted: np.ndarray, true: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return [F, P] bool: True where a point lies within its frame's threshold of the truth, False for NaN.

    predicted, true: [F, P, 2] pixels; thresholds: [F] pixels
    """
    with np.errstate(invalid="ignore"):
        return np.linalg.norm(np.asarray(predicted, np.float64) - true, axis=-1) <= thresholds[:, None]


def share_per_joint(correct: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the fraction of each joint's counted frames that are correct: [F, P] bool twice -> [P], NaN for none."""
    total = counted.sum(0)
    return np.divide((correct & counted).sum(0), total, out=np.full(correct.shape[1], np.nan), where=total > 0)


def mean_share(shares: np.ndarray) -> float:
    """Return the mean without NaN; NaN where nothing else is left."""
    finite = shares[np.isfinite(shares)]
    return float(finite.mean()) if finite.size else float("nan")


def badja_share(predicted: np.ndarray, true: np.ndarray, visible: np.ndarray, areas: np.ndarray) -> float:
    """Return the fraction of a video's visible joints within 0.2 * sqrt(area of the true mask) pixels of the truth.

    predicted, true: [F, P, 2] pixels; visible: [F, P] bool; areas: [F] pixels. NaN where no joint is visible.
    """
    correct = correct_points(predicted, true, BADJA_SHARE * np.sqrt(areas)) & visible
    return float(correct.sum() / visible.sum()) if visible.any() else float("nan")


def tapvid_score(
    query_frames: np.ndarray,
    true_occluded: np.ndarray,
    true_points: np.ndarray,
    predicted_occluded: np.ndarray,
    predicted_points: np.ndarray,
    mode: str,
) -> TapVidScore:
    """Score one video by the definition of Doersch et al., "TAP-Vid" (2022).

    query_frames: [Q] frame of each query
    *_occluded:   [Q, T] bool
    *_points:     [Q, T, 2] (x, y) at a resolution of 256x256 pixels
    mode:         "first" scores the frames after the query, "strided" all frames except the query

    Raises ValueError for another mode or shapes that differ.
    """
    if mode not in QUERY_MODES:
        raise ValueError(f"expected a query mode among {', '.join(QUERY_MODES)}, got {mode!r}")
    shape = true_occluded.shape
    if not (predicted_occluded.shape == shape and predicted_points.shape == true_points.shape == (*shape, 2)):
        raise ValueError(f"expected points [Q, T, 2] and occlusion [Q, T], got {true_points.shape} and {shape}")
    frame = np.arange(shape[1])[None]
    query = np.asarray(query_frames)[:, None]
    counted = frame > query if mode == "first" else frame != query

    visible, predicted_visible = ~true_occluded & counted, ~predicted_occluded & counted
    distance = np.square(np.asarray(predicted_points, np.float64) - true_points).sum(-1)
    shares, jaccards = [], []
    for threshold in TAPVID_THRESHOLDS:
        near = distance < threshold**2  # False for NaN
        shares.append(_ratio((near & visible).sum(), visible.sum()))
        true_positives = (near & visible & predicted_visible).sum()
        false_positives = (predicted_visible & ~(near & visible)).sum()
        jaccards.append(_ratio(true_positives, visible.sum() + false_positives))
    agreed = ((predicted_occluded == true_occluded) & counted).sum()
    accuracy = _ratio(agreed, counted.sum())
    return TapVidScore(float(np.mean(jaccards)), float(np.mean(shares)), accuracy, shares[0])


def _ratio(part: int | np.integer, total: int | np.integer) -> float:
    return float(part / total) if total else float("nan")


def _extents(joints: np.ndarray) -> np.ndarray:
    """Return width and height of the joints' box in each frame: [F, P, 2] -> [F, 2]."""
    points = np.asarray(joints, np.float64)
    return points.max(1) - points.min(1)
