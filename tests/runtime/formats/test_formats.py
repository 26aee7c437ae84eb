"""Formats of others: what is written reads back as it was, by their own loaders too; what is broken is refused."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from corrflow.errors import InputError
from corrflow.runtime.batch.label_discovery import find_annotations
from corrflow.runtime.formats.annotations import Annotations
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.boxes_csv import BoxCsvSink
from corrflow.runtime.formats.cvat import CvatSink
from corrflow.runtime.formats.deeplabcut import DeepLabCutSink
from corrflow.runtime.formats.deeplabcut_h5 import DeepLabCutH5Sink
from corrflow.runtime.formats.image_folders import CutoutSink
from corrflow.runtime.formats.labelme import LabelMeSink
from corrflow.runtime.formats.polygons import filled, polygons_of
from corrflow.runtime.formats.sleap import SleapSink
from corrflow.runtime.formats.tapvid import TapVidSink
from corrflow.runtime.formats.yolo import YoloSink
from corrflow.runtime.tracking.results import frame_result, keypoints_result, mask_result
from corrflow.runtime.types import Frame, FrameResult, KeypointsObject, MaskObject

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
    return find_annotations(folder, "clip", lambda: SHAPE)


def objects_on(annotations: Annotations, frame: Frame) -> dict[int, MaskObject | KeypointsObject]:
    return {one.id: one for one in annotations.on(frame)}


@pytest.mark.parametrize(
    ("sink", "place", "has_masks", "has_points"),
    [
        (LabelMeSink, "clip", True, True),
        (CvatSink, "clip.xml", True, True),
        (DeepLabCutSink, "clip.csv", False, True),
        (DeepLabCutH5Sink, "clip.h5", False, True),
        (lambda path: YoloSink(path, "segment"), "clip", True, False),
        (lambda path: YoloSink(path, "pose"), "clip", False, True),
        (lambda path: SleapSink(path, "clip.mp4"), "clip.slp", False, True),
    ],
    ids=["labelme", "cvat", "deeplabcut", "deeplabcut-h5", "yolo-seg", "yolo-pose", "sleap"],
)
def test_what_a_format_writes_reads_back_without_loss(
    tmp_path: Path, sink: Callable[[Path], Sink], place: str, has_masks: bool, has_points: bool
) -> None:
    frames = write(sink(tmp_path / place))
    for path in tmp_path.glob("clip/labels/*"):
        path.rename(tmp_path / "clip" / path.name)
    labels = read(tmp_path)
    assert len(labels.frames) == len(frames)
    for result in frames:
        back = objects_on(labels, result.frame)
        if has_masks:
            for identity, name in ((2, ""), (5, "ring")):
                one = back[identity]
                assert isinstance(one, MaskObject) and one.name == name
                assert np.array_equal(one.mask, result.mask == identity)
        if has_points:
            points = next(one for one in back.values() if isinstance(one, KeypointsObject))
            assert (points.name, points.point_names) == ("hand", ("thumb", "little, finger"))
            assert points.points == pytest.approx(result.objects[2].points, abs=0.01)


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


def test_supervision_loads_the_same_masks_from_labelme(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    frames = write(LabelMeSink(tmp_path / "labels"))
    (tmp_path / "images").mkdir()
    for result in frames:
        cv2.imwrite(str(tmp_path / "images" / f"{result.frame.name}.jpg"), result.frame.image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it passes over points
        loaded = supervision.DetectionDataset.from_labelme(str(tmp_path / "images"), str(tmp_path / "labels"))
    masks = {Path(path).stem: found for path, found in loaded.annotations.items()}
    for result in frames:
        found = masks[result.frame.name]
        by_class = {loaded.classes[int(c)]: found.mask[i] for i, c in enumerate(found.class_id)}
        assert np.array_equal(by_class["object 2"], result.mask == 2)
        assert np.array_equal(by_class["ring"], result.mask == 5)


def save_pictures(frames: list[FrameResult], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for result in frames:
        cv2.imwrite(str(folder / f"{result.frame.name}.jpg"), result.frame.image)


def test_labelme_opens_its_files_and_fills_the_same_pixels(tmp_path: Path) -> None:
    labelme = pytest.importorskip("labelme", reason="LabelMe brings Qt, and is not installed")
    frames = write(LabelMeSink(tmp_path))
    save_pictures(frames, tmp_path)
    for result in frames:
        opened = labelme.LabelFile(str(tmp_path / f"{result.frame.name}.json"))
        own = np.zeros((2, *SHAPE), bool)
        points: dict[str, list[float]] = {}
        for shape in opened.shapes:
            if shape["shape_type"] == "point":
                points[shape["label"]] = shape["points"][0]
            else:
                pixels = labelme.utils.shape_to_mask(SHAPE, shape["points"], shape["shape_type"])
                own[{2: 0, 5: 1}[shape["group_id"]]] |= pixels
        assert np.array_equal(own[0], result.mask == 2) and np.array_equal(own[1], result.mask == 5)
        found = result.objects[2]
        assert np.array(list(points.values())) == pytest.approx(found.points, abs=0.01)
        assert tuple(points) == found.point_names


def test_datumaro_loads_the_same_masks_and_points_from_cvat(tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="Datumaro wants older libraries, and is not installed")
    frames = write(CvatSink(tmp_path / "annotations.xml"))
    save_pictures(frames, tmp_path / "images")
    loaded = datumaro.Dataset.import_from(str(tmp_path), "cvat")
    labels = loaded.categories()[datumaro.AnnotationType.label]
    items = {item.id: item for item in loaded}
    for result in frames:
        masks, points = {}, {}
        for one in items[result.frame.name].annotations:
            called = labels[one.label].name
            if one.type is datumaro.AnnotationType.mask:
                masks[called] = one.image.astype(bool)
            else:
                points[called] = one.points
        assert np.array_equal(masks["object 2"], result.mask == 2) and np.array_equal(masks["ring"], result.mask == 5)
        found = result.objects[2]
        assert tuple(points) == found.point_names
        # A pixel's centre is half a pixel in to CVAT.
        assert np.array(list(points.values())) - 0.5 == pytest.approx(found.points, abs=0.01)


def test_ultralytics_loads_the_same_polygons_and_points_from_yolo(tmp_path: Path) -> None:
    loader = pytest.importorskip("ultralytics.data.utils", reason="Ultralytics is under the AGPL, and is not installed")
    ops = pytest.importorskip("ultralytics.data.utils").polygon2mask
    for task in ("segment", "pose"):
        frames = write(YoloSink(tmp_path / task, task))
        save_pictures(frames, tmp_path / task / "images")
        setup = loader.check_det_dataset(str(tmp_path / task / "data.yaml"), autodownload=False)
        count, each = setup.get("kpt_shape", (0, 0))
        for result in frames:
            image, text = (
                tmp_path / task / f for f in (f"images/{result.frame.name}.jpg", f"labels/{result.frame.name}.txt")
            )
            request = (str(image), str(text), "", task == "pose", len(setup["names"]), count, each, False)
            _, classes, _, polygons, points, _, _, _, corrupt, message = loader.verify_image_label(request)
            assert not corrupt, message
            if task == "pose":
                assert points[0, :, :2] * SHAPE[::-1] == pytest.approx(result.objects[2].points, abs=0.01)
                continue
            for identity in (2, 5):
                own = [p * SHAPE[::-1] for p, c in zip(polygons, classes[:, 0], strict=True) if c == identity - 1]
                mask = np.any([ops(SHAPE, [p.reshape(-1)]) for p in own], 0)
                assert np.array_equal(mask, result.mask == identity)


def test_supervision_loads_the_same_masks_from_yolo(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    frames = write(YoloSink(tmp_path, "segment"))
    (tmp_path / "images").mkdir()
    for result in frames:
        cv2.imwrite(str(tmp_path / "images" / f"{result.frame.name}.jpg"), result.frame.image)
    setup = str(tmp_path / "data.yaml")
    loaded = supervision.DetectionDataset.from_yolo(str(tmp_path / "images"), str(tmp_path / "labels"), setup)
    masks = {Path(path).stem: found for path, found in loaded.annotations.items()}
    for result in frames:
        found = masks[result.frame.name]
        for identity, name in ((2, "object 2"), (5, "ring")):
            own = [found.mask[i] for i, c in enumerate(found.class_id) if loaded.classes[int(c)] == name]
            assert np.array_equal(np.any(own, 0), result.mask == identity)


def test_sleap_io_loads_the_same_points_and_writes_labels_that_are_read(tmp_path: Path) -> None:
    sleap = pytest.importorskip("sleap_io")
    frames = write(SleapSink(tmp_path / "out.slp", "clip.mp4"))
    loaded = sleap.load_slp(str(tmp_path / "out.slp"), open_videos=False)
    for found, result in zip(loaded.labeled_frames, frames, strict=True):
        (instance,) = found.instances
        assert found.frame_idx == result.frame.index and instance.track.name == "hand"
        assert instance.skeleton.node_names == ["thumb", "little, finger"]
        assert instance.numpy() == pytest.approx(result.objects[2].points, abs=0.01)
    skeleton = sleap.Skeleton(["head", "tail"])
    placed = sleap.Instance.from_numpy(np.array([[1.0, 2.5], [np.nan, np.nan]]), skeleton=skeleton)
    video = sleap.Video("clip.mp4", open_backend=False)
    labelled = sleap.LabeledFrame(video=video, frame_idx=9, instances=[placed])
    sleap.save_slp(sleap.Labels([labelled]), str(tmp_path / "clip.slp"))
    (one,) = read(tmp_path).objects[9]
    assert isinstance(one.prompt, KeypointsObject) and one.prompt.points.tolist() == [[1, 2.5]]
    assert one.prompt.point_names == ("head",)


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"half"], ids=["empty", "text", "cut off"])
@pytest.mark.parametrize(
    ("name", "sink", "called"),
    [
        ("clip.slp", lambda path: SleapSink(path, "clip.mp4"), "SLEAP labels"),
        ("clip.h5", DeepLabCutH5Sink, "DeepLabCut's table"),
    ],
    ids=["sleap", "deeplabcut"],
)
def test_what_is_no_such_hdf5_is_one_sentence(
    tmp_path: Path, content: bytes, name: str, sink: Callable[[Path], Sink], called: str
) -> None:
    write(sink(tmp_path / name))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    with pytest.raises(InputError, match=called):
        read(tmp_path)


def test_pandas_loads_deeplabcut_csv_as_its_users_do(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frames = write(DeepLabCutSink(tmp_path / "clip.csv"))
    table = pandas.read_csv(tmp_path / "clip.csv", header=[0, 1, 2, 3], index_col=0)
    assert list(table.columns.names) == ["scorer", "individuals", "bodyparts", "coords"]
    for result in frames:
        row = table.loc[result.frame.index]["corrflow"]["hand"]["thumb"]
        points = result.objects[2].points
        assert points is not None and [row["x"], row["y"]] == pytest.approx(points[0], abs=0.01)


def test_pandas_loads_deeplabcut_h5_as_its_users_do(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables", reason="pandas reads HDF5 with it")
    frames = write(DeepLabCutH5Sink(tmp_path / "clip.h5"))
    table = pandas.read_hdf(tmp_path / "clip.h5")
    assert list(table.columns.names) == ["scorer", "individuals", "bodyparts", "coords"]
    assert table.index.tolist() == [result.frame.index for result in frames]
    for result in frames:
        row = table.loc[result.frame.index]["corrflow"]["hand"]
        points, confidence = result.objects[2].points, result.objects[2].point_confidence
        assert points is not None and confidence is not None
        for name, place, likelihood in zip(("thumb", "little, finger"), points, confidence, strict=True):
            assert row[name].loc[["x", "y", "likelihood"]].tolist() == pytest.approx([*place, likelihood], abs=1e-6)


def deeplabcut_table(rows: object) -> object:
    """Return labels of one animal as DeepLabCut stores them; the tail of the first row is not labelled."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables", reason="pandas writes HDF5 with it")
    names = ["scorer", "bodyparts", "coords"]
    columns = pandas.MultiIndex.from_product([["anna"], ["snout", "tail"], ["x", "y"]], names=names)
    values = np.array([[10.5, 20.25, np.nan, np.nan], [1, 2, 3, 4]])
    return pandas.DataFrame(values, index=rows, columns=columns)


