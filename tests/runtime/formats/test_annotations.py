"""Annotations: frames by name or number, notes on what is left out, and no labels of another video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import (
    AnnotationFile,
    Annotations,
    FaultyLabel,
    FileContent,
    FrameKey,
    Notes,
    ReadContext,
    frame_finder,
    stands_for,
)
from corrflow.runtime.formats.label_schema import Category, LabelSchema, merged
from corrflow.runtime.formats.label_summary import object_summaries, spans_text, summary_lines, summary_record
from corrflow.runtime.types import AbsentObject, Annotation, Frame, KeypointsObject, MaskObject

SIZE = (20, 30)


def mask(track_id: int = 1, size: tuple[int, int] = SIZE) -> MaskObject:
    return MaskObject(0, np.ones(size, bool), "car", track_id, "vehicle")


def file(frames: dict[FrameKey, list[Annotation]]) -> AnnotationFile:
    return AnnotationFile(Path("labels.json"), "coco", FileContent(frames))


def frame(index: int) -> Frame:
    return Frame(np.zeros((*SIZE, 3), np.uint8), index, 0.0, f"{index:05d}")


@pytest.mark.parametrize(
    ("names", "key", "index"),
    [
        (None, 12, 12),
        (None, "00012", 12),
        (None, "frame_000012", 12),
        (None, "img12", 12),
        (None, "cover", None),
        (["img10", "img19", "img20"], "img10", 0),
        (["img10", "img19", "img20"], "IMG10", 0),
        (["img10", "img19", "img20"], "00019", 1),
        (["img10", "img19", "img20"], 2, 2),
        (["img10", "img19", "img20"], 10, None),
        (["img10", "img19", "img20"], "img11", None),
        (["a_1", "b_1"], "b_1", 1),
        (["a_1", "b_1"], "frame_1", None),
        (["cat", "dog"], "dog", 1),
    ],
)
def test_a_frame_is_found_by_name_or_by_the_number_at_its_end(
    names: list[str] | None, key: FrameKey, index: int | None
) -> None:
    assert frame_finder(names)(key) == index


@pytest.mark.parametrize(
    "name", ["clip", "Clip.MP4", "videos/clip.mp4", "labeled-data/clip", "clip/img7.png", "C:\\v\\clip.avi"]
)
def test_a_name_or_path_stands_for_a_video(name: str) -> None:
    assert stands_for(name, "clip")


@pytest.mark.parametrize("name", ["clip2", "clip/other.mp4", "my clip.mp4", "clip.2", "other/img7.png", ""])
def test_other_names_do_not(name: str) -> None:
    assert not stands_for(name, "clip")


def test_a_file_of_one_video_is_for_the_video_that_it_is_named_after() -> None:
    own = ReadContext("clip", 0, lambda: SIZE)
    shared = ReadContext("clip", 0, lambda: SIZE, is_shared=True)
    assert own.select_videos(["old-name.mp4"]) == {"old-name.mp4"} and shared.select_videos(["old-name.mp4"]) == set()
    for context in (own, shared):
        assert context.select_videos(["a/clip.mp4", "other.mp4"]) == {"a/clip.mp4"}
        assert context.select_videos(["x.mp4", "other.mp4"]) == set()


def test_what_does_not_fit_its_frame_is_left_out_with_file_frame_and_object() -> None:
    names = ("nose", "tail")
    points = KeypointsObject(0, np.array([[3, 4], [99, 4]], np.float32), names, "mouse", 5)
    annotations = Annotations.of([file({0: [mask(1), mask(2, (20, 29)), points, mask(1)]})])
    usable = annotations.usable_on(frame(0))
    assert [(one.prompt.name, one.prompt.track_id) for one in usable] == [("car", 1), ("mouse", 5)]
    kept = usable[1].prompt
    assert isinstance(kept, KeypointsObject) and kept.point_names == ("nose",) and kept.points.tolist() == [[3, 4]]
    notes = "\n".join(annotations.notes)
    assert "labels.json: left out frame 0, 'car': its mask is 29x20 and the frame 30x20" in notes
    assert "frame 0, 'mouse', point 'tail' at (99, 4): it is outside of the frame of 30x20" in notes
    assert "frame 0, 'car': its identity is on this frame twice" in notes
    strict = Annotations.of([file({0: [mask(2, (20, 29))]})], is_strict=True)
    with pytest.raises(InputError, match=r"under --strict, got frame 0, 'car' in labels.json: its mask is 29x20"):
        strict.usable_on(frame(0))


def test_a_frame_that_a_folder_of_images_lacks_is_left_out() -> None:
    annotations = Annotations.of([file({"img1": [mask()], "img9": [mask()]})], ["img1", "img2"])
    assert annotations.frames == (0,) and "left out frame 'img9': the video has no such frame" in annotations.notes[0]
    with pytest.raises(InputError, match=r"under --strict, got frame 'img9' in labels.json"):
        Annotations.of([file({"img9": [mask()]})], ["img1", "img2"], is_strict=True)


def test_notes_count_labels_of_one_reason() -> None:
    context = ReadContext("clip", 0, lambda: SIZE)
    for index in range(7):
        context.leave_out(f"row {index}", "it has no name")
    context.ignore("video 'other'", "labels of another video")
    assert context.notes.sentences() == [
        "left out row 0: it has no name (and 6 more)",
        "left out video 'other': labels of another video",
    ]
    with pytest.raises(FaultyLabel, match="row 7: it has no name"):
        ReadContext("clip", 0, lambda: SIZE, is_strict=True).leave_out("row 7", "it has no name")
    notes = Notes()
    for index in range(1000):
        notes.add(notes.left_out, "a label", f"reason {index}")
    assert len(notes.left_out) < 30, "a file of faults does not fill the memory"


def test_a_summary_names_files_frames_objects_identities_and_what_is_left_out() -> None:
    points = KeypointsObject(0, np.zeros((2, 2), np.float32), ("nose", "tail"), "mouse", "m1", "rodent")
    labels = file({0: [mask(300), points], 8: [AbsentObject(0, "car", 300, "vehicle")], 9: [points]})
    labels.notes.add(labels.notes.left_out, "frame 3", "it has no shape")
    annotations = Annotations.of([labels])
    lines = summary_lines("clip", annotations)
    assert lines == [
        "clip: 2 objects on 3 frames (0, 8-9)",
        "  labels.json: coco, 3 frames",
        "    left out frame 3: it has no shape",
        "  id 1: car (vehicle), track 300, mask, on 2 frames (0, 8), out of the picture from frame 8",
        "  id 2: mouse (rodent), track m1, 2 points: nose, tail, on 2 frames (0, 9)",
    ]
    record = summary_record(annotations, annotations.notes)
    assert [one["track_id"] for one in record["objects"]] == [300, "m1"] and record["notes"] == annotations.notes
    assert [one.kind for one in object_summaries(annotations)] == ["mask", "2 points"]


def test_spans_are_short() -> None:
    assert spans_text([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert spans_text(range(0, 100, 2)) == "0, 2, 4, 6, 8, 10, and 44 more"


def test_images_have_the_names_of_the_labels_or_their_style() -> None:
    schema = LabelSchema(image_names={3: "sub/frame_000003.PNG"})
    assert schema.image_name(frame(3)) == "sub/frame_000003.PNG"
    assert schema.image_name(frame(12)) == "sub/frame_000012.PNG"
    shifted = LabelSchema(image_names={3: "img04.png"})
    assert shifted.image_name(frame(0)) == "img01.png"
    own = Frame(np.zeros((*SIZE, 3), np.uint8), 5, 0.0, "b7", "b7.tif")
    assert schema.image_name(own) == "sub/b7.tif" and LabelSchema().image_name(own) == "b7.tif"
    assert LabelSchema().image_name(frame(5)) == "00005.jpg"


def test_schemas_of_several_files_are_united() -> None:
    one = LabelSchema((Category("fly", 3, ("head",)),), "anna", {0: "a.png"})
    other = LabelSchema((Category("fly", 9, ("head", "wing")), Category("ant", 1)), "ben", {0: "b.png", 1: "c.png"})
    both = merged([one, other])
    assert both.categories == (Category("fly", 3, ("head", "wing")), Category("ant", 1))
    assert both.scorer == "anna" and both.image_names == {0: "a.png", 1: "c.png"}
