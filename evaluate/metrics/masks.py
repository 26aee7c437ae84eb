"""The DAVIS measures, with the official values: region similarity J, contour accuracy F and their statistics.

Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", section 5,
and the DAVIS-2017 evaluation code, which settles what the paper leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

OFFICIAL_BOUND = 0.008
"""Tolerance of the contours, as a share of the image diagonal."""

RECALL_THRESHOLD = 0.5
DECAY_BINS = 4


@dataclass(frozen=True)
class Statistics:
    """What a measure says about one object: its mean over the frames, recall and decay (see `mean_recall_decay`)."""

    mean: float
    recall: float
    decay: float


@dataclass(frozen=True)
class ObjectScore:
    """One object of one sequence.

    frames:            [S] int64, indices of the scored frames
    region_similarity: [S] float64, J of each, 0..1
    contour_accuracy:  [S] float64, F of each, 0..1
    region, contour:   their statistics
    """

    frames: np.ndarray
    region_similarity: np.ndarray
    contour_accuracy: np.ndarray
    region: Statistics
    contour: Statistics


def region_similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union of two masks, 0..1; 1 where both are empty.

    prediction, truth: [H, W] bool, or numbers of which nonzero means inside. Raises ValueError for other shapes.
    """
    predicted, true = _pair_of_masks(prediction, truth)
    union = np.count_nonzero(predicted | true)
    return np.count_nonzero(predicted & true) / union if union else 1.0


def contour_accuracy(prediction: np.ndarray, truth: np.ndarray, bound: float = OFFICIAL_BOUND) -> float:
    """F: harmonic mean of the precision and the recall of a mask's contour, 0..1.

    A contour pixel is right when the other contour has a pixel within the tolerance. Two empty contours agree (1),
    an empty one and another do not (0).

    prediction, truth: [H, W] bool, or numbers of which nonzero means inside
    bound: the tolerance: below 1 a share of the image diagonal, rounded up to pixels; from 1 on whole pixels

    Raises ValueError for other shapes and for a bound that is negative or not whole from 1 on.
    """
    predicted, true = _pair_of_masks(prediction, truth)
    radius = _tolerance_in_pixels(bound, predicted.shape)

    # Outside the box around both masks there is no contour, and only contour pixels are ever looked up, so that
    # the box (with a rim for the contour, which lies one pixel towards the origin) gives the whole image's result.
    x, y, width, height = cv2.boundingRect((predicted | true).view(np.uint8))
    box = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
    predicted_contour = _boundary_map(predicted[box])
    true_contour = _boundary_map(true[box])

    predicted_length = np.count_nonzero(predicted_contour)
    true_length = np.count_nonzero(true_contour)
    if predicted_length == 0 or true_length == 0:
        return float(predicted_length == true_length)

    precision = np.count_nonzero(predicted_contour & _dilate(true_contour, radius)) / predicted_length
    recall = np.count_nonzero(true_contour & _dilate(predicted_contour, radius)) / true_length
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def mean_recall_decay(
    values: np.ndarray | Sequence[float], official_uint8_bins: bool = False
) -> tuple[float, float, float]:
    """Mean, share of frames above 0.5, and how much the mean of the first quarter exceeds that of the last.

    The quarters share their edge frames, as in the official code.

    values: [T] one per frame, T >= 1. Raises ValueError for anything else.
    official_uint8_bins: keep the edges of the quarters modulo 256, which is what the official code does. It changes
        the decay of sequences of more than 256 frames only, which may then be NaN (an empty quarter).
    """
    per_frame = np.asarray(values, dtype=np.float64)
    if per_frame.ndim != 1 or per_frame.size == 0:
        raise ValueError(f"expected one value per frame, at least one, got an array of shape {per_frame.shape}")

    # The small offset settles that half a frame rounds up, not to the even neighbour as np.round does.
    edges = np.round(np.linspace(1, per_frame.size, DECAY_BINS + 1) + 1e-10).astype(np.int64) - 1
    if official_uint8_bins:
        edges %= 256
    first = per_frame[edges[0] : edges[1] + 1]
    last = per_frame[edges[-2] : edges[-1] + 1]
    decay = float(first.mean() - last.mean()) if first.size and last.size else math.nan
    return float(per_frame.mean()), float(np.mean(per_frame > RECALL_THRESHOLD)), decay


