"""Cross-validation: folds, choice on the other folds, bootstrap intervals, cached results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.davis import add_davis_sequence
from numpy.typing import ArrayLike
from typer.testing import CliRunner

from corrflow.errors import InputError
from corrflow.evaluate import cli
from corrflow.evaluate.cross_validation import assign_folds, cross_validate
from corrflow.evaluate.data_sets import davis_data
from corrflow.evaluate.masks import DataSet
from corrflow.evaluate.methods.methods import LabPatches, TrackerMethod
from corrflow.evaluate.metrics.continuity import areas_of_frames
from corrflow.evaluate.metrics.masks import object_score
from corrflow.evaluate.reports.bootstrap import (
    PairedScores,
    compare,
    draw_recordings,
    mean_over_objects,
    tail_share,
    worst_third_over_objects,
)
from corrflow.evaluate.reports.cross_validation import cross_validation_as_json, cross_validation_tables
from corrflow.evaluate.reports.report import SequenceScore, mean_scores, worst_third
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.settings import TrackingSettings

NAMES = tuple(f"s{index:02d}" for index in range(12))


@pytest.fixture
def sets(tmp_path: Path) -> tuple[DataSet, ...]:
    """Twelve sequences, forward and backward, and two others of which one has the name of one of those."""
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 2:5] = 255
    for name in NAMES:
        add_davis_sequence(tmp_path / "a", name, [mask] * 4)
    for name in ("s00", "other"):
        add_davis_sequence(tmp_path / "b", name, [mask] * 4)
    kinds = {"s01": ("thin",), "s02": ("thin", "fast")}
    return (
        replace(davis_data(tmp_path / "a", "val"), label="full", attributes=kinds),
        replace(davis_data(tmp_path / "a", "val", backward=True), label="backward", attributes=kinds),
        replace(davis_data(tmp_path / "b", "val"), label="b"),
    )


AREAS = areas_of_frames(np.array([8, 8]), np.array([10, 10]), np.array([True, True]))


def score(value: float, objects: int = 1) -> SequenceScore:
    return SequenceScore(
        {number + 1: object_score([1, 2], [value] * 2, [value] * 2, AREAS) for number in range(objects)}, 4, 1.0, 3
    )


class Made:
    """Measurements without tracking: J and F by top_k, the data set's label and the recording."""

    def __init__(self, sets: Sequence[DataSet], value: Any) -> None:
        self.sets, self._value = tuple(sets), value
        self.methods: list[TrackerMethod] = []

    def measure(self, methods: Iterable[TrackerMethod], label: str = "frames") -> list[dict[str, Any]]:
        methods = list(methods)
        self.methods += [method for method in methods if method not in self.methods]
        return [
            {
                data.label: {
                    sequence.name: score(self._value(method.settings.top_k, data.label, sequence.recording))
                    for sequence in data.sequences
                }
                for data in self.sets
            }
            for method in methods
        ]


START = TrackerMethod(LabPatches(), TrackingSettings(top_k=10))


def validated(sets: Sequence[DataSet], value: Any, folds: int = 4, objective: str = "mean"):
    made: Any = Made(sets, value)
    return cross_validate(made, [START], {"top_k": (5, 20)}, START, folds=folds, objective=objective)


# --- folds -------------------------------------------------------------------------------------------------------


def test_folds_depend_on_names_and_seed_alone_and_are_even() -> None:
    recordings = [(name, ("full", "backward")) for name in NAMES] + [(f"b{index}", ("b",)) for index in range(10)]
    folds = assign_folds(recordings, 5, 0)
    by_name = dict(zip(recordings, folds, strict=True))
    shuffled = [recordings[index] for index in np.random.default_rng(0).permutation(len(recordings))]
    assert dict(zip(shuffled, assign_folds(shuffled, 5, 0), strict=True)) == by_name
    assert assign_folds(recordings, 5, 1) != folds
    for group, least in ((("full", "backward"), 2), (("b",), 2)):
        sizes = np.bincount([fold for (_, of), fold in by_name.items() if of == group], minlength=5)
        assert sizes.min() == least and sizes.max() - sizes.min() <= 1
    with pytest.raises(InputError, match="at least 5 sequences for 5 folds, got 3"):
        assign_folds(recordings[:3], 5, 0)


def test_all_variants_of_a_recording_are_in_one_fold(sets: tuple[DataSet, ...]) -> None:
    result = validated(sets, lambda top_k, label, name: 0.5)
    values = cross_validation_as_json(result, 100, 0)["sequences"]
    for name in NAMES:
        assert values["full"][name]["fold"] == values["backward"][f"{name}@backward"]["fold"]
    assert len(result.recordings) == len(NAMES) + 2  # the same name in another folder is another recording
    assert sum(len(fold.recordings) for fold in result.folds) == len(result.recordings)


