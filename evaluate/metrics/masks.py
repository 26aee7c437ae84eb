"""Official DAVIS measures of masks: region similarity J, contour accuracy F, and their mean, recall and decay.

Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", section 5.
The DAVIS-2017 evaluation code settles the details that the paper leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from corrflow.evaluate.metrics.continuity import ObjectAreas, areas_of_frames, frame_areas

OFFICIAL_BOUND = 0.008
"""Contour tolerance as a fraction of the image diagonal."""

RECALL_THRESHOLD = 0.5
DECAY_BINS = 4


@dataclass(frozen=True)
class Statistics:
    """Mean, recall and decay of one measure of one object; see `mean_recall_decay`."""

    mean: float
    recall: float
    decay: float


@dataclass(frozen=True)
class ObjectScore:
    """Scores of one object of one sequence.

    frames:            [S] int64, indices of the scored frames
    region_similarity: [S] float64, J of each frame, 0..1
    contour_accuracy:  [S] float64, F of each frame, 0..1
    areas:             areas on the scored frames
    region, contour:   statistics of J and of F
    """

    frames: np.ndarray
    region_similarity: np.ndarray
    contour_accuracy: np.ndarray
    areas: ObjectAreas
    region: Statistics
    contour: Statistics


def region_similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Compute J, the intersection over union of two masks: 0..1, and 1 for two empty masks.

    prediction, truth: [H, W] bool, or numbers of which nonzero is foreground. Raises ValueError for other shapes.
    """
    predicted, true = _mask_pair(prediction, truth)
    union = np.count_nonzero(predicted | true)
    return np.count_nonzero(predicted & true) / union if union else 1.0


def contour_accuracy(prediction: np.ndarray, truth: np.ndarray, bound: float = OFFICIAL_BOUND) -> float:
    """Compute F, the harmonic mean of the precision and the recall of a mask's contour: 0..1.

    A contour pixel is correct if the other contour has a pixel within the tolerance. Two empty contours score 1, and
    one empty contour scores 0.

    prediction, truth: [H, W] bool, or numbers of which nonzero is foreground
    bound:  tolerance; below 1 a fraction of the image diagonal, rounded up to pixels; from 1 on whole pixels

    Raises ValueError for other shapes, a negative bound, and a bound above 1 that is not whole.
    """
    predicted, true = _mask_pair(prediction, truth)
    radius = _tolerance_in_pixels(bound, predicted.shape)

    # Contours lie within the bounding box of both masks, with a rim because a contour lies one pixel towards the
    # origin. Dilated contours are read at contour pixels alone, so the box gives the result of the whole image.
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
    """Compute the mean, the fraction of frames above 0.5, and the mean of the first quarter minus that of the last.

    Neighbouring quarters share a frame, as in the official code.

    values: [T] float, T >= 1. Raises ValueError for anything else.
    official_uint8_bins: compute the edges of the quarters modulo 256, as the official code does. Only the decay of
        sequences of more than 256 frames changes. Their decay may be NaN, because a quarter may be empty.
    """
    per_frame = np.asarray(values, dtype=np.float64)
    if per_frame.ndim != 1 or per_frame.size == 0:
        raise ValueError(f"expected one value per frame, at least one, got an array of shape {per_frame.shape}")

    # The small offset rounds half a frame up; np.round alone rounds it to the even neighbour.
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
    areas: ObjectAreas,
    official_uint8_bins: bool = False,
) -> ObjectScore:
    """Build the score of an object from its S >= 1 scored frames. Raises ValueError for unequal lengths."""
    region, contour = (np.asarray(values, np.float64) for values in (region_similarity, contour_accuracy))
    if not len(frames) == len(region) == len(contour) == len(areas.true):
        raise ValueError(
            f"expected J, F and areas of each frame, got {len(region)}, {len(contour)} and {len(areas.true)} for"
            f" {len(frames)}"
        )
    return ObjectScore(
        frames=np.asarray(frames, np.int64),
        region_similarity=region,
        contour_accuracy=contour,
        areas=areas,
        region=Statistics(*mean_recall_decay(region, official_uint8_bins)),
        contour=Statistics(*mean_recall_decay(contour, official_uint8_bins)),
    )


def score_object(
    predictions: Iterable[np.ndarray],
    truths: Iterable[np.ndarray],
    bound: float = OFFICIAL_BOUND,
    official_uint8_bins: bool = False,
) -> ObjectScore:
    """Score one object over its scored frames, in their order.

    predictions, truths: S masks each, [H, W] bool, read one at a time

    Raises ValueError where the numbers of masks differ or are zero, and for the errors of the measures.
    """
    measured = [
        (
            region_similarity(prediction, truth),
            contour_accuracy(prediction, truth, bound),
            *frame_areas(prediction, truth),
        )
        for prediction, truth in zip(predictions, truths, strict=True)
    ]
    region, contour, *areas = np.array(measured, dtype=np.float64).reshape(-1, 5).T
    return object_score(range(len(measured)), region, contour, areas_of_frames(*areas), official_uint8_bins)


def _mask_pair(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both masks as [H, W] bool."""
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
    # np.linalg.norm as in the official code: another formula may differ in the last bit, and then in the rounding.
    return int(bound) if bound >= 1 else math.ceil(bound * np.linalg.norm(shape))


def _boundary_map(mask: np.ndarray) -> np.ndarray:
    """Return the pixels that differ from their neighbour to the east, south or south-east: [H, W] bool.

    The last row is compared to the east only, the last column to the south only. The last corner is no boundary.
    """
    boundary = np.zeros_like(mask)
    here, east, south, south_east = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1], mask[1:, 1:]
    boundary[:-1, :-1] = (here ^ east) | (here ^ south) | (here ^ south_east)
    boundary[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    boundary[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return boundary


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return the pixels within `radius` of a foreground pixel: [H, W] bool."""
    return cv2.dilate(mask.view(np.uint8), _disk(radius)).view(np.bool_)


@lru_cache(maxsize=16)
def _disk(radius: int) -> np.ndarray:
    """Return a disk-shaped structuring element: [2 * radius + 1, 2 * radius + 1] uint8."""
    offset = np.arange(-radius, radius + 1)
    return (offset[:, None] ** 2 + offset**2 <= radius**2).astype(np.uint8)
