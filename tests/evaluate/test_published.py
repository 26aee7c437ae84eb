"""Table of models by published protocols, with the joints of BADJA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.davis import add_davis_sequence
from typer.testing import CliRunner

from corrflow.evaluate import cli
from corrflow.evaluate.methods.protocols import PUBLISHED
from corrflow.plugins.local_soft_copy import cpu

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable() or "built")


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Write a sequence of four frames in DAVIS's layout, and joints of the same frames in joints/clip.json."""
    masks = []
    for index in range(4):
        mask = np.zeros((40, 56), np.uint8)
        mask[8:24, 10 + index : 30 + index] = 1
        masks.append(mask)
    root = tmp_path / "davis"
    add_davis_sequence(root, "clip", masks)
    entries = [
        {
            "image_path": f"JPEGImages/480p/clip/{index:05d}.jpg",
            "segmentation_path": f"Annotations/480p/clip/{index:05d}.png",
            "joints": [[12, 20], [18, 24]],
            "visibility": [True, True],
        }
        for index in range(4)
    ]
    (root / "joints").mkdir()
    (root / "joints" / "clip.json").write_text(json.dumps(entries))
    return root


def run(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_the_table_has_a_row_for_each_model_and_a_column_for_each_protocol(
    davis: Path, small_artifact: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("davis", davis, "--model", small_artifact, "--baseline", "identity", "--protocol", "published")
    done = run(*command, "--badja", davis / "joints", "--out", out)
    assert done.exit_code == 0, done.output
    table = done.stdout[done.stdout.rindex("J&F of each protocol") :]
    assert all(name in table for name in (*PUBLISHED, "BADJA", "identity"))
    model, identity = json.loads((out / "protocols.json").read_text())
    assert list(model["protocols"]) == list(identity["protocols"]) == list(PUBLISHED)
    assert identity["badja"] == {"mean": 1.0, "videos": {"clip": 1.0}}  # the joints do not move
    report = json.loads((out / "report.json").read_text())
    means = {method["protocol"]: method["mean_over_objects"] for method in report["methods"]}
    assert model["protocols"]["hvc"] == means["hvc"] and identity["protocols"]["hvc"] == means[None]
    assert "plain" not in means

    stored = out / "badja" / "identity" / "clip.json"
    content = json.loads(stored.read_text())
    stored.write_text(json.dumps({**content, "score": 0.25}))
    again = run(*command, "--badja", davis / "joints", "--out", out)
    assert "6 of 6 results are from an earlier run" in again.stderr
    assert json.loads((out / "protocols.json").read_text())[1]["badja"]["mean"] == 0.25
    stored.write_text(json.dumps({"key": {**content["key"], "data": "other"}, "score": 0.25}))
    run(*command, "--badja", davis / "joints", "--out", out)
    assert json.loads((out / "protocols.json").read_text())[1]["badja"]["mean"] == 1.0


def test_several_data_sets_have_their_own_rows(davis: Path, small_artifact: Path, tmp_path: Path) -> None:
    sets = tmp_path / "sets.yaml"
    sets.write_text("forward: {root: davis}\nbackward: {root: davis, backward: true}\n")
    command = ("davis", sets, "--model", small_artifact, "--protocol", "paper", "--protocol", "crw")
    done = run(*command, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "out" / "protocols.json").read_text())
    assert [(row["set"], row["model"]) for row in rows] == [("forward", "small"), ("backward", "small")]
    assert "data set" in done.stdout[done.stdout.rindex("J&F of each protocol") :]
    refused = run(*command, "--badja", tmp_path / "missing")
    assert refused.exit_code == 2 and "expected the joints of a BADJA video" in refused.stderr


def test_settings_of_discs_are_not_written_into_models(davis: Path, small_artifact: Path, tmp_path: Path) -> None:
    options = ("--split", "val", "--protocol", "crw", "--out", tmp_path / "out", "--write", tmp_path / "new")
    refused = run("search", davis, "--model", small_artifact, *options)
    assert refused.exit_code == 2 and "got crw, which searches discs" in refused.stderr