@pytest.mark.filterwarnings(
    "ignore:object name is not a valid Python identifier", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
@pytest.mark.parametrize(
    ("layout", "rows"),
    [("fixed", "folders"), ("fixed", "paths"), ("fixed", "numbers"), ("table", "paths"), ("table", "numbers")],
)
def test_labels_that_pandas_stored_for_deeplabcut_are_read(tmp_path: Path, layout: str, rows: str) -> None:
    pandas = pytest.importorskip("pandas")
    names = ["img0012.png", "img0003.png"]
    index = {
        "folders": lambda: pandas.MultiIndex.from_product([["labeled-data"], ["clip"], names]),
        "paths": lambda: [f"labeled-data/clip/{name}" for name in names],
        "numbers": lambda: [12, 3],
    }[rows]()
    table: Any = deeplabcut_table(index)
    table.to_hdf(tmp_path / "clip.h5", key="df_with_missing", mode="w", format=layout)
    found = read(tmp_path).objects
    (late,), (early,) = found[12], found[3]
    assert isinstance(late.prompt, KeypointsObject) and late.prompt.point_names == ("snout",)
    assert late.prompt.points.tolist() == [[10.5, 20.25]]
    assert isinstance(early.prompt, KeypointsObject) and early.prompt.points.tolist() == [[1, 2], [3, 4]]


def test_a_table_that_would_run_code_when_unpickled_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    table: Any = deeplabcut_table([0, 1])
    table.to_hdf(tmp_path / "clip.h5", key="df_with_missing", mode="w", format="table")
    harm = f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode()
    with h5py.File(tmp_path / "clip.h5", "r+") as file:
        file["df_with_missing/table"].attrs["values_block_0_kind"] = np.bytes_(harm)
    with pytest.raises(InputError, match="GLOBAL"):
        read(tmp_path)
    assert not (tmp_path / "ran").exists()


@settings(max_examples=150, deadline=None, derandomize=True)  # HDF5 reads in C, where chance may meet a crash
@for_all(place=st.floats(0, 1), content=st.binary(min_size=1, max_size=12))
def test_damaged_deeplabcut_h5_gives_objects_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, place: float, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    write(DeepLabCutH5Sink(folder / "clip.h5"))
    whole = (folder / "clip.h5").read_bytes()
    start = int(place * len(whole))
    (folder / "clip.h5").write_bytes(whole[:start] + content + whole[start + len(content) :])
    try:
        read(folder)
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=150, deadline=None)
@for_all(mask=arrays.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))))
def test_polygons_filled_are_the_mask_again(mask: np.ndarray) -> None:
    polygons = polygons_of(mask)
    assert all(len(polygon) >= 3 for polygon in polygons)
    assert np.array_equal(filled(polygons, (mask.shape[0], mask.shape[1])), mask)


