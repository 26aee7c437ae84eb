"""Scores of a sequence's objects from a stream of masks: frame by frame, so that memory does not grow with length."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from corrflow.errors import CorrflowError
from corrflow.evaluate.datasets.masks import VOID, MaskSequence
from corrflow.evaluate.metrics.masks import ObjectScore, contour_accuracy, object_score, region_similarity


class SequenceScorer:
    """Takes the masks of a sequence one after another and scores every object on the frames its data set counts.

    Pixels that the annotation leaves void count for no object.
    """

    def __init__(self, sequence: MaskSequence) -> None:
        self._sequence, self._scored = sequence, sequence.scored
        self._measured: dict[int, list[tuple[float, float]]] = {object_id: [] for object_id in sorted(self._scored)}
        self._seen = 0

    def add(self, mask: np.ndarray) -> None:
        """The next frame's mask, [H, W] uint8 with the object ids of the annotation."""
        index = self._seen
        self._seen += 1
        ids = [object_id for object_id in self._measured if index in self._scored[object_id]]
        if not ids:
            return
        truth = self._sequence.annotation(index)
        # Void pixels belong to no object on either side; the official metrics mask them in the same way.
        counted = np.where(truth == VOID, 0, mask)
        for object_id in ids:
            pair = counted == object_id, truth == object_id
            self._measured[object_id].append((region_similarity(*pair), contour_accuracy(*pair)))

    def scores(self) -> dict[int, ObjectScore]:
        """By object id, ascending. Raises CorrflowError where masks are missing or too many."""
        if self._seen != len(self._sequence):
            raise CorrflowError(
                f"expected {len(self._sequence)} masks for sequence {self._sequence.name}, got {self._seen}"
            )
        return {
            object_id: object_score(self._scored[object_id], *np.array(pairs, np.float64).T)
            for object_id, pairs in self._measured.items()
        }


def score_sequence(sequence: MaskSequence, masks: Iterable[np.ndarray]) -> dict[int, ObjectScore]:
    """Score a sequence from T masks [H, W] uint8, first frame to last; see `SequenceScorer`."""
    scorer = SequenceScorer(sequence)
    for mask in masks:
        scorer.add(mask)
    return scorer.scores()
