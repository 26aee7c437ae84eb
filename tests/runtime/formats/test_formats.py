"""Formats of others: what is written reads back as it was, by their own loaders too; what is broken is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from corrflow.errors import InputError
from corrflow.runtime.batch.label_discovery import LabelSource, find_annotations
from corrflow.runtime.formats.annotations import Annotations
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.boxes_csv import BoxCsvSink
from corrflow.runtime.formats.cvat import CvatSink
from corrflow.runtime.formats.image_folders import CutoutSink
from corrflow.runtime.formats.labelme import LabelMeSink
from corrflow.runtime.formats.tapvid import TapVidSink
from corrflow.runtime.formats.yolo import YoloSink
from corrflow.runtime.tracking.results import frame_result, keypoints_result, mask_result
from corrflow.runtime.types import Annotation, Frame, FrameResult, KeypointsObject, MaskObject

SHAPE = (37, 53)


def clip(count: int = 3) -> list[FrameResult]:
    """Return results of frames with a speckled mask 2, a ring 5 called "ring", and two points 7 called "hand"."""
    dice, found = np.random.default_rng(4), []
    for index in range(count):
        speckles, ring = np.zeros(SHAPE, bool), np.zeros(SHAPE, np.uint8)
        speckles[:, :20] = dice.random((SHAPE[0], 20)) < 0.6
        cv2.circle(ring, (36, 18), 12 + index, 1, 5)
        points = dice.uniform(2, 35, (2, 2)).astype(np.float32)
        given = KeypointsObject(7, points, ("thumb", "little, finger"), "hand")
        masks = [MaskObject(2, speckles), MaskObject(5, ring.astype(bool), "ring")]
        full = [one.mask.astype(np.float32) for one in masks]
        objects = [mask_result(one, part) for one, part in zip(masks, full, strict=True)]
        objects.append(keypoints_result(given, points, np.array([1, 0.01], np.float32)))
        image = dice.integers(0, 255, (*SHAPE, 3), np.uint8)
        frame = Frame(image, index, index / 25, f"{index:05d}")
        found.append(frame_result(frame, SHAPE, [2, 5], full, objects))
    return found


def write(sink: Sink) -> list[FrameResult]:
    results = clip()
    with sink:
        for result in results:
            sink.write(result)
    return results


def read(folder: Path) -> Annotations:
    return find_annotations(LabelSource(folder, "clip", Path("clip.mp4")), lambda: SHAPE)


def objects_on(annotations: Annotations, frame: Frame) -> dict[int, Annotation]:
    return {one.id: one for one in annotations.on(frame)}


def test_boxes_read_back_as_the_pixels_in_them(tmp_path: Path) -> None:
    frames = write(BoxCsvSink(tmp_path / "clip.csv"))
    for result in frames:
        back = objects_on(read(tmp_path), result.frame)
        for track in result.objects[:2]:
            assert track.box is not None
            x0, y0, x1, y1 = track.box
            wanted = np.zeros(SHAPE, bool)
            wanted[y0:y1, x0:x1] = True
            one = back[track.id]
            assert isinstance(one, MaskObject) and np.array_equal(one.mask, wanted) and one.name == track.name


def test_cutouts_are_the_frame_where_the_object_is_and_transparent_elsewhere(tmp_path: Path) -> None:
    for result in write(CutoutSink(tmp_path)):
        for track in result.objects[:2]:
            image = cv2.imread(str(tmp_path / str(track.id) / f"{result.frame.name}.png"), cv2.IMREAD_UNCHANGED)
            assert image is not None and track.box is not None
            x0, y0, x1, y1 = track.box
            assert np.array_equal(image[..., 3] == 255, result.mask[y0:y1, x0:x1] == track.id)
            assert np.array_equal(image[..., :3], result.frame.image[y0:y1, x0:x1])


def test_tapvid_arrays_have_its_names_shapes_and_ranges(tmp_path: Path) -> None:
    frames = write(TapVidSink(tmp_path / "clip.npz"))
    with np.load(tmp_path / "clip.npz") as arrays_of:
        points, occluded, names = arrays_of["points"], arrays_of["occluded"], arrays_of["names"]
    assert points.shape == (2, 3, 2) and points.dtype == np.float32 and occluded.dtype == bool
    assert names.tolist() == ["hand/thumb", "hand/little, finger"]
    assert occluded.tolist() == [[False] * 3, [True] * 3]
    for index, result in enumerate(frames):
        assert points[:, index] * SHAPE[::-1] - 0.5 == pytest.approx(result.objects[2].points, abs=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.npz"]


DEEPLABCUT = """scorer,,,anna,anna,anna,anna
bodyparts,,,snout,snout,tail,tail
coords,,,x,y,x,y
labeled-data,clip,img0012.png,10.5,20.25,,
labeled-data,clip,img0003.png,1,2,3,4
"""


CVAT_VIDEO = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><original_size><width>53</width><height>37</height></original_size></task></meta>
<track id="0" label="car" source="manual">
 <box frame="2" outside="0" occluded="0" keyframe="1" xtl="4.0" ytl="5.0" xbr="14.0" ybr="9.0" z_order="0"></box>
 <box frame="3" outside="0" occluded="0" keyframe="0" xtl="5.0" ytl="5.0" xbr="15.0" ybr="9.0" z_order="0"></box>
 <box frame="9" outside="1" occluded="0" keyframe="1" xtl="9.0" ytl="5.0" xbr="19.0" ybr="9.0" z_order="0"></box>
</track>
<track id="1" label="person" source="manual">
 <skeleton frame="6" keyframe="1" z_order="0">
  <points label="head" outside="0" occluded="0" points="10.50,20.50"></points>
  <points label="foot" outside="1" occluded="0" points="10.50,30.50"></points>
 </skeleton>
</track>
</annotations>
"""


