"""Tables of boxes and points: identities are kept, rows that cannot be used are named, wrong values are refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import FileContent, ReadContext
from corrflow.runtime.formats.boxes_csv import BoxCsvSink
from corrflow.runtime.formats.points_csv import KeypointCsvSink, read_keypoints
from corrflow.runtime.formats.registry import read_annotations
from corrflow.runtime.types import Annotation, Frame, FrameResult, KeypointsObject, MaskObject, ObjectResult

SHAPE = (37, 53)


def read(path: Path, **more: Any) -> tuple[dict[Any, list[Annotation]], list[str]]:
    file = read_annotations(path, ReadContext("clip", 0, lambda: more.pop("shape", SHAPE), **more))
    content: FileContent = file.content
    return {key: list(objects) for key, objects in content.frames.items()}, file.notes.sentences()


def table(folder: Path, *lines: str) -> Path:
    (folder / "clip.csv").write_text("\n".join(lines) + "\n")
    return folder / "clip.csv"


def test_boxes_are_the_pixels_with_their_centre_inside(tmp_path: Path) -> None:
    path = table(tmp_path, "frame,object,x0,y0,x1,y1", "3,300,2,3,10,8", "3,cat,-5,-5,4.4,4.6", "4,,0,0,99,99")
    frames, notes = read(path)
    (first, cat), (whole,) = frames[3], frames[4]
    assert isinstance(first, MaskObject) and first.mask[3:8, 2:10].all() and np.count_nonzero(first.mask) == 40
    assert isinstance(cat, MaskObject) and cat.mask[:5, :4].all() and np.count_nonzero(cat.mask) == 20
    assert [(one.track_id, one.name) for one in (first, cat, whole)] == [(300, ""), ("cat", "cat"), (None, "")]
    assert not notes


def test_rows_of_boxes_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    rows = ["0,1,60,3,70,8,1", "0,2,9,9,9,12,1", "0,3,1,1,5,5,0.2", "0,4,1,1,5,5,0.9"]
    path = table(tmp_path, "frame,object,x0,y0,x1,y1,confidence", *rows)
    frames, notes = read(path, min_score=0.5)
    assert [one.track_id for one in frames[0]] == [4]
    assert notes == [
        "left out row 1, frame 0, '1': its box has no pixel in the frame of 53x37 (and 1 more)",
        "left out row 3, frame 0, '3': its confidence is less than 0.5",
    ]
    with pytest.raises(InputError, match="row 1, frame 0, '1'"):
        read(path, is_strict=True)


@pytest.mark.parametrize(
    "row", ["0,1,nan,3,7,8", "0,1,a,3,7,8", "0,1,2,3", "-1,1,2,3,4,5", "x,1,2,3,4,5", "0,1,1e999,3,4,5"]
)
def test_boxes_with_wrong_values_are_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(InputError, match=r"expected a CSV of boxes .*clip\.csv"):
        read(table(tmp_path, "frame,object,x0,y0,x1,y1", row))


def test_thousands_of_boxes_in_large_frames_need_no_memory_and_little_time(tmp_path: Path) -> None:
    path = table(tmp_path, "frame,object,x0,y0,x1,y1", *(f"{k},1,10,10,500,500" for k in range(5000)))
    start = time.monotonic()
    content = read_annotations(path, ReadContext("clip", 0, lambda: (1080, 1920))).content
    assert len(content.frames) == 5000 and time.monotonic() - start < 2
    (one,) = content.frames[4999]
    assert isinstance(one, MaskObject) and one.mask.sum() == 490 * 490


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["name,x,y", "nose,3,5", "tail,7,8"], {0: [("", None, ("nose", "tail"))]}),
        (["frame,object,point,x,y", "2,300,nose,3,5", "2,mouse,nose,3,5"],
         {2: [("", 300, ("nose",)), ("mouse", "mouse", ("nose",))]}),
        (["frame,point,x,y", "2,nose,3,5", "2,tail,,", "3,nose,,"], {2: [("", None, ("nose",))], 3: []}),
        (["frame,point,x,y,confidence", "2,nose,3,5,0.9", "2,tail,9,9,0.01"], {2: [("", None, ("nose",))]}),
        (["3,5", "7,8"], {0: [("", None, ("point1", "point2"))]}),
    ],
)  # fmt: skip
def test_points_are_grouped_by_frame_and_object(tmp_path: Path, lines: list[str], found: dict[int, Any]) -> None:
    frames, _ = read(table(tmp_path, *lines))
    assert {
        frame: [(one.name, one.track_id, one.point_names) for one in objects if isinstance(one, KeypointsObject)]
        for frame, objects in frames.items()
    } == found


def test_a_second_row_for_a_point_is_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, "frame,object,point,x,y", "2,1,nose,3,5", "2,1,nose,9,9", "3,1,nose,9,9")
    frames, notes = read(path)
    assert isinstance(frames[2][0], KeypointsObject) and frames[2][0].points.tolist() == [[3, 5]]
    assert notes == ["left out row 2, frame 2, point 'nose' of '1': the point has a row already on this frame"]


@pytest.mark.parametrize("row", ["nose,nan,3", "nose,a,3", "nose,3", "nose,,3", "nose,inf,3"])
def test_points_with_wrong_values_are_refused(tmp_path: Path, row: str) -> None:
    path = table(tmp_path, "name,x,y", "tail,1,2", row)
    for reader in (read, lambda path: read_keypoints(path, 1)):
        with pytest.raises(InputError, match=r"in keypoint 2 of .*clip\.csv"):
            reader(path)


def test_identities_are_written_back(tmp_path: Path) -> None:
    points = np.array([[3, 4]], np.float32)
    objects = (
        ObjectResult(1, "", 0.9, True, (1, 2, 9, 9), track_id=300),
        ObjectResult(2, "b", 0.9, True, (1, 2, 9, 9), track_id="b"),
        ObjectResult(3, "", 0.9, True, (1, 2, 9, 9), track_id=7, category="car"),
        ObjectResult(4, "", 0.9, True, (1, 2, 9, 9), track_id=7, category="dog"),
        ObjectResult(5, "", 0.9, True, None, points, ("nose",), np.ones(1, np.float32), 500),
    )
    result = FrameResult(np.zeros(SHAPE, np.uint8), objects, Frame(np.zeros((*SHAPE, 3), np.uint8), 0, 0.0, "00000"))
    for sink, name, found in (
        (BoxCsvSink, "boxes.csv", [300, "b", "car 7", "dog 7"]),
        (KeypointCsvSink, "points.csv", [500]),
    ):
        with sink(tmp_path / name) as table_sink:
            table_sink.write(result)
        assert [one.track_id for one in read(tmp_path / name)[0][0]] == found


@pytest.mark.parametrize(
    "whole", ["frame,object,x0,y0,x1,y1\n3,300,2,3,10,8\n", "frame,object,point,x,y\n2,300,nose,3,5\n"]
)
def test_damaged_tables_give_objects_or_one_sentence(tmp_path: Path, whole: str) -> None:
    dice, path = np.random.default_rng(4), tmp_path / "clip.csv"
    for _ in range(60):
        text = whole
        for _ in range(dice.integers(1, 4)):
            start = int(dice.integers(0, len(text)))
            piece = str(dice.choice(["-1", "1e999", "nan", "9" * 30, "", "\n", "\0", '"', ",", ";"]))
            text = text[:start] + piece + text[start + int(dice.integers(0, 6)) :]
        path.write_text(text)
        try:
            read(path)
        except InputError as error:
            assert "\n" not in str(error).replace(repr("\n"), "")