def object_score(
    frames: Sequence[int],
    region_similarity: Sequence[float] | np.ndarray,
    contour_accuracy: Sequence[float] | np.ndarray,
    official_uint8_bins: bool = False,
) -> ObjectScore:
    """The score of an object whose scored frames, S >= 1, have these J and F. Raises ValueError for unequal lengths."""
    region, contour = (np.asarray(values, np.float64) for values in (region_similarity, contour_accuracy))
    if not len(frames) == len(region) == len(contour):
        raise ValueError(f"expected a J and an F per frame, got {len(region)} and {len(contour)} for {len(frames)}")
    return ObjectScore(
        frames=np.asarray(frames, np.int64),
        region_similarity=region,
        contour_accuracy=contour,
        region=Statistics(*mean_recall_decay(region, official_uint8_bins)),
        contour=Statistics(*mean_recall_decay(contour, official_uint8_bins)),
    )


def score_object(
    predictions: Iterable[np.ndarray],
    truths: Iterable[np.ndarray],
    bound: float = OFFICIAL_BOUND,
    official_uint8_bins: bool = False,
) -> ObjectScore:
    """Score one object over the frames that count, in their order.

    predictions, truths: S masks each, [H, W] bool, read one at a time

    Raises ValueError when the numbers of masks differ or are zero, and as the measures do.
    """
    measured = [
        (region_similarity(prediction, truth), contour_accuracy(prediction, truth, bound))
        for prediction, truth in zip(predictions, truths, strict=True)
    ]
    region, contour = np.array(measured, dtype=np.float64).reshape(-1, 2).T
    return object_score(range(len(measured)), region, contour, official_uint8_bins)


def _pair_of_masks(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks as [H, W] bool."""
    predicted, true = np.asarray(prediction), np.asarray(truth)
    if predicted.shape != true.shape or predicted.ndim != 2 or predicted.size == 0:
        raise ValueError(f"expected two masks [H, W] of one size, got shapes {predicted.shape} and {true.shape}")
    return (
        predicted if predicted.dtype == np.bool_ else predicted != 0,
        true if true.dtype == np.bool_ else true != 0,
    )


def _tolerance_in_pixels(bound: float, shape: tuple[int, ...]) -> int:
    if bound < 0 or (bound >= 1 and bound != math.floor(bound)):
        raise ValueError(f"expected a bound in 0..1 (share of the diagonal) or whole pixels, got {bound}")
    # np.linalg.norm, as the official code: another formula may differ in the last bit, and so in the rounding up.
    return int(bound) if bound >= 1 else math.ceil(bound * np.linalg.norm(shape))


def _boundary_map(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their neighbour to the east, south or south-east: [H, W] bool.

    The last row looks east only, the last column south only and the last corner is never a boundary.
    """
    boundary = np.zeros_like(mask)
    here, east, south, south_east = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1], mask[1:, 1:]
    boundary[:-1, :-1] = (here ^ east) | (here ^ south) | (here ^ south_east)
    boundary[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    boundary[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return boundary


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel within `radius` of a set one: [H, W] bool."""
    return cv2.dilate(mask.view(np.uint8), _disk(radius)).view(np.bool_)


@lru_cache(maxsize=16)
def _disk(radius: int) -> np.ndarray:
    """The offsets of at most `radius` pixels: [2 * radius + 1, 2 * radius + 1] uint8."""
    offset = np.arange(-radius, radius + 1)
    return (offset[:, None] ** 2 + offset**2 <= radius**2).astype(np.uint8)
