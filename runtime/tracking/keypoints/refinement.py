"""From where a point is to exactly where: copied points are moved to where the pictures match.

A labelled frame says where a point is without drift, wherever the point still looks the same. Elsewhere the frame
before says how it moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corrflow.runtime.tracking.keypoints.patch_matching import (
    FINE_RADIUS,
    correlate_patches,
    match_patches,
    match_points,
    sample_patches,
    sample_turned_patches,
)

MAX_CORRECTION = 8.0
"""Pixels of the crop by which pictures may move a copied point."""
MAX_FINE_CORRECTION = 2.0
"""Pixels of the video by which the second stage may move a point."""
MIN_CORRELATION = 0.8
"""Correlation with a labelled patch from which that patch says where the point is."""


@dataclass(frozen=True)
class LabelledPicture:
    """What the pixels of a labelled frame look like.

    points:  [P, 2] float64 in pixels of the crop, NaN for those without a label
    picture: [H, W] uint8, the crop in grey
    patches: [P, side, side] uint8 of the crop
    fine:    [P, side, side] uint8 of the video itself, turned as in the crop
    """

    points: np.ndarray
    picture: np.ndarray
    patches: np.ndarray
    fine: np.ndarray

    @property
    def has_label(self) -> np.ndarray:
        """Points [P] bool that have a label."""
        return np.all(np.isfinite(self.points), axis=-1)


@dataclass(frozen=True)
class Refined:
    """Refined points.

    points:     [P, 2] float64
    label:      [P] index of the labelled picture that placed each point, -1 for none
    from_last:  [P] bool, True for points that the frame before placed
    """

    points: np.ndarray
    label: np.ndarray
    from_last: np.ndarray


def refine_in_crop(
    picture: np.ndarray,
    copied: np.ndarray,
    last: tuple[np.ndarray, np.ndarray],
    labelled: Sequence[LabelledPicture],
) -> Refined:
    """Refine copied points [P, 2] in the crop.

    picture:  [H, W] uint8, the crop of this frame
    last:     crop of the frame before in the same place, and its points [P, 2]
    labelled: labelled pictures to compare with
    """
    matches = match_points(last[0], picture, last[1], copied)
    from_last = matches.consistent & _is_near(matches.points, copied, MAX_CORRECTION)
    points = np.where(from_last[:, None], matches.points, copied)
    label, best = np.full(len(copied), -1), np.full(len(copied), MIN_CORRELATION)
    for index, one in enumerate(labelled):
        own = np.where(one.has_label[:, None], one.points, copied)
        matches = match_points(one.picture, picture, own, copied)
        correlations = _correlations(sample_patches(picture, matches.points), one)
        better = matches.consistent & _is_near(matches.points, copied, MAX_CORRECTION) & (correlations > best)
        best = np.where(better, correlations, best)
        points = np.where(better[:, None], matches.points, points)
        label[better] = index
    return Refined(points, label, from_last & (label < 0))


def refine_in_video(
    picture: np.ndarray,
    refined: Refined,
    last: tuple[np.ndarray, np.ndarray],
    labelled: Sequence[LabelledPicture],
    axes: np.ndarray,
) -> np.ndarray:
    """Refine points again at the resolution of the video: [P, 2] float64.

    picture: [H, W] uint8, the frame in grey
    refined: with points in pixels of the frame
    last:    the frame before, and its points [P, 2]
    axes:    [2, 2], the crop's axes in the frame
    """
    points = refined.points
    now = sample_turned_patches(picture, points, axes, FINE_RADIUS)
    before = sample_turned_patches(*last, axes, FINE_RADIUS)
    for index, one in enumerate(labelled):
        before = np.where((refined.label == index)[:, None, None], one.fine, before)
    matches = match_patches(before, now)
    moved = matches.points @ axes.T
    sure = matches.consistent & ((refined.label >= 0) | refined.from_last)
    sure &= np.linalg.norm(moved, axis=1) <= MAX_FINE_CORRECTION
    return np.where(sure[:, None], points + moved, points)


def best_correlation(picture: np.ndarray, points: np.ndarray, labelled: Sequence[LabelledPicture]) -> np.ndarray:
    """Return the correlation [P] of each point's patch in the crop with the most similar of its labelled patches."""
    patches = sample_patches(picture, points)
    return np.max([_correlations(patches, one) for one in labelled], 0)


def _correlations(patches: np.ndarray, labelled: LabelledPicture) -> np.ndarray:
    """Return the correlation [P] of patches with the labelled ones, -1 where there is none."""
    return np.where(labelled.has_label, correlate_patches(patches, labelled.patches), -1)


def _is_near(points: np.ndarray, others: np.ndarray, distance: float) -> np.ndarray:
    return np.linalg.norm(points - others, axis=1) < distance
