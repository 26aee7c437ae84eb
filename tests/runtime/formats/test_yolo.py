"""YOLO: what a line is by its numbers, names where tools put them, and one line for each object that is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from corrflow.errors import InputError
from corrflow.runtime.batch.label_discovery import LabelSource, find_annotations
from corrflow.runtime.formats.annotations import FileContent, ReadContext
from corrflow.runtime.formats.label_schema import Category, LabelSchema
from corrflow.runtime.formats.registry import read_annotations
from corrflow.runtime.formats.yolo import YoloSink, without_bridges
from corrflow.runtime.formats.yolo_lines import YoloLine, parse_lines
from corrflow.runtime.types import Annotation, Frame, FrameResult, KeypointsObject, MaskObject, ObjectResult

SHAPE = (50, 100)

BOX = "0.5 0.5 0.2 0.2"
TRIANGLE = "0.1 0.1 0.4 0.1 0.4 0.6"
SQUARE = "0.1 0.1 0.4 0.1 0.4 0.6 0.1 0.6"
FIVE = f"{SQUARE} 0.05 0.3"


def kind(line: YoloLine) -> tuple[str, float | None, int | None]:
    if line.points is not None:
        return f"pose {len(line.points)}", line.confidence, line.track_id
    return "box" if line.corners is None else f"polygon {len(line.corners)}", line.confidence, line.track_id


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        (BOX, ("box", None, None)),
        (f"{BOX} 0.9", ("box", 0.9, None)),
        (f"{BOX} 1.0", ("box", 1.0, None)),
        (f"{BOX} 7", ("box", None, 7)),
        (f"{BOX} 1", ("box", None, 1)),
        (f"{BOX} 0.91 1", ("box", 0.91, 1)),
        (f"{BOX} 0.91 300", ("box", 0.91, 300)),
        (TRIANGLE, ("polygon 3", None, None)),
        ("0.1 0.1 0.9 0.95 0.5 1", ("polygon 3", None, None)),  # the box would leave the image
        (f"{TRIANGLE} 0.9", ("polygon 3", 0.9, None)),
        (f"{TRIANGLE} 12", ("polygon 3", None, 12)),
        (SQUARE, ("polygon 4", None, None)),  # also an oriented box
        (f"{SQUARE} 0.9", ("polygon 4", 0.9, None)),
        (f"{SQUARE} 0.91 3", ("polygon 4", 0.91, 3)),
        (f"{SQUARE} 0.91 1", ("polygon 4", 0.91, 1)),
        (f"{FIVE} 0.8", ("polygon 5", 0.8, None)),
        (FIVE, ("polygon 5", None, None)),
        ("0.1 0.1 0.4 0.1 0.4 0.99 0.1 0.99 0.2 1", ("polygon 5", None, None)),  # two corners at the lower edge
        ("0.1 0.1 0.4 0 0.4 0.6 0.1 0.6 0.2 0", ("polygon 5", None, None)),
        (f"{BOX} 0.4 0.4 2 0.6 0.6 0", ("pose 2", None, None)),
        (f"{BOX} 0.4 0.4 2.000000 0.6 0.6 1.000000 0.7 5", ("pose 2", 0.7, 5)),
    ],
)
def test_the_numbers_of_a_line_say_what_it_is(numbers: str, found: tuple[str, float | None, int | None]) -> None:
    faults: list[str] = []
    (line,) = parse_lines(f"3 {numbers}\n", None, lambda number, why: faults.append(why))
    assert (kind(line), faults, line.index) == (found, [], 3)


@pytest.mark.parametrize(
    ("shape", "numbers", "found"),
    [
        ((2, 3), f"{BOX} 0.4 0.4 1 0.6 0.6 1", ("pose 2", None, None)),
        ((2, 2), f"{BOX} 0.4 0.4 0.6 0.6", ("pose 2", None, None)),
        ((2, 2), f"{BOX} 0.4 0.4 0.6 0.6 0.93", ("pose 2", 0.93, None)),
        ((2, 3), f"{BOX} 0.4 0.4 0.98 0.6 0.6 0.2 0.93 4", ("pose 2", 0.93, 4)),
        ((2, 3), f"{BOX} 0.93", ("box", 0.93, None)),
        ((2, 3), f"{BOX} 0.4 0.4 1 0.6 0.6", None),  # a number is missing: no polygon
    ],
)
def test_the_shape_of_points_makes_a_pose(
    shape: tuple[int, int], numbers: str, found: tuple[str, float | None, int | None] | None
) -> None:
    faults: list[str] = []
    lines = parse_lines(f"0 {numbers}", shape, lambda number, why: faults.append(why))
    assert [kind(line) for line in lines] == ([found] if found else []) and len(faults) == (found is None)


def test_one_confidence_in_a_file_makes_all_additions_confidences() -> None:
    lines = parse_lines(f"0 {BOX} 1\n0 {BOX} 0.7\n", None, lambda number, why: None)
    assert [(line.confidence, line.track_id) for line in lines] == [(1, None), (0.7, None)]


def write_labels(folder: Path, text: str, data: dict[str, Any] | str | None = None, place: str = "") -> Path:
    """Write labels/train/7.txt below a folder, and its data.yaml, or a list of names, at `place`."""
    path = folder / "labels" / "train" / "7.txt"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    if data is not None:
        (folder / place).write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def read(path: Path, **more: Any) -> tuple[list[Annotation], FileContent, list[str]]:
    file = read_annotations(path, ReadContext("clip", path.stem, lambda: SHAPE, **more))
    return [one for objects in file.content.frames.values() for one in objects], file.content, file.notes.sentences()


@pytest.mark.parametrize("place", ["data.yaml", "labels/data.yaml", "labels/train/data.yaml", "my-set.yaml"])
@pytest.mark.parametrize("names", [["car", "dog"], {0: "car", 1: "dog"}, {"0": "car", "1": "dog"}], ids=str)
def test_names_are_found_where_tools_put_them(tmp_path: Path, place: str, names: Any) -> None:
    path = write_labels(tmp_path, f"1 {BOX}\n1 {BOX}\n0 {SQUARE}\n", {"names": names, "train": "images"}, place)
    objects, content, _ = read(path)
    assert [(one.category, one.track_id) for one in objects] == [("dog", None), ("dog", None), ("car", None)]
    assert [(one.name, one.id) for one in content.schema.categories] == [("car", 0), ("dog", 1)]


@pytest.mark.parametrize("place", ["classes.txt", "labels/obj.names", "labels/train/classes.txt", "labels.txt"])
def test_lists_of_names_are_found(tmp_path: Path, place: str) -> None:
    path = write_labels(tmp_path, f"1 {BOX}\n", "car\nwild boar\n", place)
    assert [one.category for one in read(path)[0]] == ["wild boar"]


def test_poses_have_named_points_and_no_mask(tmp_path: Path) -> None:
    data = {
        "names": {0: "mouse"},
        "kpt_shape": [3, 3],
        "kpt_names": {0: ["nose", "left", "right"]},
        "flip_idx": [0, 2, 1],
    }
    path = write_labels(tmp_path, f"0 {BOX} 0.1 0.2 2 0.5 0.5 1 0 0 0\n", data, "data.yaml")
    (mouse,), content, _ = read(path)
    assert isinstance(mouse, KeypointsObject) and mouse.point_names == ("nose", "left")
    assert mouse.points.tolist() == [[10, 10], [50, 25]] and not mouse.is_prediction
    (category,) = content.schema.categories
    assert category.point_names == ("nose", "left", "right") and category.symmetries == ((1, 2),)


def test_what_is_predicted_counts_from_the_least_score(tmp_path: Path) -> None:
    data = {"names": ["mouse"], "kpt_shape": [2, 3]}
    text = f"0 {BOX} 0.1 0.2 0.95 0.5 0.5 0.3 0.8 4\n0 {BOX} 0.1 0.2 0.95 0.5 0.5 0.9 0.4 5\n"
    (mouse,), _, notes = read(write_labels(tmp_path, text, data, "data.yaml"), min_score=0.5)
    assert isinstance(mouse, KeypointsObject) and (mouse.track_id, mouse.point_names) == (4, ("point1",))
    assert mouse.is_prediction and len(notes) == 2
    assert "point 'point2': its likelihood is less than 0.5" in notes[0] and "its confidence is less" in notes[1]


def test_lines_that_cannot_be_understood_are_left_out_by_number(tmp_path: Path) -> None:
    bad = ["car 1 2 3 4", "0 1 2", "-1 0.5 0.5 0.1 0.1", "0 nan 0.5 0.1 0.1", "0 320 240 64 64", "0 0.5 0.5 0 0"]
    objects, _, notes = read(write_labels(tmp_path, "\n".join([*bad, f"0 {BOX}", ""])))
    assert len(objects) == 1 and len(notes) == 5 and "frame '7', line 1: it is not a class and numbers" in notes[0]
    with pytest.raises(InputError, match="line 1: it is not a class and numbers"):
        read(tmp_path / "labels" / "train" / "7.txt", is_strict=True)


def test_results_of_a_video_count_its_frames_from_1(tmp_path: Path) -> None:
    for name, frame in (("clip_12", 11), ("clip_000012", "clip_000012"), ("frame_12", "frame_12")):
        (tmp_path / f"{name}.txt").write_text(f"0 {BOX} 0.9 3")
        assert list(read(tmp_path / f"{name}.txt")[1].frames) == [frame]
    (tmp_path / "clip_0.txt").write_text(f"0 {BOX}")
    assert list(read(tmp_path / "clip_12.txt")[1].frames) == ["clip_12"]


@pytest.mark.parametrize(
    "data", ["names: {0: [a]}", "names: [a]\nkpt_shape: [3]", "names: &a [*a]", "names: {-1: a}", "[", "a: b: c", "- 1"]
)
def test_a_data_yaml_with_other_values_is_one_sentence(tmp_path: Path, data: str) -> None:
    path = write_labels(tmp_path, f"0 {BOX}", data, "data.yaml")
    with pytest.raises(InputError, match=r"in .*data\.yaml") as error:
        read(path)
    assert "\n" not in str(error.value)


def result_of(mask: np.ndarray, *objects: ObjectResult, index: int = 4, file: str = "") -> FrameResult:
    return FrameResult(mask, objects, Frame(np.zeros((*SHAPE, 3), np.uint8), index, 0.0, f"{index:05d}", file))


def masks_of_two() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:15, 10:30], mask[30:45, 12:25], mask[10:40, 60:90] = 1, 1, 2
    return mask


def test_an_object_has_one_line_of_its_class_and_none_where_it_is_lost(tmp_path: Path) -> None:
    mask = masks_of_two()
    cars = [ObjectResult(k, "", 0.9, k < 3, (0, 0, 1, 1), track_id=90 + k, category="car") for k in (1, 2, 3)]
    schema = LabelSchema((Category("dog", 7), Category("car", 9)))
    with YoloSink(tmp_path, "segment", schema) as sink:
        sink.write(result_of(mask, *cars))
    text = (tmp_path / "labels" / "00004.txt").read_text()
    assert [line.split()[0] for line in text.splitlines()] == ["1", "1"]
    assert yaml.safe_load((tmp_path / "data.yaml").read_text())["names"] == ["dog", "car"]
    one, two = (one for one in read(tmp_path / "labels" / "00004.txt")[0] if isinstance(one, MaskObject))
    assert np.array_equal(one.mask, mask == 1) and np.array_equal(two.mask, mask == 2), "bridges are taken out"
    assert len(one.polygons) == 2 and (one.category, one.track_id) == ("car", None)


def test_hand_labels_go_back_as_they_came(tmp_path: Path) -> None:
    line = "0 0.1 0.11 0.42 0.1 0.4 0.62 0.15 0.67\n"
    (car,), content, _ = read(write_labels(tmp_path, line, {"names": ["car"]}, "data.yaml"))
    assert isinstance(car, MaskObject)
    obj = ObjectResult(1, "car", 1.0, True, (0, 0, 1, 1), category="car", is_annotation=True, polygons=car.polygons)
    with YoloSink(tmp_path / "out", "segment", replace(content.schema, image_names={7: "7.jpg"})) as sink:
        sink.write(result_of(car.mask.astype(np.uint8), obj, index=7))
    assert (tmp_path / "out" / "labels" / "7.txt").read_text() == line


def test_hidden_points_are_zeros_in_the_order_of_the_skeleton(tmp_path: Path) -> None:
    points = np.array([[30, 20], [10, 10]], np.float32)
    mouse = ObjectResult(1, "", 0.9, True, None, points, ("left ear", "nose"), np.array([0.01, 0.9], np.float32),
                         category="mouse")  # fmt: skip
    lost = ObjectResult(
        2, "", 0.0, False, None, points, ("left ear", "nose"), np.zeros(2, np.float32), category="mouse"
    )
    schema = LabelSchema((Category("cage"), Category("mouse", 1, ("nose", "left ear", "right ear"))))
    with YoloSink(tmp_path, "pose", schema) as sink:
        sink.write(result_of(np.zeros(SHAPE, np.uint8), mouse, lost))
    assert (tmp_path / "labels" / "00004.txt").read_text() == "1 0.1 0.2 0.02 0.04 0.1 0.2 2 0 0 0 0 0 0\n"
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert (data["names"], data["kpt_shape"], data["flip_idx"]) == (["cage", "mouse"], [3, 3], [0, 2, 1])
    assert data["kpt_names"] == {1: ["nose", "left ear", "right ear"]}


@pytest.mark.parametrize(
    ("image", "place"),
    [
        ("frame_000004.PNG", "labels/frame_000004.txt"),
        ("a/b/4.jpg", "labels/a/b/4.txt"),
        ("../x/4.jpg", "labels/x/4.txt"),
        ("images/train/4.jpg", "images/labels/train/4.txt"),  # as loaders find it for images/images/train/4.jpg
    ],
)
def test_labels_have_the_name_of_their_image(tmp_path: Path, image: str, place: str) -> None:
    with YoloSink(tmp_path, "segment", LabelSchema(image_names={4: image})) as sink:
        sink.write(result_of(np.zeros(SHAPE, np.uint8)))
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")] == [place]


def test_a_polygon_of_many_bridges_is_split_in_bounded_time() -> None:
    comb = np.array([[k % 7, k] for k in range(3000)] + [[k % 7, k] for k in range(2999, -1, -1)], float) / 3000
    assert len(without_bridges(comb)) == 1
    assert len(without_bridges(np.random.default_rng(0).random((300, 2)))) == 1


def test_damaged_files_give_objects_or_one_sentence(tmp_path: Path) -> None:
    dice = np.random.default_rng(2)
    whole = f"0 {SQUARE} 0.9 3\n1 {BOX}\n0 {BOX} 0.5 0.5 2 0.4 0.4 1\n"
    for number in range(80):
        text = whole
        for _ in range(dice.integers(1, 4)):
            start = int(dice.integers(0, len(text)))
            piece = str(dice.choice(["-1", "1e999", "nan", "99999999999", "", "\n", "\0", " ", "x", "1e-320"]))
            text = text[:start] + piece + text[start + int(dice.integers(0, 12)) :]
        path = tmp_path / f"{number}.txt"
        path.write_text(text)
        try:
            read(path)
        except InputError as error:
            assert "\n" not in str(error)


def test_predictions_on_a_video_are_found_beside_those_of_others(tmp_path: Path) -> None:
    for name in ("clip_1", "clip_12", "clip_b_3", "clip", "other_1"):
        (tmp_path / f"{name}.txt").write_text(f"0 {BOX} 0.9 300\n")
    (tmp_path / "classes.txt").write_text("car\n")
    source = LabelSource(tmp_path, "clip", Path("clip.mp4"))
    found = find_annotations(source, lambda: SHAPE)
    assert found.frames == (0, 11)
    assert {one.prompt.track_id for objects in found.objects.values() for one in objects} == {300}
    assert tmp_path / "classes.txt" in source.files()
