"""Resampled sequences, and YAML files of several data sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.davis import add_davis_sequence
from typer.testing import CliRunner

from corrflow.errors import InputError
from corrflow.evaluate import cli
from corrflow.evaluate.data_sets import davis_data, open_sets
from corrflow.evaluate.datasets.masks import resample
from corrflow.evaluate.options import DavisOptions

HEIGHT, WIDTH = 24, 40


def square(left: int, value: int = 255) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:10, left : left + 8] = value
    return mask


def run(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four sequences of eight frames; the object of "gone" is not on the last two."""
    folder = tmp_path / "davis"
    for step, name in enumerate(("still", "slow", "fast")):
        add_davis_sequence(folder, name, [square(2 + step * index) for index in range(8)])
    add_davis_sequence(folder, "gone", [*(square(2 + index) for index in range(6)), *[square(0, 0)] * 2])
    return folder


@pytest.mark.parametrize(
    ("name", "stride", "backward", "expected"),
    [
        ("slow", 1, False, "01234567"),
        ("slow", 3, False, "036"),
        ("slow", 1, True, "76543210"),
        ("slow", 3, True, "630"),
        ("gone", 1, True, "543210"),
        ("gone", 3, True, "30"),
        ("gone", 3, False, "036"),
    ],
)
def test_frames_and_masks_are_resampled_together(
    root: Path, name: str, stride: int, backward: bool, expected: str
) -> None:
    (sequence,) = (resample(item, stride, backward) for item in davis_data(root, "val", names=[name]).sequences)
    assert [path.stem[-1] for path in sequence.image_paths] == list(expected)
    assert [path and path.stem for path in sequence.annotation_paths] == [path.stem for path in sequence.image_paths]
    first = int(expected[0])
    assert sequence.prompts()[0].mask.tolist() == (square(2 + first) > 0).tolist()
    assert sequence.recording == name


def test_resampled_sequences_have_names_of_their_own(root: Path) -> None:
    (sequence,) = davis_data(root, "val", names=["slow"]).sequences
    assert resample(sequence) == sequence
    assert resample(sequence, 3).name == "slow@stride3"
    assert resample(sequence, 3, True).name == "slow@stride3@backward"
    with pytest.raises(InputError, match="a stride of at least 1, got 0"):
        resample(sequence, 0)


def test_sequences_without_objects_stay_whole_and_are_refused(tmp_path: Path) -> None:
    add_davis_sequence(tmp_path, "empty", [square(0, 0)] * 3)
    (sequence,) = davis_data(tmp_path, "val", backward=True).sequences
    with pytest.raises(InputError, match="an object in the first frame"):
        _ = sequence.scored


def test_commands_take_strides_and_directions(root: Path, tmp_path: Path) -> None:
    arguments = ("davis", root, "--baseline", "identity", "--stride", 3, "--backward", "--sequence", "still")
    done = run(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "still@stride3@backward" in done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (method,) = report["methods"]
    assert method["sequences"]["still@stride3@backward"]["objects"]["1"]["frames"] == [1]
    masks = tmp_path / "out" / "masks" / "identity"
    score = ("score", masks, "--gt", root, "--sequence", "still", "--stride", 3, "--backward")
    assert run(*score).exit_code == 0
    refused = run(*score, "--layout", "youtube-vos")
    assert refused.exit_code == 2 and "--stride and --backward with --layout davis" in refused.stderr


def test_tables_have_the_worst_third(root: Path) -> None:
    done = run("davis", root, "--baseline", "identity")
    assert done.exit_code == 0, done.output
    rows = [line.split("│")[1].strip() for line in done.stdout.splitlines() if line.startswith("│")]
    assert rows == ["still", "slow", "fast", "gone", "worst third (1 sequences)", "mean of 4 objects"]
    many = run("davis", root, "--baseline", "identity", "--baseline", "flow", "--baseline", "lab", "--model", "fast")
    assert many.exit_code == 0, many.output
    assert "worst third (1 sequences)" in many.stdout


def test_several_data_sets_are_in_one_table(root: Path, tmp_path: Path) -> None:
    (tmp_path / "kinds.json").write_text('{"slow": ["SLOW"]}')
    (tmp_path / "sets.yaml").write_text(
        """
full rate: {root: davis, split: val, year: 2017, attributes: kinds.json}
every third: {root: davis, split: val, stride: 3, sequences: [still, slow, fast]}
backward: {root: davis, split: val, backward: true}
"""
    )
    out = tmp_path / "out"
    done = run("davis", tmp_path / "sets.yaml", "--baseline", "identity", "--out", out)
    assert done.exit_code == 0, done.output
    entries = json.loads((out / "sets.json").read_text())
    assert [entry["set"] for entry in entries] == ["full rate", "every third", "backward"]
    assert [entry["sequences"] for entry in entries] == [4, 3, 4]
    for entry in entries:
        assert entry["worst_third"]["sequences"][0].startswith("fast")
        assert entry["worst_third"]["J&F"] <= entry["mean_over_objects"]["J&F"]
    last = done.stdout[done.stdout.rindex("means over objects") :]
    for label in ("full rate", "every third", "backward", "worst third"):
        assert label in last
    (page,) = (out / "sets").glob("full*/report.html")
    assert "SLOW" in page.read_text()
    again = run("davis", tmp_path / "sets.yaml", "--baseline", "identity", "--out", out)
    assert "4 of 4 results are from an earlier run" in again.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "name each data set"),
        ("a: 3", "name each data set"),
        ("{", "got no valid YAML"),
        ("", "name each data set"),
        ("a: {split: val}", "for 'a' in {path}, got no root"),
        ("a: {root: davis, frames: 3}", "got frames: 3"),
        ("a: {root: davis, stride: true}", "got stride: True"),
        ("a: {root: davis, stride: 0}", "a stride of at least 1, got 0"),
        ("a: {root: nowhere}", "found no folder"),
    ],
)
def test_invalid_files_of_data_sets_are_refused(root: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sets.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        open_sets(path, DavisOptions(root=path))
    assert message.format(path=path) in str(raised.value)


def test_options_beside_a_file_of_data_sets_are_refused(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "sets.yaml"
    path.write_text("a: {root: davis}")
    done = run("davis", path, "--stride", 3, "--baseline", "identity")
    assert done.exit_code == 2 and "write them into the file" in done.stderr
    missing = run("davis", tmp_path / "other.yaml", "--baseline", "identity")
    assert missing.exit_code == 2 and "No such file" in missing.stderr
