"""Continuity of an object's masks: area at the end, loss of a visible object, identity switches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

VISIBLE_SHARE = 0.0005
"""Least share of the image that a visible object covers: 14x14 pixels of 854x480. Less may be a rim of the object."""

MAX_LOSS = 5
"""Frames for which a visible object may be without a mask before the object counts as lost."""

AREA_RATIO_LIMITS = (0.1, 10.0)
"""Limits of one object's ratio in a geometric mean, so that one lost object does not make the mean 0."""


@dataclass(frozen=True)
class ObjectAreas:
    """Areas of one object on its S scored frames.

    predicted: [S] int64, pixels of the predicted mask
    true:      [S] int64, pixels of the true mask
    visible:   [S] bool, the true mask covers at least `VISIBLE_SHARE` of the image
    taken_by:  [S] int64, id of the object whose predicted mask is on this object; 0 for none; see `swapped_ids`
    """

    predicted: np.ndarray
    true: np.ndarray
    visible: np.ndarray
    taken_by: np.ndarray


def frame_areas(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int, bool]:
    """Return the predicted area, the true area, and True for a visible object, from its masks [H, W] bool."""
    true = int(np.count_nonzero(truth))
    return int(np.count_nonzero(prediction)), true, true > 0 and true >= VISIBLE_SHARE * truth.size


def areas_of_frames(
    predicted: np.ndarray, true: np.ndarray, visible: np.ndarray, taken_by: np.ndarray | None = None
) -> ObjectAreas:
    """Build the areas of an object from numbers [S] of any dtype; None for an object without others."""
    taken = np.zeros_like(true) if taken_by is None else taken_by
    return ObjectAreas(predicted.astype(np.int64), true.astype(np.int64), visible.astype(bool), taken.astype(np.int64))


def swapped_ids(prediction: np.ndarray, truth: np.ndarray, ids: Sequence[int]) -> dict[int, int]:
    """Return, by object id, the id of the other object whose predicted mask is on the object: 0 for none.

    Mask a is on object b if it covers at least half of b, and more pixels of b than of object a.

    prediction, truth: [H, W] uint8 of object ids
    """
    both = (prediction > 0) & (truth > 0)
    pairs = prediction[both].astype(np.uint16) * 256 + truth[both]
    overlap = np.bincount(pairs, minlength=256 * 256).reshape(256, 256)
    areas = np.bincount(truth.ravel(), minlength=256)
    taken = {}
    for true in ids:
        takers = [
            (int(overlap[other, true]), other)
            for other in ids
            if other != true and 2 * overlap[other, true] >= areas[true] > 0
            if overlap[other, true] > overlap[other, other]
        ]
        taken[true] = max(takers, default=(0, 0))[1]
    return taken


def area_at_end(areas: ObjectAreas) -> float | None:
    """Compute the predicted area over the true area, in the last quarter of the scored frames.

    The ratio is one of sums, so that frames with little of the object count little. Return None where the object is in
    none of these frames.
    """
    last = -(-len(areas.true) // 4)
    true = int(areas.true[-last:].sum())
    return int(areas.predicted[-last:].sum()) / true if true else None


def mean_area_at_end(objects: Iterable[ObjectAreas]) -> float | None:
    """Compute the geometric mean of `area_at_end` over objects, each within `AREA_RATIO_LIMITS`; None for no ratio.

    In an arithmetic mean, a mask of twice the area would hide one that vanished.
    """
    low, high = AREA_RATIO_LIMITS
    ratios = [ratio for areas in objects if (ratio := area_at_end(areas)) is not None]
    return math.exp(sum(math.log(min(max(ratio, low), high)) for ratio in ratios) / len(ratios)) if ratios else None


def longest_loss(frames: np.ndarray, areas: ObjectAreas) -> int:
    """Return the length in frames of the longest run in which the object is visible and its mask empty.

    frames: [S] indices of the scored frames. A run is counted from its first scored frame to its last.
    """
    longest, begin = 0, None
    for frame, lost in zip(frames.tolist(), (areas.visible & (areas.predicted == 0)).tolist(), strict=True):
        begin = (frame if begin is None else begin) if lost else None
        if begin is not None:
            longest = max(longest, frame - begin + 1)
    return longest


def identity_switches(areas: ObjectAreas) -> int:
    """Count the frames on which another object's mask arrives on the object, also from a third object."""
    before = np.concatenate([[0], areas.taken_by[:-1]])
    return int(np.count_nonzero((areas.taken_by != 0) & (areas.taken_by != before)))
