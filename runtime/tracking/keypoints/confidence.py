"""Probability that a tracked point is right, from what is known of it on its frame.

The weights are those of a logistic regression; `python -m corrflow.bench.experiments.keypoint_confidence` fits them to
labelled video.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WEIGHTS = (1.9, 0.28, 0.77, -2.82, 0.26)
"""Weights of `Evidence.terms`."""


@dataclass(frozen=True)
class Evidence:
    """What is known of each point on a frame.

    peaks:        [P] float, peak of the copied label
    correlations: [P] float, -1..1, with the most similar labelled patch
    from_label:   [P] bool, True for points that a labelled patch placed
    displacement: [P] distance from the labelled place on the body, in longest sides of the body's box
    """

    peaks: np.ndarray
    correlations: np.ndarray
    from_label: np.ndarray
    displacement: np.ndarray

    @property
    def terms(self) -> np.ndarray:
        """Terms [P, 5] of the regression, the last is 1."""
        placed, ones = self.from_label.astype(np.float64), np.ones(len(self.peaks))
        return np.column_stack([self.peaks, self.correlations, placed, np.minimum(self.displacement, 1), ones])


def point_confidence(evidence: Evidence) -> np.ndarray:
    """Return the probability [P] that each point is within a fifth of a body length of the truth."""
    return 1 / (1 + np.exp(-evidence.terms @ np.array(WEIGHTS)))