def test_shapes_drawn_in_labelme_become_objects(tmp_path: Path) -> None:
    def shape(label: str, kind: str, points: list[list[float]], group: int | None = None) -> dict[str, object]:
        return {"label": label, "shape_type": kind, "points": points, "group_id": group, "flags": {}}

    drawn = np.zeros((3, 4), np.uint8)
    drawn[1:, 2:] = 255
    owl = base64.b64encode(cv2.imencode(".png", drawn)[1].tobytes()).decode()
    shapes = [
        shape("owl", "mask", [[20, 30], [23, 32]]) | {"mask": owl},
        shape("cat", "rectangle", [[10, 8], [2, 3]]),
        shape("dog", "circle", [[30, 20], [34, 20]]),
        shape("nose", "point", [[5.5, 6.5]], 9),
        shape("way", "linestrip", [[0, 0], [3, 3]]),
    ]
    content = {"shapes": shapes, "imageHeight": SHAPE[0], "imageWidth": SHAPE[1], "imagePath": "00004.jpg"}
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "00004.json").write_text(json.dumps(content))
    owl, cat, dog, nose = (packed.unpacked() for packed in read(tmp_path).objects["00004"])
    assert isinstance(owl, MaskObject) and np.argwhere(owl.mask).tolist() == [[31, 22], [31, 23], [32, 22], [32, 23]]
    assert isinstance(cat, MaskObject) and np.count_nonzero(cat.mask) == 9 * 6 and cat.mask[3:9, 2:11].all()
    assert isinstance(dog, MaskObject) and np.count_nonzero(dog.mask) == pytest.approx(np.pi * 4.5**2, rel=0.12)
    assert isinstance(nose, KeypointsObject) and nose.points.tolist() == [[5.5, 6.5]] and nose.point_names == ("nose",)


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