@settings(max_examples=250, deadline=None)
@for_all(data=st.data())
@pytest.mark.parametrize("kind", ["labelme", "cvat", "cvat video", "deeplabcut", "boxes", "yolo"])
def test_damaged_files_give_objects_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    name, text = sound(folder, kind)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        piece = st.one_of(
            st.sampled_from(["-1", "1e999", "nan", "99999999999", "null", "[]", "{}", '"', ",", "<", "</a>", "\0"]),
            st.text(max_size=4),
        )
        text = text[:start] + data.draw(piece) + text[end:]
    (folder / name).write_text(text, encoding="utf-8", errors="replace")
    try:
        labels = read(folder)
    except InputError as error:
        assert ("\n" not in str(error).strip() and str(folder / name) in str(error)) or "labels for" in str(error)
        return
    for objects in labels.objects.values():
        for packed in objects:
            one = packed.unpacked()
            assert one.id >= 1
            assert not isinstance(one, MaskObject) or (one.mask.any() and one.mask.dtype == bool)


def sound(folder: Path, kind: str) -> tuple[str, str]:
    """Return the name and the text of an undamaged file."""
    if kind == "cvat video":
        return "clip.xml", CVAT_VIDEO
    if kind == "deeplabcut":
        return "clip.csv", DEEPLABCUT
    name, sink = {
        "labelme": ("clip.json", LabelMeSink),
        "cvat": ("clip.xml", CvatSink),
        "boxes": ("clip.csv", BoxCsvSink),
        "yolo": ("clip/00000.txt", lambda place: YoloSink(place, "segment")),
    }[kind]
    place = folder / "sound"
    place.mkdir()
    target = place if kind in ("labelme", "yolo") else place / "file"
    with sink(target) as written:
        written.write(clip(1)[0])
    (path,) = [path for path in place.rglob("*") if path.is_file() and path.suffix != ".yaml"]
    (folder / name).parent.mkdir(exist_ok=True)
    return name, path.read_text()
