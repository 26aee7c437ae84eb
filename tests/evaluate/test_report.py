"""Files of a report: the official CSV, JSON, and a self-contained HTML page."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.davis import add_davis_sequence

from corrflow.errors import InputError
from corrflow.evaluate.data_sets import davis_data
from corrflow.evaluate.datasets.attributes import read_attributes
from corrflow.evaluate.masks import DataSet, Method, evaluate_masks
from corrflow.evaluate.methods.methods import Identity
from corrflow.evaluate.metrics.continuity import areas_of_frames
from corrflow.evaluate.metrics.masks import mean_recall_decay, object_score
from corrflow.evaluate.reports.html import drift, html_page
from corrflow.evaluate.reports.report import as_json, official_csv


@pytest.fixture
def root(small_davis: Path) -> Path:
    return small_davis


def data(root: Path, *names: str) -> DataSet:
    return davis_data(root, "val", names=names)


def square(top: int, left: int, value: int) -> np.ndarray:
    mask = np.zeros((24, 40), np.uint8)
    mask[top : top + 8, left : left + 8] = value
    return mask


def test_official_csv_has_the_official_columns_and_rounding(root: Path) -> None:
    report = evaluate_masks(data(root), [Method("identity", Identity())])
    files = official_csv(report, report.methods[0])
    assert list(files) == ["global_results-val.csv", "per-sequence_results-val.csv"]
    header, values = files["global_results-val.csv"].splitlines()
    assert header == "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay"
    means = as_json(report)["methods"][0]["mean_over_objects"]
    assert values.split(",")[:2] == [f"{means['J&F']:.3f}", f"{means['J']:.3f}"]
    lines = files["per-sequence_results-val.csv"].splitlines()
    assert [line.split(",")[0] for line in lines] == ["Sequence", "two_1", "two_5", "one_1"]
    assert lines[2] == "two_5,1.000,1.000"


def test_official_decay_changes_every_score(tmp_path: Path) -> None:
    masks = [square(2, 2 + (index > 150), 1) for index in range(400)]
    add_davis_sequence(tmp_path, "long", masks)
    correct, official = (
        evaluate_masks(data(tmp_path), [Method("identity", Identity())], official_decay=option)
        .methods[0]
        .sequences["long"]
        .objects[1]
        for option in (False, True)
    )
    assert correct.region.mean == official.region.mean
    assert correct.region.decay > 0.1
    assert official.region.decay == mean_recall_decay(official.region_similarity, official_uint8_bins=True)[2]
    assert official.region.decay != correct.region.decay


def test_a_nan_decay_is_null_in_json(root: Path) -> None:
    report = evaluate_masks(data(root, "one"), [Method("identity", Identity())])
    method = report.methods[0]
    score = method.sequences["one"]
    with_nan = replace(score.objects[1], region=replace(score.objects[1].region, decay=np.nan))
    changed = replace(report, methods=(replace(method, sequences={"one": replace(score, objects={1: with_nan})}),))
    written = json.loads(json.dumps(as_json(changed), allow_nan=False))
    assert written["methods"][0]["sequences"]["one"]["objects"]["1"]["J"]["decay"] is None


class Links(HTMLParser):
    """Parser that collects the addresses a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_self_contained(root: Path, tmp_path: Path) -> None:
    hostile = Method("<script>alert(1)</script>&", Identity())
    report = evaluate_masks(data(root), [Method("identity", Identity()), hostile], results=tmp_path / "results")
    page = html_page(report, data(root).sequences, {"two": ("OCC", "<b>")})
    reader = Links()
    reader.feed(page)
    assert reader.open == []
    assert reader.images == 6  # one for each object of each method
    assert all(link.startswith("data:image/jpeg;base64,") for link in reader.links)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert "OCC (1)" in page and "&lt;b&gt;" in page


def test_names_of_sequences_are_escaped(tmp_path: Path) -> None:
    add_davis_sequence(tmp_path, "<img&src>", [square(2 + top, 2, 1) for top in range(4)])
    report = evaluate_masks(data(tmp_path), [Method("identity", Identity())], results=tmp_path / "results")
    page = html_page(report, data(tmp_path).sequences)
    # The name is in the table, at the chart, and at the image as caption and as alternative text.
    assert "<img&src" not in page and page.count("&lt;img&amp;src&gt;") == 4


def test_drift_is_the_mean_over_objects_at_equal_fractions_of_their_length() -> None:
    full = np.ones(3)
    short = object_score([1, 2], [1.0, 0.0], [1, 1], areas_of_frames(full[:2], full[:2], full[:2]))
    long = object_score([1, 2, 3], [1.0, 1.0, 0.0], [1, 1, 1], areas_of_frames(full, full, full))
    positions, values = drift([short, long], points=3)
    assert positions.tolist() == [0, 50, 100]
    assert values.tolist() == [1, 0.75, 0]


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_attributes_are_read_from_json_and_yaml(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"attributes{suffix}"
    if suffix == ".json":
        path.write_text('{"bear": ["OCC", "FM"], "cows": []}')
    else:
        pytest.importorskip("yaml")
        path.write_text("sequences:\n- {name: bear, attributes: [OCC, FM], year: 2016}\n- name: cows\n")
    assert read_attributes(path) == {"bear": ("OCC", "FM"), "cows": ()}


@pytest.mark.parametrize("text", ["", "[1]", '{"bear": 3}', '{"sequences": [3]}', '{"bear": [1]}', "{"])
def test_files_without_attributes_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "attributes.json"
    path.write_text(text)
    with pytest.raises(InputError, match="expected attributes"):
        read_attributes(path)
