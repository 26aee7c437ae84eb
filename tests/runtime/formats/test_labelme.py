"""LabelMe: shapes as its own export draws them, groups, names of images; what is written opens in LabelMe again."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import FileContent, ReadContext
from corrflow.runtime.formats.label_schema import Category, LabelSchema
from corrflow.runtime.formats.labelme import LabelMeSink, read_labelme
from corrflow.runtime.formats.registry import read_annotations
from corrflow.runtime.types import Frame, FrameResult, KeypointsObject, MaskObject, ObjectResult

SHAPE = (37, 53)


def shape(label: str, kind: str, points: Any, group: object = None, **more: object) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points, "group_id": group, "flags": {}, **more}


def content_of(*shapes: dict[str, Any], image: str = "00004.jpg", size: tuple[int, int] = SHAPE) -> dict[str, Any]:
    return {"shapes": list(shapes), "imageHeight": size[0], "imageWidth": size[1], "imagePath": image}


def context(frame: int | str = "00004", **more: Any) -> ReadContext:
    return ReadContext("clip", frame, lambda: SHAPE, **more)


def read(*shapes: dict[str, Any], into: ReadContext | None = None) -> FileContent:
    return read_labelme(Path("clip/00004.json"), content_of(*shapes), into or context())


def masks(content: FileContent) -> list[MaskObject]:
    return [one for objects in content.frames.values() for one in objects if isinstance(one, MaskObject)]


def drawn_by_pillow(kind: str, points: list[list[float]]) -> np.ndarray:
    """Draw a shape with the calls that LabelMe's export makes."""
    image = Image.new("L", (SHAPE[1], SHAPE[0]))
    draw, places = ImageDraw.Draw(image), [(x, y) for x, y in points]
    if kind == "circle":
        (x, y), (rim_x, rim_y) = places
        radius = np.hypot(rim_x - x, rim_y - y)
        draw.ellipse([(x - radius, y - radius), (x + radius, y + radius)], outline=1, fill=1)
    elif kind == "rectangle":
        low, high = np.min(points, 0).tolist(), np.max(points, 0).tolist()
        draw.rectangle([*low, *high], outline=1, fill=1)
    else:
        draw.polygon(places, outline=1, fill=1)
    return np.asarray(image).astype(bool)


def test_masks_have_the_pixels_of_labelmes_export() -> None:
    dice = np.random.default_rng(5)
    for _ in range(60):
        kind = str(dice.choice(["polygon", "rectangle", "circle"]))
        low, high = ((-20, 70) if kind == "polygon" else (2, 30)) if dice.random() < 0.5 else (2, 36)
        count = {"rectangle": 2, "circle": 2}.get(kind, int(dice.integers(3, 9)))
        points = dice.uniform(low, high, (count, 2)).tolist()
        wanted = drawn_by_pillow(kind, points)
        found = masks(read(shape("a", kind, points)))
        assert np.array_equal(found[0].mask, wanted) if found else not wanted.any(), (kind, points)


def test_shapes_become_objects() -> None:
    drawn = np.zeros((3, 4), np.uint8)
    drawn[1:, 2:] = 255
    png = io.BytesIO()
    Image.fromarray(drawn).save(png, "PNG")
    corners = [[2.0, 3.0], [10.0, 3.0], [10.0, 8.0], [2.0, 8.0]]
    found = read(
        shape("owl", "mask", [[20.7, 30.2], [23, 32]], mask=base64.b64encode(png.getvalue()).decode()),
        shape("cat", "rectangle", [[10, 8], [2, 3]]),
        shape("cat", "rectangle", corners),
        shape("tilted", "rotation", corners),
        shape("nose", "point", [[5.5, 6.5]], 9),
    )
    owl, cat, other, tilted, nose = found.frames["00004"]
    assert isinstance(owl, MaskObject) and np.argwhere(owl.mask).tolist() == [[31, 22], [31, 23], [32, 22], [32, 23]]
    for one in (cat, other, tilted):
        assert isinstance(one, MaskObject) and np.count_nonzero(one.mask) == 9 * 6 and one.mask[3:9, 2:11].all()
        assert one.polygons[0].min(0).tolist() == [1.5, 2.5], "the corner of pixel (2, 3)"
    assert [one.name for one in found.schema.categories] == ["owl", "cat", "tilted"]
    assert isinstance(nose, KeypointsObject) and nose.points.tolist() == [[5, 6]] and nose.point_names == ("nose",)


