"""Datumaro opens our COCO and CVAT files: its own loaders give the same masks, points, classes and identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.tools import ask_tool

from corrflow.runtime.formats.coco import CocoSink
from corrflow.runtime.formats.cvat import CvatSink
from corrflow.runtime.formats.label_schema import LabelSchema
from corrflow.runtime.types import Frame, FrameResult, ObjectResult

SHAPE = (60, 90)

LOAD = """
import json, sys
import numpy as np
from datumaro import AnnotationType, Dataset
from pycocotools import mask as rle
loaded = Dataset.import_from(sys.argv[1], sys.argv[2])
labels = loaded.categories()[AnnotationType.label]
found = {}
for item in loaded:
    entries = []
    for one in item.annotations:
        entry = {"kind": one.type.name, "label": labels[one.label].name, "track": one.attributes.get("track_id")}
        entry["outside"] = bool(one.attributes.get("outside"))
        if one.type is AnnotationType.mask:
            entry["pixels"] = np.flatnonzero(np.asarray(one.image)).tolist()
        elif one.type is AnnotationType.polygon:
            pixels = rle.decode(rle.merge(rle.frPyObjects([list(one.points)], 60, 90)))
            entry["pixels"] = np.flatnonzero(pixels).tolist()
        else:
            entry["points"] = list(one.points)
        entries.append(entry)
    found[str(item.attributes.get("frame", item.id))] = entries
print(json.dumps(found))
"""


def results(file_name: bool) -> list[FrameResult]:
    """Return a mask with the identity 7 that is lost on frame 1, and points with the identity 300."""
    found = []
    for index in range(3):
        mask, seen = np.zeros(SHAPE, np.uint8), index != 1
        if seen:
            cv2.rectangle(mask, (20 + index, 10), (50, 40), 1, -1)
        box = (20 + index, 10, 51, 41) if seen else None
        ball = ObjectResult(1, "", 0.9, seen, box, track_id=7, category="ball")
        points = np.array([[5, 6], [7, 8]], np.float32)
        mouse = ObjectResult(2, "", 0.9, True, None, points, ("nose", "tail"), np.array([0.9, 0.8]), 300, "mouse")
        frame = Frame(np.full((*SHAPE, 3), 90, np.uint8), index, 0.0, f"{index:05d}", f"{index:05d}.png" * file_name)
        found.append(FrameResult(mask, (ball, mouse), frame))
    return found


def load(folder: Path, form: str) -> dict[int, list[dict[str, Any]]]:
    found = ask_tool("datumaro", LOAD, folder, form)
    return {int(frame): entries for frame, entries in found.items()}


def pixels(entries: list[dict[str, Any]]) -> list[list[int]]:
    return [one["pixels"] for one in entries if "pixels" in one and not one["outside"]]


@pytest.mark.parametrize("has_outlines", [False, True], ids=["run lengths", "polygons"])
def test_datumaro_opens_coco(tmp_path: Path, has_outlines: bool) -> None:
    frames = results(file_name=True)
    (tmp_path / "images").mkdir()
    with CocoSink(tmp_path / "annotations" / "instances_clip.json", LabelSchema(has_outlines=has_outlines)) as sink:
        for one in frames:
            sink.write(one)
    found = load(tmp_path, "coco_instances")
    for one in frames:
        entries = [entry for entry in found[one.frame.index] if entry["label"] == "ball"]
        assert pixels(entries) == [np.flatnonzero(one.mask).tolist()] * bool(one.mask.any())
        assert {entry["track"] for entry in entries} <= {7}


def test_datumaro_opens_a_folder_of_images_of_cvat(tmp_path: Path) -> None:
    frames = results(file_name=True)
    (tmp_path / "images").mkdir()
    with CvatSink(tmp_path / "annotations.xml") as sink:
        for one in frames:
            sink.write(one)
            cv2.imwrite(str(tmp_path / "images" / one.frame.file_name), one.frame.image)
    found = load(tmp_path, "cvat")
    for one in frames:
        assert pixels(found[one.frame.index]) == [np.flatnonzero(one.mask).tolist()] * bool(one.mask.any())
        points = {entry["label"]: entry["points"] for entry in found[one.frame.index] if "points" in entry}
        assert points == {"nose": [5.5, 6.5], "tail": [7.5, 8.5]}


def test_datumaro_opens_the_tracks_of_a_video_of_cvat(tmp_path: Path) -> None:
    frames = results(file_name=False)
    with CvatSink(tmp_path / "annotations.xml") as sink:
        for one in frames:
            sink.write(one)
    found = load(tmp_path, "cvat")
    for one in frames:
        assert pixels(found[one.frame.index]) == [np.flatnonzero(one.mask).tolist()] * bool(one.mask.any())
        masks = [entry for entry in found[one.frame.index] if entry["label"] == "ball"]
        assert [(entry["track"], entry["outside"]) for entry in masks] == [(7, not one.mask.any())]
        points = [entry["points"] for entry in found[one.frame.index] if "points" in entry]
        assert points == [[5.5, 6.5], [7.5, 8.5]]  # it does not know that they are of a skeleton