# --- choice ------------------------------------------------------------------------------------------------------


def test_scores_of_a_fold_take_no_part_in_its_choice(sets: tuple[DataSet, ...]) -> None:
    """Each top_k is much better on one recording alone: chosen by it everywhere but on that recording itself."""

    def value(top_k: int, label: str, name: str) -> float:
        return 0.9 if (name, top_k) == ("s03", 5) else 0.5

    result = validated(sets[:2], value)
    (held_out,) = (fold for fold in result.folds if "s03" in fold.recordings)
    assert [fold.chosen.method.settings.top_k for fold in result.folds if fold is not held_out] == [5] * 3
    # Without s03 all values are equal, so the choice there cannot be better than the start.
    values = cross_validation_as_json(result, 100, 0)
    assert held_out.chosen.method.settings.top_k != 5
    assert values["sequences"]["full"]["s03"]["after"] == 0.5
    assert result.tried == 3


def test_the_objective_is_the_mean_or_the_worst_third(sets: tuple[DataSet, ...]) -> None:
    def value(top_k: int, label: str, name: str) -> float:
        hard = int(name[1:]) % 3 == 0
        return {10: 0.1 if hard else 0.5, 5: 0.3 if hard else 0.45, 20: 0.1 if hard else 0.9}[top_k]

    for objective, expected in (("mean", 20), ("worst-third", 5)):
        result = validated(sets[:2], value, objective=objective)
        assert {fold.chosen.method.settings.top_k for fold in result.folds} == {expected}


def test_tables_and_json_have_each_part_apart(sets: tuple[DataSet, ...]) -> None:
    result = validated(sets, lambda top_k, label, name: {5: 0.7, 10: 0.6, 20: 0.5}[top_k])
    values = cross_validation_as_json(result, 200, 0)
    json.dumps(values)
    parts = {(item["set"], item["of"]): item for item in values["comparisons"]}
    assert set(parts) == {
        *((label, kind) for label in ("full", "backward", "all data sets") for kind in ("mean", "worst third")),
        *((label, kind) for label in ("full", "backward", "all data sets") for kind in ("thin", "fast")),
        ("b", "mean"),
        ("b", "worst third"),
    }
    assert parts["full", "thin"]["sequences"] == 2 and parts["full", "mean"]["sequences"] == 12
    for item in parts.values():
        assert item["difference"] == pytest.approx(0.1)
        assert item["low"] == pytest.approx(0.1)
        assert item["verdict"] == ("better" if item["recordings"] >= 5 else "too few")
    for part in values["sets"].values():
        assert part["after"]["area_at_end"] == pytest.approx(0.8) and part["after"]["lost_objects"] == 0
    assert values["sequences"]["full"]["s03"]["figures_after"]["area_at_end"] == pytest.approx(0.8)
    titles = [str(table.title) for table in cross_validation_tables(result, 200, 0)]
    assert len(titles) == 5 and "4 folds, 3 methods tried" in titles[0]


# --- bootstrap ---------------------------------------------------------------------------------------------------


def paired(before: ArrayLike, after: ArrayLike) -> PairedScores:
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return PairedScores(np.arange(len(first)), np.ones(len(first), int), first, second)


def test_intervals_tell_a_small_steady_gain_from_noise() -> None:
    generator = np.random.default_rng(3)
    base = generator.uniform(0.3, 0.9, 30)
    draws = draw_recordings(["a"] * 30, 2000, 0)
    steady = compare([paired(base, base + 0.01 + generator.normal(0, 0.005, 30))], draws)
    assert steady.verdict == "better" and 0.005 < steady.low < steady.difference < steady.high < 0.015
    noisy = compare([paired(base, base + 0.01 + generator.normal(0, 0.1, 30))], draws)
    assert noisy.verdict == "noise" and noisy.low < 0 < noisy.high
    worse = compare([paired(base, base - 0.01)], draws)
    assert worse.verdict == "worse"


def test_intervals_agree_with_a_plain_bootstrap() -> None:
    generator = np.random.default_rng(4)
    before, after = generator.uniform(0, 1, (2, 25))
    result = compare([paired(before, after)], draw_recordings(["a"] * 25, 20_000, 1))
    chosen = generator.integers(0, 25, (20_000, 25))
    tail = 100 * tail_share(25)
    low, high = np.percentile((after - before)[chosen].mean(1), [tail, 100 - tail])
    assert result.low == pytest.approx(low, abs=0.01) and result.high == pytest.approx(high, abs=0.01)


