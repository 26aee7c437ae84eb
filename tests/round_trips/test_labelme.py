"""LabelMe opens our files: its own loader and rasteriser give the same objects and points."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.tools import ask_tool

from corrflow.runtime.formats.annotations import ReadContext
from corrflow.runtime.formats.labelme import LabelMeSink
from corrflow.runtime.formats.registry import read_annotations
from corrflow.runtime.types import Frame, FrameResult, MaskObject, ObjectResult

SHAPE = (60, 90)

# LabelMe imports Qt and imgviz for its window, which its loader does not use.
LOAD = """
import json, sys
from unittest.mock import MagicMock
for name in ("PyQt5", "PyQt5.QtCore", "PyQt5.QtGui", "PyQt5.QtWidgets", "imgviz", "imgviz.io"):
    sys.modules[name] = MagicMock()
import labelme, numpy
found = []
for path in sys.argv[1:]:
    file = labelme.LabelFile(path)
    shapes = []
    for shape in file.shapes:
        entry = {key: shape[key] for key in ("label", "group_id", "shape_type", "points")} | shape["other_data"]
        if shape["shape_type"] != "point":
            mask = labelme.utils.shape_to_mask((60, 90), shape["points"], shape["shape_type"])
            entry["pixels"] = numpy.flatnonzero(mask).tolist()
        shapes.append(entry)
    found.append({"image": file.image_path, "bytes": len(file.image_data), "shapes": shapes})
print(json.dumps(found))
"""


def results() -> list[FrameResult]:
    found = []
    for index in range(3):
        mask = np.zeros(SHAPE, np.uint8)
        cv2.circle(mask, (30 + index, 30), 14, 1, -1)
        cv2.rectangle(mask, (60, 10), (80, 20), 2, -1)
        cv2.rectangle(mask, (60, 40), (70, 55), 2, -1)
        points = np.array([[5, 6], [7, 8]], np.float32)
        objects = (
            ObjectResult(1, "", 0.9, index < 2, (0, 0, 1, 1), track_id=300, category="ball"),
            ObjectResult(2, "", 0.9, True, (0, 0, 1, 1), track_id="b", category="box"),
            ObjectResult(3, "", 0.9, True, None, points, ("nose", "tail"), np.array([0.9, 0.01]), 7, "mouse"),
        )
        frame = Frame(np.full((*SHAPE, 3), 90, np.uint8), index, 0.0, f"{index:05d}", f"{index:05d}.png")
        found.append(FrameResult(mask if index < 2 else mask * (mask == 2), objects, frame))
    return found


def test_labelme_opens_what_is_written(tmp_path: Path) -> None:
    frames = results()
    with LabelMeSink(tmp_path) as sink:
        for result in frames:
            sink.write(result)
            cv2.imwrite(str(tmp_path / result.frame.file_name), result.frame.image)
    paths = sorted(tmp_path.glob("*.json"))
    for loaded, path, result in zip(ask_tool("labelme", LOAD, *paths), paths, frames, strict=True):
        assert loaded["image"] == result.frame.file_name and loaded["bytes"] > 0
        own = {one.category: one for one in _masks(path, result.frame.name)}
        masks: dict[str, np.ndarray] = {}
        for shape in loaded["shapes"]:
            if shape["shape_type"] == "point":
                assert (shape["label"], shape["group_id"], shape["points"]) == ("nose", 7, [[5.5, 6.5]])
                continue
            pixels = masks.setdefault(shape["label"], np.zeros(SHAPE, bool))
            pixels.ravel()[shape["pixels"]] = True
        assert set(masks) == ({"ball", "box"} if result.frame.index < 2 else {"box"})
        for number, label in ((1, "ball"), (2, "box")):
            if label in masks:
                assert np.array_equal(own[label].mask, masks[label]), "read as LabelMe draws it"
                _assert_within_a_pixel(masks[label], result.mask == number)


def test_supervision_loads_the_same_masks(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    frames = results()
    with LabelMeSink(tmp_path) as sink:
        for result in frames:
            sink.write(result)
            cv2.imwrite(str(tmp_path / result.frame.file_name), result.frame.image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it passes over points
        loaded = supervision.DetectionDataset.from_labelme(str(tmp_path), str(tmp_path))
    for path, found in loaded.annotations.items():
        result = next(one for one in frames if one.frame.file_name == Path(path).name)
        for mask, number in zip(found.mask, found.class_id, strict=True):
            _assert_within_a_pixel(mask, result.mask == {"ball": 1, "box": 2}[loaded.classes[int(number)]])


def _masks(path: Path, frame: str) -> list[MaskObject]:
    content = read_annotations(path, ReadContext("clip", frame, lambda: SHAPE)).content
    return [one for objects in content.frames.values() for one in objects if isinstance(one, MaskObject)]


def _assert_within_a_pixel(found: np.ndarray, wanted: np.ndarray) -> None:
    square = np.ones((3, 3), np.uint8)
    assert not (found & ~cv2.dilate(wanted.astype(np.uint8), square).astype(bool)).any()
    assert not (cv2.erode(wanted.astype(np.uint8), square).astype(bool) & ~found).any()
