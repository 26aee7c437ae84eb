"""Scores of a sequence's objects from a stream of masks: frame by frame, so that memory does not grow with length."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from corrflow.evaluate.datasets import VOID, MaskSequence
from corrflow.evaluate.metrics import ObjectScore, contour_accuracy, object_score, region_similarity
from corrflow.plugins.errors import CorrflowError


def score_sequence(sequence: MaskSequence, masks: Iterable[np.ndarray]) -> dict[int, ObjectScore]:
    """Score every object of a sequence on the frames that its data set counts, by id in ascending order.

    masks: T of [H, W] uint8 with the object ids of the annotation, first frame to last

    Pixels that the annotation leaves void count for no object. Raises CorrflowError for another number of masks.
    """
    scored = sequence.scored
    measured: dict[int, list[tuple[float, float]]] = {object_id: [] for object_id in sorted(scored)}
    count = 0
    for index, mask in enumerate(masks):
        count += 1
        ids = [object_id for object_id in measured if index in scored[object_id]]
        if not ids:
            continue
        truth = sequence.annotation(index)
        # Void pixels belong to no object on either side; the official metrics mask them in the same way.
        counted = np.where(truth == VOID, 0, mask)
        for object_id in ids:
            pair = counted == object_id, truth == object_id
            measured[object_id].append((region_similarity(*pair), contour_accuracy(*pair)))
    if count != len(sequence):
        raise CorrflowError(f"expected {len(sequence)} masks for sequence {sequence.name}, got {count}")
    return {
        object_id: object_score(scored[object_id], *np.array(pairs, np.float64).T)
        for object_id, pairs in measured.items()
    }