def test_groups_are_identities_and_shapes_without_one_are_objects_of_their_own() -> None:
    square = [[2.0, 2.0], [8.0, 2.0], [8.0, 8.0]]
    found = masks(read(*(shape("car", "polygon", square, group) for group in (0, 300, "b", None, None, 0))))
    assert [one.track_id for one in found] == [0, 300, "b", None, None]
    assert [len(one.polygons) for one in found] == [2, 1, 1, 1, 1]
    assert masks(read(shape("car", "polygon", square, 7, track_id="a")))[0].track_id == "a"


def test_points_of_a_group_are_one_object_with_the_class_of_its_mask() -> None:
    found = read(
        shape("horse", "rectangle", [[2, 2], [30, 30]], 4),
        shape("nose", "point", [[5, 6]], 4),
        shape("tail", "point", [[25, 26]], 4),
        shape("eye", "point", [[9, 9]], 5, description="cow"),
    )
    horse, cow = (one for one in found.frames["00004"] if isinstance(one, KeypointsObject))
    assert (horse.category, horse.track_id, horse.point_names) == ("horse", 4, ("nose", "tail"))
    assert (cow.category, cow.track_id) == ("cow", 5)
    named = {one.name: one.point_names for one in found.schema.categories}
    assert named == {"horse": ("nose", "tail"), "cow": ("eye",)}


def test_a_faulty_shape_is_left_out_with_its_frame_and_label() -> None:
    good = shape("car", "polygon", [[2, 2], [8, 2], [8, 8]])
    bad = [
        shape("far", "polygon", [[1e9, 2], [8, 2], [8, 8]]),
        shape("few", "polygon", [[1, 2], [8, 2]]),
        shape("text", "polygon", [["a", 2], [8, 2], [8, 8]]),
        shape("outside", "polygon", [[-9, -9], [-3, -9], [-3, -3]]),
        shape("owl", "mask", [[1, 1], [2, 2]], mask="no"),
        shape("nose", "point", [[1, 1]]),
        shape("nose", "point", [[2, 2]]),
        {"points": []},
    ]
    into = context()
    assert len(masks(read(*bad, shape("way", "linestrip", [[0, 0], [3, 3]]), good, into=into))) == 1
    notes = into.notes.sentences()
    assert [note.removeprefix("left out frame '00004', ") for note in notes] == [
        "'far': its coordinates are not in any image",
        "'few': it has too few corners",
        "'text': it is no shape of LabelMe (and 2 more)",
        "'nose': a point of this name is in its group already; give each object its group_id",
        "'outside': it has no pixel in the image",
        "'way': a line has no area",
    ]
    with pytest.raises(Exception, match="'few': it has too few corners"):
        read(bad[1], into=context(is_strict=True))


@pytest.mark.parametrize(
    ("image", "frame", "names", "found"),
    [
        ("..\\frames\\00007.jpg", "00004", None, "00007"),  # the image's name counts
        ("x.jpg", "00004", None, "00004"),  # no frame is called so
        ("img10.png", "img9", ["img9", "img10"], "img10"),
        ("img3.png", "img9", ["img9", "img10"], "img9"),
        ("clip7.jpg", 0, None, 0),  # clip.json has the first frame
    ],
)
def test_a_file_is_of_the_image_that_it_names(
    image: str, frame: int | str, names: list[str] | None, found: int | str
) -> None:
    content = content_of(shape("a", "rectangle", [[1, 1], [5, 5]]), image=image)
    read = read_labelme(Path("a.json"), content, context(frame, frame_names=names))
    assert list(read.frames) == [found]
    assert read.schema.image_names == ({found: image} if found not in (frame,) else {})


@pytest.mark.parametrize("size", [(0, 5), (99999, 5), (30000, 30000), ("a", None)])
def test_an_image_without_a_size_that_can_be_is_refused(size: Any) -> None:
    with pytest.raises(InputError, match=r"expected the size of an image in clip/a\.json"):
        read_labelme(Path("clip/a.json"), content_of(size=size), context())


