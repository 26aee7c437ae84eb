"""Front of accuracy and price: which models are beaten, the plot, prices of one run, the command."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from helpers.davis import add_davis_sequence
from typer.testing import CliRunner

from corrflow.evaluate import cli, front
from corrflow.evaluate.front import there_and_back
from corrflow.evaluate.reports.charts import scatter_chart
from corrflow.evaluate.reports.front import PricedModel, beaten_by, front_as_json, front_svg, front_table
from corrflow.plugins.local_soft_copy import cpu


def model(label: str, mean: float, worst: float, cpu_seconds: float) -> PricedModel:
    return PricedModel(label, {"J&F": mean, "worst third": worst}, cpu_seconds, "0" * 64)


MODELS = [
    model("default", 0.8, 0.5, 0.2),
    model("cheap", 0.7, 0.6, 0.1),
    model("poor", 0.6, 0.4, 0.1),
    model("twin", 0.8, 0.5, 0.2),
]


def test_models_are_beaten_by_those_that_are_no_worse_in_both_and_better_in_one() -> None:
    beaten = {item.label: [beaten_by(item, MODELS, name) for name in ("J&F", "worst third")] for item in MODELS}
    assert beaten == {
        "default": [[], ["cheap"]],
        "cheap": [[], []],
        "poor": [["cheap"], ["cheap"]],
        "twin": [[], ["cheap"]],
    }
    table = front_table(MODELS, "made")
    assert [str(cell) for cell in table.columns[0].cells] == ["cheap", "poor", "default", "twin"]
    assert list(table.columns[4].cells) == ["0.50", "0.50", "1.00", "1.00"]
    values = front_as_json(MODELS, {"sets": []})
    assert values["models"][2]["beaten_by"] == {"J&F": ["cheap"], "worst third": ["cheap"]}


def test_the_plot_is_valid_svg_with_every_model() -> None:
    image = ElementTree.fromstring(front_svg([*MODELS, model("<b>&", 0.75, 0.55, 0.15)], "a & b"))
    space = "{http://www.w3.org/2000/svg}"
    assert image.tag == f"{space}svg"
    assert len(image.findall(f"{space}circle")) == 2 * 5 + 2  # two in the legend
    names = [item.text for item in image.findall(f"{space}text") if item.get("class") == "name"]
    assert sorted(map(str, names)) == sorted(["default", "cheap", "poor", "twin", "<b>&"])


def test_steps_go_along_the_points_that_no_other_beats() -> None:
    points = [("a", 10.0, 50.0), ("b", 20.0, 40.0), ("c", 30.0, 60.0)]
    chart = scatter_chart([("mean", points)], ("x", "y"), (400, 300))
    place = {title.split(":")[0]: (x, y) for _, title, x, y in chart["marks"]}
    a, c = place["mean, a"], place["mean, c"]
    ((_, _, path),) = chart["steps"]
    assert path == f"{a[0]},{a[1]} {c[0]},{a[1]} {c[0]},{c[1]} {chart['right']},{c[1]}"
    assert chart["x_ticks"][0] == (chart["left"], "0")


@pytest.mark.parametrize("value", [0.0, 47.1, 100.0])
def test_models_of_one_accuracy_have_a_plot(value: float) -> None:
    chart = scatter_chart([("mean", [("a", 90.0, value)])], ("x", "y"), (400, 300))
    ((_, _, x, y),) = chart["marks"]
    assert chart["left"] < x <= chart["right"] and 0 <= y <= 300


def test_names_of_equal_points_are_below_each_other() -> None:
    chart = scatter_chart([("mean", [(name, 10.0, 50.0) for name in "abc"])], ("x", "y"), (400, 300))
    heights = [y for _, _, y, _ in chart["names"]]
    assert np.diff(heights).tolist() == [14, 14]


def test_frames_go_there_and_back() -> None:
    assert list(islice(there_and_back(4), 10)) == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable() or "built")
def test_the_command_writes_the_front_and_continues(
    small_artifact: Path,
    following_artifact: Path,
    tmp_path: Path,
    moving_square: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames, masks = moving_square
    add_davis_sequence(tmp_path / "davis", "one", [mask.astype(np.uint8) * 255 for mask in masks[:5]])
    for index, frame in enumerate(frames[:5]):
        cv2.imwrite(str(tmp_path / "davis/JPEGImages/480p/one" / f"{index:05d}.jpg"), frame)
    monkeypatch.setattr(front, "bundled_models", list)
    monkeypatch.setattr(front, "DEFAULT_MODEL", str(small_artifact))
    arguments = ["front", str(tmp_path / "davis"), "--model", str(following_artifact), "--out", str(tmp_path / "out")]
    runs: list[tuple[Any, Any]] = []
    for _ in range(2):
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, done.output
        runs.append((done, json.loads((tmp_path / "out" / "front.json").read_text())))
    (_, first), (again, second) = runs
    assert "2 results are from an earlier run" in again.stderr
    assert [item["J&F"] for item in first["models"]] == [item["J&F"] for item in second["models"]]
    assert all(0 < item["cpu_seconds_per_frame"] < 5 for item in first["models"])
    assert (tmp_path / "out" / "front.svg").read_text().count('class="name"') == 2
