"""CVAT: both of its exports are read, and written as its tasks take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import AnnotationFile, Annotations, ReadContext
from corrflow.runtime.formats.cvat import CvatSink
from corrflow.runtime.formats.label_schema import Category, LabelSchema
from corrflow.runtime.formats.registry import read_annotations
from corrflow.runtime.types import AbsentObject, Frame, FrameResult, KeypointsObject, MaskObject, ObjectResult

SHAPE = (60, 80)
SIZE = "<original_size><width>80</width><height>60</height></original_size>"
BOX = 'xtl="10.00" ytl="20.00" xbr="30.00" ybr="40.00" z_order="0"'


def read(folder: Path, body: str, meta: str = f"<task>{SIZE}</task>", **context: Any) -> AnnotationFile:
    path = folder / "clip.xml"
    head = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta>{meta}</meta>'
    path.write_text(f"{head}{body}</annotations>")
    return read_annotations(path, ReadContext("clip", 0, lambda: SHAPE, **context))


def image(shapes: str, name: str = "frame_000005", more: str = "") -> str:
    return f'<image id="0" name="{name}" width="80" height="60" {more}>{shapes}</image>'


def one_of(file: AnnotationFile, frame: int | str = "frame_000005") -> Any:
    (one,) = file.content.frames[frame]
    return one


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        (f'<box label="car" {BOX}></box>', (10, 20, 30, 40)),
        ('<box label="car" xtl="30" ytl="28" xbr="50" ybr="32" rotation="90.00"/>', (38, 20, 42, 40)),
        ('<ellipse label="car" cx="40.00" cy="30.00" rx="20.00" ry="10.00"/>', (20, 20, 60, 40)),
        ('<ellipse label="car" cx="40.00" cy="30.00" rx="20.00" ry="10.00" rotation="90"/>', (30, 10, 50, 50)),
        ('<polygon label="car" points="10,20;30,20;30,40;10,40"/>', (10, 20, 30, 40)),
        ('<mask label="car" rle="0, 400" left="10" top="20" width="20" height="20"/>', (10, 20, 30, 40)),
    ],
)
def test_shapes_with_an_area_are_masks(tmp_path: Path, shape: str, box: tuple[int, ...]) -> None:
    file = read(tmp_path, image(shape))
    one = one_of(file)
    assert isinstance(one, MaskObject) and bounds(one.mask) == box and one.category == "car"
    assert not file.notes.sentences()
    assert file.content.schema.has_only_boxes is (shape.startswith("<box") and "rotation" not in shape)
    assert file.content.schema.has_outlines is shape.startswith("<polygon")


def test_a_rotation_turns_clockwise(tmp_path: Path) -> None:
    one = one_of(read(tmp_path, image('<box label="car" xtl="20" ytl="28" xbr="60" ybr="32" rotation="30"/>')))
    assert one.mask[38, 54] and one.mask[21, 25] and not one.mask[21, 54]


def test_lines_cuboids_tags_and_damaged_shapes_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    shapes = (
        '<polyline label="way" points="1,1;2,2"/><cuboid label="c"/><tag label="night"/>'
        '<box label="car" xtl="5" ytl="5" xbr="2" ybr="9"/><polygon label="car" points="1,2;3"/><box label="car"/>'
        '<mask label="car" rle="0, 9" left="79" top="0" width="3" height="3"/>'
        '<polygon label="c" points="200,1;210,1;210,9"/>'
        f'<box label="car" {BOX}/>'
    )
    file = read(tmp_path, image(shapes))
    assert bounds(one_of(file).mask) == (10, 20, 30, 40)
    assert len(file.notes.ignored) == 3 and sum(count for _, count in file.notes.left_out.values()) == 5
    assert any("frame 'frame_000005', mask 'car': it leaves the image" in note for note in file.notes.sentences())
    with pytest.raises(InputError, match=r"--strict, got frame 'frame_000005', box 'car'"):
        read(tmp_path, image(shapes), is_strict=True)


@pytest.mark.parametrize(
    ("more", "inner", "identity"),
    [
        ("", "", None),
        ('group_id="0"', "", None),
        ('group_id="300"', "", 300),
        ('group_id="3"', '<attribute name="track_id">a7</attribute>', "a7"),
        ("", '<attribute name="track_id">0</attribute>', 0),
    ],
)
def test_identities_of_images_are_attributes_or_groups(
    tmp_path: Path, more: str, inner: str, identity: int | str | None
) -> None:
    assert one_of(read(tmp_path, image(f'<box label="car" {more} {BOX}>{inner}</box>'))).track_id == identity


def test_shapes_of_one_group_and_label_are_one_object(tmp_path: Path) -> None:
    other = 'xtl="50" ytl="5" xbr="60" ybr="15"'
    boxes = f'<box label="car" group_id="3" {BOX}/><box label="car" group_id="3" {other}/>'
    one = one_of(read(tmp_path, image(boxes)))
    assert bounds(one.mask) == (10, 5, 60, 40) and one.mask.sum() == 500 and len(one.polygons) == 2


SKELETON = """<skeleton label="person" z_order="0">
<points label="head" source="manual" outside="0" occluded="0" points="10.50,20.50"></points>
<points label="foot" source="manual" outside="1" occluded="0" points="10.50,30.50"></points></skeleton>"""
LABELS = """<task><labels><label><name>person</name><type>skeleton</type><svg>
&lt;circle data-node-id="1" data-label-name="head"&gt;&lt;circle data-node-id="2" data-label-name="foot"&gt;
&lt;line data-type="edge" data-node-from="2" data-node-to="1"&gt;</svg></label>
<label><name>head</name><type>points</type><parent>person</parent></label>
<label><name>foot</name><type>points</type><parent>person</parent></label>
<label><name>car</name><type>any</type></label></labels></task>"""


def test_points_and_skeletons_are_keypoints(tmp_path: Path) -> None:
    file = read(tmp_path, image(SKELETON + '<points label="spot" points="5.5,6.5;7.5,8.5"/>'), LABELS)
    person, spot = file.content.frames["frame_000005"]
    assert isinstance(person, KeypointsObject) and isinstance(spot, KeypointsObject)
    assert person.point_names == ("head",) and person.points.tolist() == [[10, 20]]
    assert spot.point_names == ("point1", "point2") and spot.points.tolist() == [[5, 6], [7, 8]]
    assert file.content.schema.categories == (
        Category("person", None, ("head", "foot"), ((1, 0),)),
        Category("car"),
    )
    assert "point 'foot'" in file.notes.sentences()[0]


def shape(frame: int, outside: int = 0, keyframe: int = 1, tag: str = "box") -> str:
    return f'<{tag} frame="{frame}" outside="{outside}" keyframe="{keyframe}" {BOX}></{tag}>'


def test_keyframes_of_tracks_are_labels_and_outside_is_absent(tmp_path: Path) -> None:
    body = f'<track id="0" label="car">{shape(2)}{shape(3, keyframe=0)}{shape(8, 1)}{shape(15)}</track>'
    file = read(tmp_path, body)
    kinds = {frame: (type(one), one.track_id) for frame, (one,) in file.content.frames.items()}
    assert kinds == {2: (MaskObject, 0), 8: (AbsentObject, 0), 15: (MaskObject, 0)}
    assert list(file.notes.ignored) == ["CVAT interpolated them"]


@pytest.mark.parametrize("step", [1, 5])
def test_a_shape_that_cvat_exports_as_a_track_of_one_frame_is_no_track(tmp_path: Path, step: int) -> None:
    body = "".join(f'<track id="{k}" label="car">{shape(f)}{shape(f + step, 1)}</track>' for k, f in ((0, 5), (1, 20)))
    file = read(tmp_path, body, f"<task>{SIZE}<frame_filter>step={step}</frame_filter></task>")
    assert {frame: one.track_id for frame, (one,) in file.content.frames.items()} == {5: None, 20: None}
    assert len(Annotations.of([file]).objects[20]) == 1
    assert Annotations.of([file]).objects[20][0].prompt.id == Annotations.of([file]).objects[5][0].prompt.id


@pytest.mark.parametrize("nested", [False, True])
def test_skeletons_of_tracks(tmp_path: Path, nested: bool) -> None:
    def point(name: str, frame: int, outside: int, keyframe: int = 1) -> str:
        state = f'outside="{outside}" keyframe="{keyframe}" points="{frame + 0.5},20.5"'
        return f'<points label="{name}" frame="{frame}" {state}/>' if nested else f'<points label="{name}" {state}/>'

    frames = [(2, 0, 0, 1), (5, 0, 0, 0), (8, 1, 1, 1), (12, 0, 1, 1)]
    if nested:
        parts = [
            f'<track label="{name}">{"".join(point(name, f[0], f[1 + k], f[3]) for f in frames)}</track>'
            for k, name in enumerate(("head", "foot"))
        ]
    else:
        parts = [
            f'<skeleton frame="{f}" keyframe="{key}">{point("head", f, a, key)}{point("foot", f, b, key)}</skeleton>'
            for f, a, b, key in frames
        ]
    file = read(tmp_path, f'<track id="4" label="person">{"".join(parts)}</track>')
    found = {frame: one for frame, (one,) in file.content.frames.items()}
    assert {frame: type(one) for frame, one in found.items()} == {
        2: KeypointsObject, 8: AbsentObject, 12: KeypointsObject,
    }  # fmt: skip
    first, gone, last = found[2], found[8], found[12]
    assert isinstance(first, KeypointsObject) and isinstance(last, KeypointsObject) and isinstance(gone, AbsentObject)
    assert first.point_names == ("head", "foot") and last.point_names == ("head",)
    assert last.points.tolist() == [[12, 20]] and not gone.is_mask


@pytest.mark.parametrize("meta", [f"<task>{SIZE}</task>", f"<job><id>4</id></job>{SIZE}", f"<job>{SIZE}</job>", ""])
def test_the_size_stands_in_several_places_or_nowhere(tmp_path: Path, meta: str) -> None:
    body = f'<track id="0" label="car">{shape(2)}</track>'
    assert list(read(tmp_path, body, meta).content.frames) == [2]
    if meta:
        file = read(tmp_path, body, meta.replace("60", "90"))
        assert not file.content.frames and "80x90" in file.notes.sentences()[0]


PROJECT = f"""<project><tasks>
<task><id>7</id><name>one</name><source>clip.mp4</source>{SIZE}</task><task><id>8</id><name>other</name>{SIZE}</task>
</tasks></project>"""


@pytest.mark.parametrize("is_shared", [False, True])
def test_only_the_tasks_of_the_video_are_read(tmp_path: Path, is_shared: bool) -> None:
    body = image(f'<box label="a" {BOX}/>', "frame_000001", 'task_id="7"')
    body += image(f'<box label="b" {BOX}/>', "frame_000002", 'task_id="8"')
    body += "".join(f'<track id="{t}" label="c" task_id="{t}">{shape(t)}</track>' for t in (7, 8))
    file = read(tmp_path, body, PROJECT, is_shared=is_shared)
    assert list(file.content.frames) == ["frame_000001", 7]
    assert file.notes.ignored["labels of another video"][1] == 2


@pytest.mark.parametrize(
    ("name", "source", "is_read"),
    [("clip", "", True), ("t", "clip.mp4", True), ("t", "x.mp4", False), ("t", "", False)],
)
def test_a_shared_file_of_one_task_is_read_for_its_video_alone(
    tmp_path: Path, name: str, source: str, is_read: bool
) -> None:
    meta = f"<task><name>{name}</name>{SIZE}</task><source>{source}</source>"
    for body in (image(f'<box label="a" {BOX}/>'), f'<track id="1" label="a">{shape(3)}</track>'):
        assert bool(read(tmp_path, body, meta, is_shared=True).content.frames) is is_read
        assert read(tmp_path, body, meta).content.frames  # a file that is named after the video


@pytest.mark.parametrize(
    "text",
    ["<annotations/>", "<a/>", "<annotations>", '<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "\ud7ff", "\0"],
)
def test_what_is_no_export_of_cvat_is_one_sentence(tmp_path: Path, text: str) -> None:
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "clip.xml").write_text(text, encoding=encoding)
        with pytest.raises(InputError, match=r"expected (CVAT XML|labels) in .*clip\.xml") as caught:
            read_annotations(tmp_path / "clip.xml", ReadContext("clip", 0, lambda: SHAPE))
        assert "\n" not in str(caught.value)


def result(index: int, *objects: ObjectResult, mask: np.ndarray, file_name: str = "") -> FrameResult:
    frame = Frame(np.zeros((*SHAPE, 3), np.uint8), index, index / 25, f"{index:05d}", file_name)
    return FrameResult(mask, objects, frame)


def clip(file_name: str = "") -> list[FrameResult]:
    """Return a mask of two parts that is lost on frames 2 and 3, and points of which one is lost from frame 2."""
    found = []
    for index in range(5):
        mask, seen = np.zeros(SHAPE, np.uint8), index not in (2, 3)
        if seen:
            mask[20:40, 10 + index : 30 + index] = mask[5:15, 50:70] = 1
        box = (10 + index, 5, 70, 40) if seen else None
        square = ObjectResult(1, "car", 0.9, seen, box, None, (), None, 0, "car", index == 0)
        peaks = np.array([0.9, 0.9 if index < 2 else 0.01], np.float32)
        hand = ObjectResult(
            2, "", 0.9, True, None, np.array([[5, 6], [7, 8]], np.float32), ("a", "b"), peaks, "x", "hand"
        )
        found.append(result(index, square, hand, mask=mask, file_name=file_name and f"img{index}.png"))
    return found


def written(path: Path, schema: LabelSchema, results: list[FrameResult]) -> ElementTree.Element:
    with CvatSink(path, schema) as sink:
        for one in results:
            sink.write(one)
    assert sorted(place.name for place in path.parent.iterdir()) == [path.name]
    return ElementTree.parse(path).getroot()


def test_a_video_becomes_tracks_with_outside(tmp_path: Path) -> None:
    root = written(tmp_path / "clip.xml", LabelSchema(), clip())
    car, hand = root.findall("track")
    assert (car.get("id"), car.get("label"), hand.get("id"), hand.get("label")) == ("0", "car", "2", "hand")
    assert [(one.tag, one.get("frame"), one.get("outside"), one.get("source")) for one in car] == [
        ("polygon", "0", "0", "manual"), ("polygon", "1", "0", "auto"), ("polygon", "2", "1", "auto"),
        ("polygon", "4", "0", "auto"),
    ]  # fmt: skip
    assert all(one.get("keyframe") == "1" for track in (car, hand) for one in track)
    assert [[one.get("outside") for one in frame.findall("points")] for frame in hand] == [["0", "0"]] * 2 + [
        ["0", "1"]
    ] * 3
    back = read_annotations(tmp_path / "clip.xml", ReadContext("clip", 0, lambda: SHAPE)).content.frames
    for one in clip():
        by_kind = {type(found): found for found in back[one.frame.index]} if one.frame.index != 3 else {}
        if one.frame.index in (0, 1, 4):
            car_mask = by_kind[MaskObject]
            assert isinstance(car_mask, MaskObject) and car_mask.track_id == 0
            assert np.array_equal(car_mask.mask, one.mask > 0)
        elif one.frame.index == 2:
            assert by_kind[AbsentObject].track_id == 0
        if by_kind:
            assert by_kind[KeypointsObject].track_id == "x" and by_kind[KeypointsObject].category == "hand"


def test_a_folder_of_images_becomes_images_with_their_own_names(tmp_path: Path) -> None:
    schema = LabelSchema((Category("hand", None, ("a", "b", "c")),), image_names={0: "clip/img0.png"})
    root = written(tmp_path / "clip.xml", schema, clip("img"))
    images = root.findall("image")
    assert [one.get("name") for one in images] == [f"clip/img{k}.png" for k in range(5)]
    assert [[shape.tag for shape in one] for one in images] == [["mask", "skeleton"]] * 2 + [["skeleton"]] * 2 + [
        ["mask", "skeleton"]
    ]
    labels = [(one.findtext("name"), one.findtext("type"), one.findtext("parent")) for one in root.iter("label")]
    assert labels == [("hand", "skeleton", None), *((name, "points", "hand") for name in "abc"), ("car", "any", None)]
    back = read_annotations(tmp_path / "clip.xml", ReadContext("clip", 0, lambda: SHAPE)).content.frames
    for one in clip():
        masks = [found for found in back[f"img{one.frame.index}"] if isinstance(found, MaskObject)]
        assert all(np.array_equal(found.mask, one.mask > 0) and found.track_id == 0 for found in masks)
        assert len(masks) == bool(one.mask.any())


@pytest.mark.parametrize("file_name", ["", "img"])
def test_labels_that_are_boxes_alone_become_boxes(tmp_path: Path, file_name: str) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[20:40, 10:30] = 1
    own = np.array([[9.9, 20], [30, 20], [30, 40.2], [9.9, 40.2]]) - 0.5
    car = ObjectResult(1, "car", 0.9, True, (10, 20, 30, 40), None, (), None, 3, "car", True, (), (own,))
    later = ObjectResult(1, "car", 0.9, True, (10, 20, 30, 40), None, (), None, 3, "car")
    frames = [result(k, one, mask=mask, file_name=file_name and f"{k}.png") for k, one in enumerate((car, later))]
    root = written(tmp_path / "clip.xml", LabelSchema(has_only_boxes=True), frames)
    found = [[one.get(side) for side in ("xtl", "ytl", "xbr", "ybr")] for one in root.iter("box")]
    assert found == [["9.900", "20.000", "30.000", "40.200"], ["10.000", "20.000", "30.000", "40.000"]]


def test_polygons_given_by_hand_stay_and_the_others_are_polygons_too(tmp_path: Path) -> None:
    frames = clip("img")
    own = np.array([[10, 20], [30, 20], [30.25, 40], [10, 40]]) - 0.5
    first = ObjectResult(1, "car", 0.9, True, (10, 20, 30, 40), None, (), None, 0, "car", True, (), (own,))
    frames[0] = result(0, first, mask=frames[0].mask, file_name="img0.png")
    root = written(tmp_path / "clip.xml", LabelSchema(has_outlines=True), frames)
    by_image = [[one.get("points") for one in entry.findall("polygon")] for entry in root.findall("image")]
    assert by_image[0] == ["10.000,20.000;30.000,20.000;30.250,40.000;10.000,40.000"]
    assert [len(one) for one in by_image] == [1, 2, 0, 0, 2]


def test_characters_that_xml_cannot_have_are_replaced(tmp_path: Path) -> None:
    frame = result(
        0, ObjectResult(1, "a\0\ud800b", 1, True, (0, 0, 9, 9), track_id="\1"), mask=np.ones(SHAPE, np.uint8)
    )
    assert written(tmp_path / "clip.xml", LabelSchema(), [frame]).findall("track")[0].get("label") == "a??b"
