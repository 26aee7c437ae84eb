"""COCO: what other tools write is read whole, and what is written is what they expect."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import AnnotationFile, ReadContext
from corrflow.runtime.formats.coco import CocoSink
from corrflow.runtime.formats.label_schema import Category, LabelSchema
from corrflow.runtime.formats.packed_masks import RunMask
from corrflow.runtime.formats.registry import read_annotations
from corrflow.runtime.formats.rle import coco_rle, coco_runs
from corrflow.runtime.types import AbsentObject, Frame, FrameResult, KeypointsObject, MaskObject, ObjectResult

SHAPE = (60, 80)
SQUARE = [[10, 20, 30, 20, 30, 40, 10, 40]]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def read(folder: Path, content: object, **context: Any) -> AnnotationFile:
    path = folder / "clip.json"
    path.write_text(json.dumps(content))
    return read_annotations(path, ReadContext("clip", 0, lambda: SHAPE, **context))


def file_of(*annotations: dict[str, Any], names: tuple[str, ...] = ("00000.png",), **more: Any) -> dict[str, Any]:
    images = [{"id": k, "file_name": name, "width": SHAPE[1], "height": SHAPE[0]} for k, name in enumerate(names)]
    listed = [{"id": k + 1, "image_id": 0, "category_id": 1, "iscrowd": 0, **one} for k, one in enumerate(annotations)]
    points = {"keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}
    categories = [{"id": 1, "name": "car", "supercategory": "vehicle", **points}, {"id": 9, "name": "dog"}]
    return {"images": images, "annotations": listed, "categories": categories, **more}


def objects_of(file: AnnotationFile, frame: int | str = "00000") -> list[Any]:
    return list(file.content.frames.get(frame, ()))


@pytest.mark.parametrize("value", [0, 7, 500, "a", "0", 3.0])
@pytest.mark.parametrize("place", ["track_id", "instance_id", "object_id", "group_id", "attributes"])
def test_identities_are_kept_wherever_a_tool_writes_them(tmp_path: Path, place: str, value: object) -> None:
    field = {"attributes": {"track_id": value, "occluded": False}} if place == "attributes" else {place: value}
    (one,) = objects_of(read(tmp_path, file_of({"segmentation": SQUARE, **field})))
    assert one.track_id == (None if place == "group_id" and value in (0, "0") else value)
    assert (one.category, one.name, one.id) == ("car", "car", 0)


def test_polygons_boxes_and_run_lengths_are_masks(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[20:40, 10:30] = True
    runs = coco_rle(mask)
    annotations: list[dict[str, Any]] = [
        {"segmentation": SQUARE},
        {"segmentation": SQUARE[0]},
        {"segmentation": [], "bbox": [10, 20, 20, 20]},
        {"bbox": [10, 20, 20, 20]},
        {"segmentation": runs},
        {"segmentation": runs, "iscrowd": 1},
        {"segmentation": {"size": list(SHAPE), "counts": _compressed(mask)}, "iscrowd": 1},
    ]
    file = read(tmp_path, file_of(*annotations))
    found = objects_of(file)
    assert len(found) == len(annotations) and not file.notes.sentences()
    assert all(np.array_equal(one.mask, mask) for one in found)
    assert np.array_equal(found[0].polygons[0] + 0.5, np.reshape(SQUARE, (4, 2)))
    assert file.content.schema.has_outlines and not file.content.schema.has_only_boxes


def _compressed(mask: np.ndarray) -> str:
    from pycocotools import mask as rle

    encoded: Any = rle.encode(np.asfortranarray(mask, np.uint8))
    return encoded["counts"].decode()


@pytest.mark.parametrize("seed", range(5))
def test_compressed_run_lengths_are_those_of_pycocotools(seed: int) -> None:
    dice = np.random.default_rng(seed)
    mask = dice.random((dice.integers(1, 90), dice.integers(1, 90))) < dice.random()
    encoded = {"size": list(mask.shape), "counts": _compressed(mask)}
    assert np.array_equal(RunMask.of(coco_runs(encoded, mask.shape), mask.shape).unpacked(), mask)
    assert np.array_equal(RunMask.of(coco_runs(coco_rle(mask), mask.shape), mask.shape).unpacked(), mask)


@pytest.mark.parametrize("counts", ["", "0", "zzzz", "PPPP", "\u00e9", [3, 9999], [-1, 4801], [10**30], ["a"], 5])
def test_damaged_run_lengths_are_left_out_with_the_frame_and_the_object(tmp_path: Path, counts: object) -> None:
    file = read(tmp_path, file_of({"segmentation": {"size": list(SHAPE), "counts": counts}}, {"segmentation": SQUARE}))
    assert len(objects_of(file)) == 1
    assert "left out frame '00000', object 'car': " in file.notes.sentences()[0]


def test_a_rotated_box_of_cvat_is_rotated(tmp_path: Path) -> None:
    file = file_of({"segmentation": [], "bbox": [30, 28, 20, 4], "attributes": {"rotation": 90.0}})
    (one,) = objects_of(read(tmp_path, file))
    rows, columns = np.nonzero(one.mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 39, 38, 41)


def test_keypoints_beside_a_mask_are_an_object_of_the_same_identity(tmp_path: Path) -> None:
    points = {"keypoints": [15, 25, 2, 0, 0, 0], "num_keypoints": 1}
    mask, keypoints = objects_of(read(tmp_path, file_of({"segmentation": SQUARE, "track_id": 4, **points})))
    assert isinstance(mask, MaskObject) and isinstance(keypoints, KeypointsObject)
    assert (mask.track_id, keypoints.track_id) == (4, 4) and keypoints.point_names == ("nose",)
    file = read(tmp_path, file_of({"bbox": [10, 20, 20, 10], "keypoints": [10, 20, 2, 30, 30, 1]}))
    (only,) = objects_of(file)  # the box says no more than the points
    assert isinstance(only, KeypointsObject) and only.points.tolist() == [[10, 20], [30, 30]]
    assert file.content.schema.category("car") == Category("car", 1, ("nose", "tail"), ((0, 1),), "vehicle")


def test_a_crowd_an_interpolated_label_and_a_weak_detection_are_ignored_with_a_note(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        file_of(
            {"id": 900100000001, "segmentation": coco_rle(np.ones(SHAPE, bool)), "iscrowd": 1},
            {"segmentation": SQUARE, "attributes": {"track_id": 1, "keyframe": False}},
            {"segmentation": SQUARE, "score": 0.2},
            {"segmentation": SQUARE, "score": 0.9},
        ),
        min_score=0.5,
    )
    assert len(objects_of(file)) == 1 and len(file.notes.ignored) == 3 and not file.notes.left_out


def test_faulty_annotations_are_left_out_and_refused_under_strict(tmp_path: Path) -> None:
    content = file_of(
        {"segmentation": SQUARE},
        {"segmentation": [[1, 2, 3, 4]]},
        {"segmentation": [[200, 200, 210, 200, 210, 210]]},
        {"bbox": [1, 1, 0, 5]},
        {"image_id": 77, "segmentation": SQUARE},
        {"category_id": 9},
        {"keypoints": [1, 1, 2, 3, 3, 2, 5, 5, 2]},
    )
    file = read(tmp_path, content)
    assert len(objects_of(file)) == 2 and len(file.notes.left_out) == 6
    with pytest.raises(InputError, match=r"--strict, got frame '00000', object 'car': .*clip\.json"):
        read(tmp_path, content, is_strict=True)


def test_images_of_another_size_are_left_out(tmp_path: Path) -> None:
    content = file_of({"segmentation": SQUARE}, {"image_id": 1, "segmentation": SQUARE}, names=("0.png", "1.png"))
    content["images"][1] |= {"width": 10**9, "height": 10**9}
    content["images"][0] |= {"width": None, "height": 0}  # not stated: the video's
    file = read(tmp_path, content)
    assert list(file.content.frames) == ["0"] and "not of the video's size" in file.notes.sentences()[0]


@pytest.mark.parametrize(
    ("names", "frames"),
    [
        (("clip/00005.png", "other/00005.png"), ["00005"]),
        (("a\\clip\\00005.png", "a\\other\\00005.png"), ["00005"]),
        (("JPEGImages/clip/5.jpg", "JPEGImages/other/5.jpg"), ["5"]),
        (("clip_00005.png", "other_00005.png"), ["clip_00005"]),
        (("frame_000010.PNG", "frame_000020"), ["frame_000010", "frame_000020"]),
        (("5_png.rf.0a1b.jpg", "6_png.rf.0a1c.jpg"), ["5", "6"]),
        (("a/1.png", "b/1.png"), []),
    ],
)
def test_images_of_the_video_are_selected(tmp_path: Path, names: tuple[str, ...], frames: list[str]) -> None:
    labels = [{"image_id": k, "segmentation": SQUARE} for k in range(2)]
    file = read(tmp_path, file_of(*labels, names=names))
    assert list(file.content.frames) == frames
    assert bool(file.notes.ignored) is (len(frames) < 2)
    shared = read(tmp_path, file_of(*labels, names=names), is_shared=True)
    assert list(shared.content.frames) == (frames if len(frames) < 2 else [])


def test_videos_and_indices_that_the_file_states_decide(tmp_path: Path) -> None:
    labels = [{"image_id": k, "segmentation": SQUARE} for k in range(2)]
    content = file_of(*labels, names=("x1.png", "x2.png"), videos=[{"id": 1, "name": "clip"}, {"id": 2, "name": "b"}])
    content["images"][0] |= {"video_id": 1, "frame_index": 3}
    content["images"][1] |= {"video_id": 2, "frame_index": 3}
    file = read(tmp_path, content, is_shared=True)
    assert list(file.content.frames) == [3] and file.content.schema.image_names == {3: "x1.png"}


def test_youtube_vis_has_a_mask_or_nothing_for_each_frame(tmp_path: Path) -> None:
    runs = coco_rle(np.ones(SHAPE, bool))
    video = {"width": SHAPE[1], "height": SHAPE[0], "length": 4}
    videos = [{"id": 1, "file_names": [f"clip/{5 * k:05d}.jpg" for k in range(4)], **video}]
    videos.append({"id": 2, "file_names": ["b/00000.jpg"], **video})
    annotations = [
        {"id": 8, "video_id": 1, "category_id": 1, "segmentations": [runs, None, None, runs], "iscrowd": 0},
        {"id": 9, "video_id": 2, "category_id": 1, "segmentations": [runs], "iscrowd": 0},
    ]
    file = read(tmp_path, {"videos": videos, "annotations": annotations, "categories": []}, is_shared=True)
    kinds = {frame: type(one) for frame, (one,) in file.content.frames.items()}
    assert kinds == {"00000": MaskObject, "00005": AbsentObject, "00015": MaskObject}
    assert {one.track_id for (one,) in file.content.frames.values()} == {8} and len(file.notes.ignored) == 1


def result(index: int, *objects: ObjectResult, mask: np.ndarray | None = None, file_name: str = "") -> FrameResult:
    frame = Frame(np.zeros((*SHAPE, 3), np.uint8), index, index / 25, f"{index:05d}", file_name)
    return FrameResult(np.zeros(SHAPE, np.uint8) if mask is None else mask, objects, frame)


def written(path: Path, schema: LabelSchema, *results: FrameResult) -> dict[str, Any]:
    with CocoSink(path, schema) as sink:
        for one in results:
            sink.write(one)
    return json.loads(path.read_text())


def test_categories_are_the_classes_with_the_ids_of_the_input(tmp_path: Path) -> None:
    schema = LabelSchema((Category("dog", 9), Category("car", 4, ("nose", "tail"), ((0, 1),), "vehicle")))
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:10, 5:10], mask[20:30, 20:30], mask[40:50, 40:50] = 1, 2, 3
    objects = (
        ObjectResult(1, "left", 0.9, True, (5, 5, 10, 10), category="car", track_id="a"),
        ObjectResult(2, "right", 0.9, True, (20, 20, 30, 30), category="car", track_id=300),
        ObjectResult(3, "", 0.9, True, (40, 40, 50, 50)),
    )
    content = written(tmp_path / "a.json", schema, result(0, *objects, mask=mask))
    assert [(one["id"], one["name"]) for one in content["categories"]] == [(9, "dog"), (4, "car"), (3, "object 3")]
    assert [(one["category_id"], one["track_id"]) for one in content["annotations"]] == [(4, "a"), (4, 300), (3, 3)]
    assert content["categories"][1] == {
        "id": 4, "name": "car", "supercategory": "vehicle", "keypoints": ["nose", "tail"], "skeleton": [[1, 2]],
    }  # fmt: skip
    back = read_annotations(tmp_path / "a.json", ReadContext("a", 0, lambda: SHAPE))
    assert [(one.category, one.track_id) for one in back.content.frames[0]] == [("car", "a"), ("car", 300), ("", 3)]


def test_a_lost_mask_is_absent_and_lost_points_are_zeros(tmp_path: Path) -> None:
    schema = LabelSchema((Category("mouse", 2, ("nose", "ear", "tail")),))
    points = np.array([[10, 11], [20, 21]], np.float32)
    for peaks, seen in (([0.9, 0.01], 1), ([0.01, 0.02], 0)):
        peak = np.array(peaks, np.float32)
        hand = ObjectResult(1, "", 0.5, seen > 0, None, points, ("tail", "nose"), peak, 5, "mouse")
        content = written(tmp_path / "a.json", schema, result(0, hand, ObjectResult(2, "ball", 0.0, False)))
        (one,) = content["annotations"]
        assert one["keypoints"] == [0, 0, 0, 0, 0, 0, *([10, 11, 2] if seen else [0, 0, 0])]
        assert one["num_keypoints"] == seen and one["area"] > 0 and min(one["bbox"][2:]) > 0
        assert one["iscrowd"] == (not seen)  # nothing to train on
        assert len(read_annotations(tmp_path / "a.json", ReadContext("a", 0, lambda: SHAPE)).content.frames) == seen


def test_a_mask_and_points_of_one_instance_are_one_annotation_again(tmp_path: Path) -> None:
    label = {"segmentation": SQUARE, "track_id": 4, "keypoints": [15, 25, 2, 17, 30, 2], "num_keypoints": 2}
    file = read(tmp_path, file_of(label))
    mask, points = file.content.frames["00000"]
    assert isinstance(mask, MaskObject) and isinstance(points, KeypointsObject)
    both = (
        ObjectResult(1, "car", 1, True, (10, 20, 30, 40), None, (), None, 4, "car", True, (), mask.polygons),
        ObjectResult(2, "car", 1, True, None, points.points, points.point_names, np.ones(2), 4, "car", True),
    )
    pixels = mask.mask.astype(np.uint8)
    (one,) = written(tmp_path / "a.json", file.content.schema, result(0, *both, mask=pixels))["annotations"]
    assert one["segmentation"] == SQUARE and one["keypoints"] == label["keypoints"]
    assert one["bbox"] == [10, 20, 20, 20] and one["area"] == 400


@pytest.mark.parametrize("has_outlines", [False, True])
def test_masks_are_polygons_where_the_labels_were(tmp_path: Path, has_outlines: bool) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[20:40, 10:30] = 1
    mask[2, 2] = 1  # a speck
    schema = LabelSchema(image_names={0: "clip/img7.png"}, has_outlines=has_outlines)
    content = written(
        tmp_path / "a.json", schema, result(1, ObjectResult(1, "car", 0.9, True, (2, 2, 30, 40)), mask=mask)
    )
    assert content["images"][0]["file_name"] == "clip/img8.png"
    (one,) = content["annotations"]
    if has_outlines:
        (outline,) = one["segmentation"]
        assert sorted(zip(outline[::2], outline[1::2], strict=True)) == [(10, 20), (10, 40), (30, 20), (30, 40)]
    else:
        assert np.array_equal(RunMask.of(coco_runs(one["segmentation"], SHAPE), SHAPE).unpacked(), mask > 0)


def test_pycocotools_opens_what_is_written(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    mask = np.zeros(SHAPE, np.uint8)
    mask[20:40, 10:30] = 1
    objects = (
        ObjectResult(1, "", 0.9, True, (10, 20, 30, 40), category="car", track_id="x"),
        ObjectResult(2, "", 0.9, True, None, np.array([[5, 6]], np.float32), ("nose",), np.ones(1), 3, "mouse"),
    )
    for has_outlines in (False, True):
        path = tmp_path / f"{has_outlines}.json"
        written(path, LabelSchema(has_outlines=has_outlines), *(result(k, *objects, mask=mask) for k in range(3)))
        with contextlib.redirect_stdout(io.StringIO()):
            loaded = coco.COCO(str(path))
        assert len(loaded.imgs) == 3 and len(loaded.anns) == 6
        assert {loaded.cats[one["category_id"]]["name"] for one in loaded.anns.values()} == {"car", "mouse"}
        masks = [loaded.annToMask(one) for one in loaded.anns.values() if one["track_id"] == "x"]
        assert len(masks) == 3 and all(np.array_equal(one > 0, mask > 0) for one in masks)


def test_a_name_that_is_no_text_of_utf8_is_written_and_read(tmp_path: Path) -> None:
    points = ObjectResult(
        1, "", 1, True, None, np.array([[5, 6]], np.float32), ("nose",), np.ones(1), "\ud800", "\ud801"
    )
    content = written(tmp_path / "a.json", LabelSchema(), result(0, points))
    assert content["annotations"][0]["track_id"] == "\ud800"
