"""Scores of a sequence's objects from a stream of masks, in memory that does not grow with the sequence."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from corrflow.errors import CorrflowError
from corrflow.evaluate.datasets.masks import VOID, MaskSequence
from corrflow.evaluate.metrics.continuity import areas_of_frames, frame_areas, swapped_ids
from corrflow.evaluate.metrics.masks import ObjectScore, contour_accuracy, object_score, region_similarity


class SequenceScorer:
    """Scorer of one sequence: add the masks frame by frame, then call `scores`.

    Each object is scored on the frames that the rule of its data set names. Void pixels count for no object.
    """

    def __init__(self, sequence: MaskSequence) -> None:
        self._sequence, self._scored = sequence, sequence.scored
        self._measured: dict[int, list[tuple[float, ...]]] = {object_id: [] for object_id in sorted(self._scored)}
        self._frames = 0

    def add(self, mask: np.ndarray) -> None:
        """Score the next frame's mask: [H, W] uint8 with the object ids of the annotation."""
        index = self._frames
        self._frames += 1
        ids = [object_id for object_id in self._measured if index in self._scored[object_id]]
        if not ids:
            return
        truth = self._sequence.annotation(index)
        # Void pixels belong to no object in either mask; the official metrics clear them in the same way.
        prediction = np.where(truth == VOID, 0, mask)
        taken = swapped_ids(prediction, truth, ids) if len(ids) > 1 else dict.fromkeys(ids, 0)
        for object_id in ids:
            pair = prediction == object_id, truth == object_id
            self._measured[object_id].append(
                (region_similarity(*pair), contour_accuracy(*pair), *frame_areas(*pair), taken[object_id])
            )

    def scores(self) -> dict[int, ObjectScore]:
        """Return the scores by ascending object id. Raises CorrflowError for too few or too many masks."""
        if self._frames != len(self._sequence):
            raise CorrflowError(
                f"expected {len(self._sequence)} masks for sequence {self._sequence.name}, got {self._frames}"
            )
        scores = {}
        for object_id, measured in self._measured.items():
            region, contour, *areas = np.array(measured, np.float64).T
            scores[object_id] = object_score(self._scored[object_id], region, contour, areas_of_frames(*areas))
        return scores


def score_sequence(sequence: MaskSequence, masks: Iterable[np.ndarray]) -> dict[int, ObjectScore]:
    """Score a sequence from its T masks [H, W] uint8 in order; see `SequenceScorer`."""
    scorer = SequenceScorer(sequence)
    for mask in masks:
        scorer.add(mask)
    return scorer.scores()