def test_keyframes_of_cvat_tracks_are_labels(tmp_path: Path) -> None:
    (tmp_path / "clip.xml").write_text(CVAT_VIDEO)
    found = read(tmp_path).objects
    (car,), (person,) = found[2], found[6]
    assert set(found) == {2, 6} and (car.prompt.id, person.prompt.id) == (1, 2)
    box = car.unpacked()
    assert isinstance(box, MaskObject) and np.count_nonzero(box.mask) == 40 and box.mask[5:9, 4:14].all()
    assert isinstance(person.prompt, KeypointsObject) and person.prompt.points.tolist() == [[10, 20]]


DEEPLABCUT = """scorer,,,anna,anna,anna,anna
bodyparts,,,snout,snout,tail,tail
coords,,,x,y,x,y
labeled-data,clip,img0012.png,10.5,20.25,,
labeled-data,clip,img0003.png,1,2,3,4
"""


def test_labels_of_deeplabcut_are_read_by_the_number_of_their_picture(tmp_path: Path) -> None:
    (tmp_path / "clip.csv").write_text(DEEPLABCUT)
    found = read(tmp_path).objects
    assert set(found) == {12, 3}
    (late,), (early,) = found[12], found[3]
    assert isinstance(late.prompt, KeypointsObject) and late.prompt.point_names == ("snout",)
    assert isinstance(early.prompt, KeypointsObject) and early.prompt.points.tolist() == [[1, 2], [3, 4]]
    assert late.prompt.id == early.prompt.id


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
