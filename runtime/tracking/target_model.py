"""Target model: decide doubtful cells of an object by all that is known of it.

A copied label rests on a few matches within a window. A part of the object that was never seen has no good match, so
its label is doubtful: neither 0 nor 1. Copied from frame to frame, it soon becomes background. The target model is a
regression from a cell's features and place to object or background. It is fitted to cells of the annotated frame and
of recent frames, and so knows the object as a whole. Trackers with trained networks have such models as well (Robinson
et al., *Learning Fast and Robust Target Models for Video Object Segmentation*, CVPR 2020).

The regression is kernel ridge regression with a Gaussian kernel. Each frame's cells of the object have the same weight
together as those of the background, and certain cells weigh more than doubtful ones. The place is relative to the
object's centre, in units of its size. Without it, background that looks like the object joins; alone, it knows nothing.

Only doubtful cells change, and at most by 0.3: a regression that is wrong cannot move what the matches agree on. The
doubtful cells keep their sum. Most lie on the contour. There a regression that leans to one side, however little, moves
the contour on every frame, and soon the object is twice as large.
Objects have models of their own, so none influences another.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from corrflow.runtime.tracking.blas import single_threaded
from corrflow.runtime.tracking.geometry import thinned, unit_features

ANNOTATED_SAMPLES, RECENT_SAMPLES = 256, 64
"""Cells of the annotated frame and of a recent frame that the model is fitted to."""
RECENT_FRAMES = 4
"""Recent frames that it is fitted to."""
MARGIN = 8
"""Cells around the object that count as its background."""
PLACE_WEIGHT = 0.7
"""Scale of the place, whose unit is the object's size, beside features of unit length."""
INVERSE_WIDTH = 1.25
"""Inverse of the kernel's standard deviation."""
RIDGE = 5e-5
"""Penalty of the regression, beside samples whose weights have the sum 2."""
STEEPNESS = 3.0
"""Slope of the logistic function from the regression, -1..1, to a share."""
MAX_WEIGHT = 0.3
"""Share of the model in the label of a cell with the label 0.5."""
MIN_DOUBT = 0.02
"""Doubt, 4 label (1 - label), from which a cell is decided anew."""
FARTHEST_SHIFT, BISECTIONS = 8.0, 16
"""Distance of the first shifts from the scores, and steps of the search for the shift that keeps the sum."""
MAX_DOUBTFUL = 4096
"""Cells that are decided anew on one frame, the most doubtful ones, so that a blurred mask costs no more."""
MIN_CELLS = 4
"""Cells of the object, and of its background, below which a frame tells nothing."""


@dataclass(frozen=True)
class _Samples:
    """Cells of one frame: inputs [n, C + 2], targets [n] of -1 and 1, weights [n] of sum 1; float32."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class TargetModel:
    """Model of one object."""

    def __init__(self, features: np.ndarray, soft_mask: np.ndarray) -> None:
        """Fit to the annotated frame: features [C, h, w] and the object's soft mask [h, w], 0..1, both float32."""
        annotated = _samples(features, soft_mask, ANNOTATED_SAMPLES)
        self._frames = [] if annotated is None else [annotated]
        self._kernel = (
            np.zeros((0, 0), np.float32) if annotated is None else _kernel(annotated.inputs, annotated.inputs)
        )
        self._coefficients: np.ndarray | None = None

    def refine(self, features: np.ndarray, soft_mask: np.ndarray) -> np.ndarray:
        """Return the propagated soft mask [h, w] of the next frame with its doubtful cells decided anew."""
        label = soft_mask.ravel()
        doubt = 4 * label * (1 - label)
        cells = np.flatnonzero(doubt > MIN_DOUBT)
        if not self._frames or not len(cells):
            return soft_mask
        if len(cells) > MAX_DOUBTFUL:
            cells = cells[np.argsort(-doubt[cells], kind="stable")[:MAX_DOUBTFUL]]
        inputs = _inputs(features, soft_mask, cells)
        with single_threaded():
            score = _kernel(inputs, np.concatenate([one.inputs for one in self._frames])) @ self._fitted()
        share = _share_of_same_sum(STEEPNESS * score, label[cells], doubt[cells])
        refined = label.copy()
        refined[cells] += np.float32(MAX_WEIGHT) * doubt[cells] * (share - label[cells])
        return refined.reshape(soft_mask.shape)

    def observe(self, features: np.ndarray, soft_mask: np.ndarray) -> None:
        """Fit to the newest frame as well, in which the object is visible, and no longer to the oldest recent one."""
        newest = _samples(features, soft_mask, RECENT_SAMPLES) if self._frames else None
        if newest is None:
            return
        if len(self._frames) > RECENT_FRAMES:
            first = len(self._frames[0].targets)
            kept = np.r_[:first, first + len(self._frames[1].targets) : len(self._kernel)]
            self._kernel = self._kernel[np.ix_(kept, kept)]
            del self._frames[1]
        with single_threaded():
            across = _kernel(newest.inputs, np.concatenate([one.inputs for one in self._frames]))
            self._kernel = np.block([[self._kernel, across.T], [across, _kernel(newest.inputs, newest.inputs)]])
        self._frames.append(newest)
        self._coefficients = None

    def _fitted(self) -> np.ndarray:
        """Return the coefficients [n] of the samples; the annotated frame weighs as much as all recent ones."""
        if self._coefficients is None:
            recent = max(1, len(self._frames) - 1)
            weights = [one.weights / (recent if index else 1) for index, one in enumerate(self._frames)]
            penalised = self._kernel + np.diag(RIDGE / np.concatenate(weights))
            self._coefficients = np.linalg.solve(penalised, np.concatenate([one.targets for one in self._frames]))
        return self._coefficients