@pytest.mark.parametrize(("recordings", "student"), [(5, 2.776), (10, 2.262), (30, 2.045), (1000, 1.962)])
def test_intervals_of_few_recordings_are_wider(recordings: int, student: float) -> None:
    expected = NormalDist().cdf(-student * (recordings / (recordings - 1)) ** 0.5)
    assert tail_share(recordings) == pytest.approx(expected, rel=0.04)


def test_intervals_hold_the_true_difference_as_often_as_they_say() -> None:
    generator = np.random.default_rng(6)
    draws = draw_recordings(["a"] * 10, 1000, 0)
    held = 0
    for _ in range(400):
        result = compare([paired(np.zeros(10), generator.normal(0.01, 0.05, 10))], draws)
        held += result.low <= 0.01 <= result.high
    assert 0.92 <= held / 400 <= 0.98


def test_draws_keep_the_size_of_each_group() -> None:
    draws = draw_recordings(["a", "b", "a", "b", "b"], 50, 0)
    assert (draws[:, [0, 2]].sum(1) == 2).all() and (draws[:, [1, 3, 4]].sum(1) == 3).all()
    assert (draws == draw_recordings(["a", "b", "a", "b", "b"], 50, 0)).all()


def test_statistics_agree_with_those_of_reports() -> None:
    generator = np.random.default_rng(5)
    for count in (1, 2, 4, 10, 11):
        values, objects = generator.uniform(0, 1, count), generator.integers(1, 5, count)
        scores = {f"{index}": score(value, n) for index, (value, n) in enumerate(zip(values, objects, strict=True))}
        once = np.ones((1, count), np.int64)
        assert mean_over_objects(once, values * objects, objects)[0] == pytest.approx(
            mean_scores(scores.values())["J&F"]
        )
        assert worst_third_over_objects(once, values * objects, objects)[0] == pytest.approx(
            mean_scores(worst_third(scores).values())["J&F"]
        )


def test_a_repeated_sequence_fills_the_worst_third() -> None:
    weights = np.array([[3, 1, 1, 1]])
    values = np.array([0.1, 0.2, 0.3, 0.4])
    assert worst_third_over_objects(weights, values, np.ones(4, int))[0] == pytest.approx(0.1)


def test_resamples_without_a_kind_are_left_out() -> None:
    part = paired([0.5] * 6, [0.6] * 6).restricted([True] + [False] * 5)
    result = compare([part, part.restricted([False])], draw_recordings(["a"] * 6, 500, 0))
    assert result.sequences == result.recordings == 1 and result.verdict == "too few"
    assert result.low == pytest.approx(0.1) == result.high


# --- the command -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable() or "built")
def test_the_command_writes_a_report_and_continues(
    small_artifact: Path, tmp_path: Path, moving_square: tuple[np.ndarray, np.ndarray]
) -> None:
    frames, masks = moving_square
    for name in ("one", "two", "three"):
        add_davis_sequence(tmp_path / "davis", name, [mask.astype(np.uint8) * 255 for mask in masks[:5]])
        for index, frame in enumerate(frames[:5]):
            cv2.imwrite(str(tmp_path / "davis/JPEGImages/480p" / name / f"{index:05d}.jpg"), frame)
    (tmp_path / "kinds.json").write_text('{"one": ["thin parts"]}')
    (tmp_path / "sets.yaml").write_text(
        "full rate: {root: davis, attributes: kinds.json}\nbackward: {root: davis, backward: true}\n"
    )
    arguments = ["cross-validate", str(tmp_path / "sets.yaml"), "--model", str(small_artifact), "--folds", "3"]
    arguments += [
        "--radius",
        "1",
        "--vary",
        "redetect=true,false",
        "--resamples",
        "200",
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    values = json.loads((tmp_path / "out" / "cross_validation.json").read_text())
    assert len(values["folds"]) == 3 and set(values["sequences"]) == {"full rate", "backward"}
    text = (tmp_path / "out" / "cross_validation.txt").read_text()
    for part in ("full rate", "backward", "thin parts", "all data sets", "worst third", "95 % interval"):
        assert part in text and part in done.stdout
    again = CliRunner().invoke(cli.app, arguments)
    tried = values["methods_tried"]
    assert f"{6 * tried} results are from an earlier run" in again.stderr
    assert json.loads((tmp_path / "out" / "cross_validation.json").read_text()) == values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective", "best"], "mean, worst-third, both, got 'best'"),
        (["--vary", "surprise=1"], "got 'surprise'"),
        (["--folds", "30"], "at least 30 sequences for 30 folds, got 2"),
    ],
)
def test_wrong_options_are_one_line(small_davis: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["cross-validate", str(small_davis), "--split", "val", *options])
    assert done.exit_code == 2, done.output
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