def result_of(*objects: ObjectResult, mask: np.ndarray | None = None, index: int = 4) -> FrameResult:
    frame = Frame(np.zeros((*SHAPE, 3), np.uint8), index, 0.0, f"{index:05d}")
    return FrameResult(np.zeros(SHAPE, np.uint8) if mask is None else mask, objects, frame)


def written(folder: Path, result: FrameResult, schema: LabelSchema | None = None) -> dict[str, Any]:
    with LabelMeSink(folder, schema or LabelSchema()) as sink:
        sink.write(result)
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_lost_objects_and_hidden_points_are_absent(tmp_path: Path) -> None:
    points = np.array([[3, 4], [9, 9]], np.float32)
    one = ObjectResult(2, "", 0.9, True, None, points, ("nose", "tail"), np.array([0.9, 0.01], np.float32), 7, "mouse")
    content = written(tmp_path, result_of(ObjectResult(1, "car", 0.0, False), one))
    (found,) = content["shapes"]
    assert (found["label"], found["description"], found["group_id"], found["points"]) == (
        "nose",
        "mouse",
        7,
        [[3.5, 4.5]],
    )


def test_labels_go_back_as_they_came(tmp_path: Path) -> None:
    polygons = [[[2.1, 3.3], [10.7, 3.0], [10.25, 8.6]], [[20.1, 20.2], [30.3, 20.4], [30.5, 30.6]]]
    given = [shape("car", "polygon", points, 300) for points in polygons]
    content = content_of(*given, image="../images/img_0004.PNG")
    (car,) = masks(read_labelme(Path("a.json"), content, context()))
    obj = ObjectResult(1, "car", 1.0, True, (0, 0, 1, 1), track_id=300, category="car", is_annotation=True,
                       polygons=car.polygons)  # fmt: skip
    schema = LabelSchema((Category("car"),), image_names={4: "../images/img_0004.PNG"})
    back = written(tmp_path, result_of(obj, mask=car.mask.astype(np.uint8)), schema)
    assert (tmp_path / "img_0004.json").exists() and back["imagePath"] == "../images/img_0004.PNG"
    assert [entry["points"] for entry in back["shapes"]] == polygons
    assert {(entry["label"], entry["group_id"]) for entry in back["shapes"]} == {("car", 300)}


def test_tracked_masks_have_few_corners_within_a_pixel(tmp_path: Path) -> None:
    mask = drawn_by_pillow("circle", [[25, 18], [25, 5]])
    mask[1, 1] = True  # a speck
    text = ObjectResult(1, "", 0.9, True, (0, 0, 1, 1), track_id="a", category="ball")
    (found,) = written(tmp_path, result_of(text, mask=mask.astype(np.uint8)))["shapes"]
    assert len(found["points"]) < 20 and found["track_id"] == "a" and found["group_id"] == 1
    back = drawn_by_pillow("polygon", found["points"])
    assert np.count_nonzero(back ^ mask) < 40 and masks(read(found))[0].track_id == "a"


def test_damaged_files_give_objects_or_one_sentence(tmp_path: Path) -> None:
    square = np.zeros(SHAPE, np.uint8)
    square[5:20, 5:20] = 1
    points = ObjectResult(2, "a", 0.9, True, None, np.array([[3, 4]], np.float32), ("nose",), track_id=3)
    written(tmp_path, result_of(ObjectResult(1, "car", 0.9, True, (0, 0, 1, 1)), points, mask=square))
    whole = (tmp_path / "00004.json").read_text()
    dice = np.random.default_rng(1)
    for _ in range(60):
        text = whole
        for _ in range(dice.integers(1, 4)):
            start = int(dice.integers(0, len(text)))
            piece = str(dice.choice(["-1", "1e999", "NaN", "99999999999", "null", "[]", "{}", '"', ",", "\0", "true"]))
            text = text[:start] + piece + text[start + int(dice.integers(0, 12)) :]
        (tmp_path / "00004.json").write_text(text)
        try:
            list(read_annotations(tmp_path / "00004.json", context()).content.frames.values())
        except InputError as error:
            assert "\n" not in str(error)
