"""Ultralytics loads our data sets with its own loader, finds the images, and has the same polygons and points."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from helpers.tools import ask_tool

from corrflow.runtime.formats.label_schema import Category, LabelSchema
from corrflow.runtime.formats.yolo import YoloSink
from corrflow.runtime.types import Frame, FrameResult, ObjectResult

SHAPE = (60, 90)
POINTS = np.array([[10, 12], [40.5, 30.25]], np.float32)
SCHEMA = LabelSchema((Category("dog", 0), Category("car", 1, ("left", "right"))))

LOAD = """
import json, os, sys
os.environ.update(YOLO_CONFIG_DIR=sys.argv[1], YOLO_OFFLINE="1", YOLO_AUTOINSTALL="0", YOLO_VERBOSE="0")
import numpy
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset, polygons2masks
sets = {}
for task in sys.argv[2:]:
    data = check_det_dataset(os.path.join(sys.argv[1], task, "data.yaml"), autodownload=False)
    found = YOLODataset(img_path=data["train"], data=data, task=task, augment=False)
    labels = []
    for label in found.labels:
        height, width = label["shape"]
        polygons = [(part * [width, height]).reshape(-1) for part in label["segments"]]
        labels.append({
            "image": os.path.basename(label["im_file"]),
            "classes": label["cls"][:, 0].tolist(),
            "boxes": label["bboxes"].tolist(),
            "masks": [numpy.flatnonzero(polygons2masks((height, width), [one], 1, 1)[0]).tolist() for one in polygons],
            "points": None if label["keypoints"] is None else label["keypoints"].tolist(),
        })
    settings = {key: data.get(key) for key in ("names", "kpt_shape", "flip_idx", "kpt_names")}
    sets[task] = {"labels": labels, "files": len(found.im_files), "settings": settings}
print(json.dumps(sets))
"""


def results() -> list[FrameResult]:
    found = []
    for index in range(3):
        mask = np.zeros(SHAPE, np.uint8)
        cv2.circle(mask, (30 + index, 30), 14, 1, -1)
        cv2.rectangle(mask, (60, 5), (80, 20), 2, -1)
        cv2.rectangle(mask, (60, 40), (70, 55), 2, -1)
        objects = (
            ObjectResult(1, "", 0.9, index < 2, (0, 0, 1, 1), category="dog"),
            ObjectResult(2, "", 0.9, True, (0, 0, 1, 1), category="car"),
            ObjectResult(3, "", 0.9, index < 2, None, POINTS, ("left", "right"),
                         np.array([0.9 * (index < 2), 0.01], np.float32), category="car"),
        )  # fmt: skip
        frame = Frame(np.full((*SHAPE, 3), 90 + index, np.uint8), index, 0.0, f"{index:05d}", f"{index:05d}.png")
        found.append(FrameResult(mask if index < 2 else mask * (mask == 2), objects, frame))
    return found


def write(folder: Path, task: Literal["segment", "pose"]) -> None:
    (folder / "images").mkdir(parents=True)
    with YoloSink(folder, task, SCHEMA) as sink:
        for result in results():
            sink.write(result)
            cv2.imwrite(str(folder / "images" / result.frame.file_name), result.frame.image)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Load both data sets in one process, because Ultralytics needs ten seconds to start."""
    folder = tmp_path_factory.mktemp("sets")
    write(folder / "segment", "segment")
    write(folder / "pose", "pose")
    return ask_tool("ultralytics", LOAD, folder, "segment", "pose")


def test_ultralytics_loads_masks(loaded: dict[str, Any]) -> None:
    found = loaded["segment"]
    assert found["files"] == 3 and list(found["settings"]["names"].values()) == ["dog", "car"]
    for label, result in zip(found["labels"], results(), strict=True):
        assert label["image"] == result.frame.file_name
        assert label["classes"] == ([0, 1] if result.frame.index < 2 else [1])
        for number, pixels in zip(label["classes"], label["masks"], strict=True):
            mask = np.zeros(SHAPE, np.uint8)
            mask.ravel()[pixels] = 1
            wanted = (result.mask == number + 1).astype(np.uint8)
            square = np.ones((3, 3), np.uint8)
            missing = np.asarray(cv2.erode(wanted, square)) > mask
            extra = mask > np.asarray(cv2.dilate(wanted, square))
            # Ultralytics draws the bridge between the two components of the car, one pixel wide.
            assert not missing.any() and np.count_nonzero(extra) <= (20 if number else 0)


def test_ultralytics_loads_points(loaded: dict[str, Any]) -> None:
    found = loaded["pose"]
    settings = found["settings"]
    assert (settings["kpt_shape"], settings["flip_idx"]) == ([2, 3], [1, 0])
    assert [len(label["classes"]) for label in found["labels"]] == [1, 1, 0]
    for label in found["labels"][:2]:
        assert label["classes"] == [1]
        (points,) = np.array(label["points"])
        assert points[0].tolist() == pytest.approx([10 / 90, 12 / 60, 2], abs=1e-6) and not points[1].any()
        assert min(label["boxes"][0][2:]) > 0


def test_supervision_loads_masks(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    write(tmp_path, "segment")
    places = [str(tmp_path / name) for name in ("images", "labels", "data.yaml")]
    found = supervision.DetectionDataset.from_yolo(*places)
    masks = {Path(path).name: one for path, one in found.annotations.items()}
    for result in results()[:2]:
        one = masks[result.frame.file_name]
        assert [found.classes[k] for k in one.class_id] == ["dog", "car"]
        assert np.count_nonzero(one.mask[0] ^ (result.mask == 1)) < 40
