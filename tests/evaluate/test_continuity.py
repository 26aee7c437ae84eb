"""Figures beside J and F: area at the end, losses of visible objects, identity switches, and their way into reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.davis import add_davis_sequence
from numpy.typing import ArrayLike

from corrflow.evaluate.data_sets import davis_data
from corrflow.evaluate.datasets.masks import VOID
from corrflow.evaluate.masks import Method, evaluate_masks
from corrflow.evaluate.methods.methods import Identity
from corrflow.evaluate.metrics.continuity import (
    ObjectAreas,
    area_at_end,
    areas_of_frames,
    identity_switches,
    longest_loss,
    mean_area_at_end,
    swapped_ids,
)
from corrflow.evaluate.metrics.scorer import score_sequence
from corrflow.evaluate.reports.html import html_page
from corrflow.evaluate.reports.report import SequenceScore, as_json, summary


def areas(
    predicted: ArrayLike, true: ArrayLike, visible: ArrayLike | None = None, taken_by: ArrayLike | None = None
) -> ObjectAreas:
    true = np.asarray(true)
    seen = true > 0 if visible is None else np.asarray(visible)
    return areas_of_frames(np.asarray(predicted), true, seen, None if taken_by is None else np.asarray(taken_by))


def test_the_area_is_that_of_the_last_quarter() -> None:
    assert area_at_end(areas([1] * 7 + [10], [10] * 8)) == 11 / 20
    assert area_at_end(areas([7], [10])) == 0.7
    assert area_at_end(areas([5, 90, 5], [10, 10, 0])) is None
    assert area_at_end(areas([5, 5, 0, 0], [5, 5, 5, 5])) == 0.0


def test_the_mean_area_is_geometric_and_one_lost_object_does_not_make_it_zero() -> None:
    twice, half, lost, hidden = areas([20], [10]), areas([5], [10]), areas([0], [10]), areas([3], [0])
    assert mean_area_at_end([twice, half, hidden]) == pytest.approx(1)
    assert mean_area_at_end([lost]) == pytest.approx(0.1)
    assert mean_area_at_end([hidden]) is None


def test_losses_are_runs_of_frames_in_which_a_visible_object_has_no_mask() -> None:
    frames = np.arange(1, 9)
    assert longest_loss(frames, areas([9] * 8, [9] * 8)) == 0
    assert longest_loss(frames, areas([0, 0, 9, 0, 0, 0, 9, 0], [9] * 8)) == 3
    # A hidden object has no mask rightly, and ends the run; a rim of an object is hidden too.
    assert longest_loss(frames, areas([0] * 8, [9, 9, 9, 0, 9, 9, 9, 9])) == 4
    assert longest_loss(frames, areas([0] * 8, [9] * 8, [True] * 3 + [False] + [True] * 4)) == 4
    # Every fifth frame has a true mask.
    assert longest_loss(np.array([5, 10, 15]), areas([0, 0, 9], [9] * 3)) == 6


def test_identity_switches_are_arrivals_of_another_mask() -> None:
    assert identity_switches(areas([9] * 8, [9] * 8, taken_by=[0, 2, 2, 0, 2, 3, 3, 0])) == 3
    assert identity_switches(areas([9] * 3, [9] * 3, taken_by=[2, 2, 2])) == 1


def test_a_mask_is_on_the_object_that_it_covers_more_than_its_own() -> None:
    truth = np.repeat([0, 1, 2, 3], 10)[None].astype(np.uint8)
    assert swapped_ids(truth, truth, [1, 2, 3]) == {1: 0, 2: 0, 3: 0}
    swapped = np.repeat([0, 2, 1, 3], 10)[None].astype(np.uint8)
    assert swapped_ids(swapped, truth, [1, 2, 3]) == {1: 2, 2: 1, 3: 0}
    # Object 1 flows over half of object 2, but has more of its own pixels.
    leaked = np.repeat([0, 1, 1, 2, 3], [10, 10, 5, 5, 10])[None].astype(np.uint8)
    assert swapped_ids(leaked, truth, [1, 2, 3]) == {1: 0, 2: 0, 3: 0}
    # Four of ten pixels are less than half.
    few = np.repeat([0, 1, 2, 3], [20, 4, 6, 10])[None].astype(np.uint8)
    assert swapped_ids(few, truth, [1, 2, 3]) == {1: 0, 2: 0, 3: 0}
    # Object 1 is out of view, and its mask is on object 2.
    gone = np.where(truth == 1, 0, truth).astype(np.uint8)
    assert swapped_ids(swapped, gone, [1, 2, 3]) == {1: 0, 2: 1, 3: 0}


def blocks(first: int, second: int, side: int = 8) -> np.ndarray:
    """Return a mask with the id `first` on the left and `second` on the right; 0 for none."""
    mask = np.zeros((24, 40), np.uint8)
    mask[4 : 4 + side, 4 : 4 + side], mask[4 : 4 + side, 24 : 24 + side] = first, second
    return mask


def test_sequences_are_scored_without_void_and_without_the_last_frame(tmp_path: Path) -> None:
    truths = [blocks(1, 2)] * 9
    truths[4] = np.where(blocks(0, 1) > 0, VOID, truths[4]).astype(np.uint8)
    add_davis_sequence(tmp_path, "pair", truths)
    (sequence,) = davis_data(tmp_path, "val").sequences
    lost, swapped = blocks(1, 0), blocks(2, 1)
    score = score_sequence(sequence, [truths[0], *[lost] * 7, lost])
    assert score[2].areas.predicted.tolist() == [0] * 7 and score[2].areas.true.tolist() == [64] * 3 + [0] + [64] * 3
    assert longest_loss(score[2].frames, score[2].areas) == 3
    score = score_sequence(sequence, [truths[0], *[swapped] * 8])
    assert score[1].areas.taken_by.tolist() == [2] * 7
    assert score[2].areas.taken_by.tolist() == [1, 1, 1, 0, 1, 1, 1]


def test_reports_have_the_figures_of_sets_sequences_and_objects(tmp_path: Path) -> None:
    add_davis_sequence(tmp_path, "shrinks", [blocks(1, 2)] + [blocks(1, 2, side=4)] * 6)
    report = evaluate_masks(davis_data(tmp_path, "val"), [Method("identity", Identity())], results=tmp_path / "out")
    (method,) = report.methods
    expected = {"area_at_end": 4.0, "lost_objects": 0, "identity_switches": 0, "cpu_seconds_per_frame": None}
    assert summary(method.sequences.values()) == pytest.approx(expected)
    values = json.loads(json.dumps(as_json(report)))["methods"][0]
    assert values["area_at_end"] == values["sequences"]["shrinks"]["area_at_end"] == pytest.approx(4)
    assert values["sequences"]["shrinks"]["objects"]["2"]["longest_loss"] == 0
    assert "<td>4.00</td>" in html_page(report, davis_data(tmp_path, "val").sequences)


def test_objects_lost_for_more_than_five_frames_are_counted(tmp_path: Path) -> None:
    add_davis_sequence(tmp_path, "seen", [blocks(1, 2)] * 9)
    (sequence,) = davis_data(tmp_path, "val").sequences
    for length, lost in ((5, 0), (6, 1)):
        masks = [blocks(1, 0) if 1 <= index <= length else blocks(1, 2) for index in range(9)]
        score = SequenceScore(score_sequence(sequence, masks), 9, None, 0)
        assert summary([score])["lost_objects"] == lost
