"""Report of corrflow-eval points: page, JSON and CSV."""

from __future__ import annotations

import base64
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from corrflow.evaluate.datasets.labelled_videos import LabelledVideo
from corrflow.evaluate.keypoints import KeypointReport, evaluate_keypoints
from corrflow.evaluate.masks import Method
from corrflow.evaluate.methods.methods import Identity, LucasKanade
from corrflow.evaluate.reports.charts import bar_chart, reliability_chart
from corrflow.evaluate.reports.keypoint_frames import worst_places
from corrflow.evaluate.reports.keypoints import REPORT_FILES, write_keypoint_files

FRAMES = 8


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> KeypointReport:
    """Score Lucas-Kanade and no motion on two discs that move apart, one of which is hidden at the end."""
    folder = tmp_path_factory.mktemp("discs")
    points = np.zeros((FRAMES, 4, 2))
    for t in range(FRAMES):
        image = np.zeros((80, 120, 3), np.uint8)
        for number, x in enumerate((40 - 3 * t, 80 + 3 * t)):
            cv2.circle(image, (x, 40), 8, (200, 180, 160), -1, cv2.LINE_AA)
            points[t, 2 * number : 2 * number + 2] = (x, 33), (x, 47)
        cv2.imwrite(str(folder / f"{t:02d}.png"), image)
    points[-1, 2:] = np.nan
    names = tuple((name, point) for name in ("<left>", "right") for point in ("top", "bottom"))
    video = LabelledVideo("discs", str(folder), names, tuple(range(FRAMES)), points, np.ones((FRAMES, 4), bool))
    return evaluate_keypoints(video, [Method("lk", LucasKanade()), Method("identity", Identity())], length=15)


def test_the_files_have_page_data_and_every_point(report: KeypointReport, tmp_path: Path) -> None:
    paths = write_keypoint_files(report, tmp_path)
    assert [path.name for path in paths] == list(REPORT_FILES)
    page = paths[0].read_text()
    assert "<left>" not in page and "&lt;left&gt;" in page
    assert not re.search(r"(?:src|href)=[\"']?(?!data:)[a-z]", page)
    assert page.count("reported confidence") >= 2 and "PCK@0.2 of each point" in page
    pictures = re.findall(r"base64,([^\"]+)", page)
    assert pictures
    for picture in pictures:
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None and decoded.shape == (315, 420, 3)
    data = json.loads(paths[1].read_text())
    identity = data["methods"][1]
    assert identity["PCK@0.2"] == pytest.approx(2 / 13)  # three pixels: the first of seven and of six frames
    assert identity["by_object"].keys() == {"<left>", "right"} and identity["hidden found"] == 0
    assert identity["calibration"]["count"] == [0] * 9 + [28] and identity["calibration"]["confidence"][0] is None
    rows = list(csv.DictReader(paths[2].read_text().splitlines()))
    assert len(rows) == 2 * FRAMES * 4 and {row["given"] for row in rows if row["frame"] == "0"} == {"1"}
    assert rows[-1]["true_x"] == rows[-1]["error"] == "" and rows[-1]["x"] == "80.000"


def test_the_worst_places_have_the_fewest_right_points_and_are_apart(report: KeypointReport) -> None:
    places = worst_places(report, report.results[1], 4)
    assert all(place.right == 0 for place in places)
    assert (places[0].row, places[0].object_name) == (FRAMES - 1, "<left>")
    assert len({(place.row, place.object_name) for place in places}) == len(places)
    perfect = replace(report.results[1], errors=np.zeros((FRAMES, 4)))
    assert worst_places(report, perfect, 4) == []


def test_reliability_has_a_dot_for_each_filled_bin_and_a_diagonal() -> None:
    nan = float("nan")
    counts = np.array([3, 0, 1])
    chart = reliability_chart(
        [("a", np.array([0.0, nan, 1.0]), np.array([1.0, nan, 0.5]), counts)], "confidence", (456, 262)
    )
    assert [(x, y) for _, _, x, y, _ in chart["dots"]] == [(44, 12.0), (444, 112.0)]
    assert chart["dots"][0][-1] > chart["dots"][1][-1] and chart["ideal"] == "44,212 444,12"


def test_long_names_of_bars_are_slanted() -> None:
    series = [("a", [0.5] * 17)]
    assert not bar_chart(["nose"] * 17, series, (1000, 300))["is_slanted"]
    assert bar_chart(["right_shoulder"] * 17, series, (1000, 300))["is_slanted"]
