"""Bootstrap intervals of the difference of two methods on the same sequences.

Recordings are drawn with replacement, together with all their variants, such as strides and directions. The draws are
made within groups of recordings that have the same data sets, so that every resample has the size of each data set.
An interval tells how far the difference depends on the recordings. The interval assumes that the recordings are a
sample of the video that matters, and lacks what the choice of settings adds.

Percentiles of a bootstrap are too narrow for few recordings. They are widened as for Student's t: Hesterberg, "What
Teachers Should Know About the Bootstrap" (2015), expanded percentile interval.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
"""Confidence of an interval."""

LEAST_RECORDINGS = 5
"""Smallest number of recordings from which a verdict is given."""

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class PairedScores:
    """Scores of two methods on the N sequences of one data set.

    recordings:    [N] index of each sequence's recording
    objects:       [N] number of objects
    before, after: [N] sum of the objects' J&F, 0..1 each
    """

    recordings: np.ndarray
    objects: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def restricted(self, kept: Sequence[bool] | np.ndarray) -> PairedScores:
        """Return a part of the sequences; kept: [N] bool."""
        chosen = np.asarray(kept, bool)
        return PairedScores(self.recordings[chosen], self.objects[chosen], self.before[chosen], self.after[chosen])


@dataclass(frozen=True)
class Comparison:
    """Scores of two methods, 0..1, and the interval of their difference."""

    sequences: int
    recordings: int
    before: float
    after: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """Return "better" or "worse" where the interval leaves out zero, else "noise"; "too few" for no verdict."""
        if self.recordings < LEAST_RECORDINGS:
            return "too few"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "noise"


def draw_recordings(groups: Sequence[Hashable], resamples: int, seed: int) -> np.ndarray:
    """Draw recordings with replacement: [resamples, R] int64, how often each resample has each recording.

    groups: [R] group of each recording; draws stay within a group
    """
    generator = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(groups)), np.int64)
    for group in dict.fromkeys(groups):
        members = np.flatnonzero([other == group for other in groups])
        weights[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
    return weights


def mean_over_objects(weights: np.ndarray, sums: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Compute the mean over objects: [S], NaN for a resample without sequences.

    weights: [S, N], how often each resample has each sequence
    """
    count = (weights * objects).sum(1)
    return np.divide((weights * sums).sum(1), count, out=np.full(len(weights), np.nan), where=count > 0)


def worst_third_over_objects(weights: np.ndarray, sums: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Compute the mean over the objects of the third of the sequences with the lowest J&F: [S]; see `worst_third`."""
    order = np.argsort(sums / objects, kind="stable")
    weights, sums, objects = weights[:, order], sums[order], objects[order]
    kept = np.maximum(1, np.round(weights.sum(1) / 3))[:, None]
    before = np.cumsum(weights, axis=1) - weights
    return mean_over_objects(np.clip(kept - before, 0, weights), sums, objects)


def compare(sets: Sequence[PairedScores], draws: np.ndarray, statistic: Statistic = mean_over_objects) -> Comparison:
    """Compare two methods by a statistic of each data set; several data sets count the same.

    draws: [resamples, R] of `draw_recordings`
    """
    sets = [scores for scores in sets if len(scores.objects)]
    once = np.ones((1, draws.shape[1]), np.int64)

    def value(scores: PairedScores, weights: np.ndarray, sums: np.ndarray) -> np.ndarray:
        return statistic(weights[:, scores.recordings], sums, scores.objects)

    before = float(np.mean([value(scores, once, scores.before)[0] for scores in sets]))
    after = float(np.mean([value(scores, once, scores.after)[0] for scores in sets]))
    differences = np.stack([value(item, draws, item.after) - value(item, draws, item.before) for item in sets])
    # A resample may lack every sequence of a kind.
    known = ~np.isnan(differences)
    complete = known.any(0)
    means = np.where(known, differences, 0)[:, complete].sum(0) / known[:, complete].sum(0)
    recordings = len(set(np.concatenate([scores.recordings for scores in sets]).tolist()))
    tail = tail_share(recordings)
    low, high = np.percentile(means, [100 * tail, 100 * (1 - tail)])
    sequences = sum(len(scores.objects) for scores in sets)
    return Comparison(sequences, recordings, before, after, float(low), float(high))


def tail_share(recordings: int) -> float:
    """Return the share of the resamples below an interval of `LEVEL`, which falls with the number of recordings."""
    z = -NormalDist().inv_cdf((1 - LEVEL) / 2)
    freedom = max(recordings, 2) - 1
    # Cornish-Fisher expansion of Student's quantile, within 1 percent from 4 degrees of freedom on.
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    student += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return NormalDist().cdf(-student * ((freedom + 1) / freedom) ** 0.5)