def _share_of_same_sum(score: np.ndarray, label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the logistic function of scores [n], shifted alike so that its weighted sum is that of the labels [n]."""
    low, high = float(score.min()) - FARTHEST_SHIFT, float(score.max()) + FARTHEST_SHIFT
    wanted = float(weight @ label)
    share = label
    for _ in range(BISECTIONS):
        shift = (low + high) / 2
        share = 1 / (1 + np.exp(np.float32(shift) - score))
        low, high = (shift, high) if float(weight @ share) > wanted else (low, shift)
    return share


def _samples(features: np.ndarray, soft_mask: np.ndarray, count: int) -> _Samples | None:
    """Sample the object and its background, half each; None where one of them has too few cells."""
    near = cv2.dilate((soft_mask > 0.1).astype(np.uint8), np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)) > 0
    own = soft_mask > 0.5
    sides = [np.flatnonzero(own), np.flatnonzero(near & ~own)]
    if min(map(len, sides)) < MIN_CELLS:
        return None
    sides = [thinned(side, count // 2) for side in sides]
    certainty = [np.abs(2 * soft_mask.flat[side] - 1) + np.float32(1e-3) for side in sides]
    return _Samples(
        _inputs(features, soft_mask, np.concatenate(sides)),
        np.repeat(np.array([1, -1], np.float32), [len(side) for side in sides]),
        np.concatenate([one / (2 * one.sum()) for one in certainty]),
    )


def _inputs(features: np.ndarray, soft_mask: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return features of unit length and the place of cells [n], [n, C + 2] float32."""
    height, width = soft_mask.shape
    area = max(float(soft_mask.sum()), 1e-6)
    centre_y = float(soft_mask.sum(1) @ np.arange(height)) / area
    centre_x = float(soft_mask.sum(0) @ np.arange(width)) / area
    scale = PLACE_WEIGHT / max(np.sqrt(area), MIN_CELLS)
    inputs = np.empty((len(cells), len(features) + 2), np.float32)
    inputs[:, :-2] = unit_features(features, cells).T
    inputs[:, -2] = (cells // width - centre_y) * scale
    inputs[:, -1] = (cells % width - centre_x) * scale
    return inputs


def _kernel(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the Gaussian kernel of inputs [n, d] and [m, d], [n, m] float32."""
    distances = left @ right.T
    distances *= -2
    distances += (left**2).sum(1)[:, None]
    distances += (right**2).sum(1)
    np.maximum(distances, 0, out=distances)
    distances *= np.float32(-0.5 * INVERSE_WIDTH**2)
    return np.exp(distances, out=distances)
