"""movement and sleap-io read our SLEAP and DeepLabCut files: the same points by position and by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.tools import ask_tool
from PIL import Image

from corrflow.runtime.formats.deeplabcut import DeepLabCutSink
from corrflow.runtime.formats.deeplabcut_h5 import DeepLabCutH5Sink
from corrflow.runtime.formats.label_schema import Category, LabelSchema
from corrflow.runtime.formats.sleap import SleapSink
from corrflow.runtime.tracking.results import frame_result, keypoints_result
from corrflow.runtime.types import Frame, FrameResult, KeypointsObject

pytest.importorskip("h5py")
LOAD = """
import json, sys
from movement.io import load_poses
found = []
for path in sys.argv[1:]:
    load = load_poses.from_sleap_file if path.endswith(".slp") else load_poses.from_dlc_file
    data = load(path)
    found.append({
        "points": data.keypoints.values.tolist(), "individuals": data.individuals.values.tolist(),
        "position": data.position.transpose("time", "individuals", "keypoints", "space").fillna(-1).values.tolist(),
    })
print(json.dumps(found))
"""
PARTS = ("tail", "head", "wing", "never")
SCHEMA = LabelSchema((Category("animal", point_names=PARTS, edges=((0, 1),)),), "anna", individuals={"": "animal"})


def clip(prompts: list[KeypointsObject]) -> list[FrameResult]:
    """Return results that move by a pixel a frame; frame 1 has labels, and the first object is lost on frame 2."""
    found = []
    for index in range(4):
        frame = Frame(np.zeros((64, 64, 3), np.uint8), index, 0, f"{index:05d}")
        objects = [
            keypoints_result(
                one, one.points + index, np.full(len(one.points), 0.0 if (index, k) == (2, 0) else 0.9, np.float32),
                one.point_names if index == 1 else (),
            )
            for k, one in enumerate(prompts)
        ]  # fmt: skip
        found.append(frame_result(frame, (64, 64), [], [], objects))
    return found


def expected(prompts: list[KeypointsObject]) -> np.ndarray:
    """Return the points [frame, individual, part, 2]; -1 where there are none."""
    places = np.full((4, len(prompts), len(PARTS), 2), -1.0)
    for k, one in enumerate(prompts):
        for name, point in zip(one.point_names, one.points, strict=True):
            for index in range(4):
                if (index, k) != (2, 0):
                    places[index, k, PARTS.index(name)] = point + index
    return places


def prompts() -> list[KeypointsObject]:
    """Return two animals whose labelled points differ in number and order."""
    first = KeypointsObject(1, np.array([[3, 4], [5, 6]], np.float32), ("head", "tail"), "b", "b", "animal")
    points = np.array([[30, 40], [50, 60], [20, 10]], np.float32)
    return [first, KeypointsObject(2, points, ("wing", "head", "tail"), "a", "a", "animal")]


def test_movement_reads_the_same_points_by_position_and_by_name(tmp_path: Path) -> None:
    two = prompts()
    several = LabelSchema(SCHEMA.categories, "anna", individuals={"b": "animal", "a": "animal"})
    alone = [KeypointsObject(1, two[0].points, two[0].point_names, "", None, "animal")]
    sinks = {
        "several.csv": (DeepLabCutSink(tmp_path / "several.csv", several), two),
        "several.h5": (DeepLabCutH5Sink(tmp_path / "several.h5", several), two),
        "one.csv": (DeepLabCutSink(tmp_path / "one.csv", SCHEMA), alone),
        "one.h5": (DeepLabCutH5Sink(tmp_path / "one.h5", SCHEMA), alone),
        "several.slp": (SleapSink(tmp_path / "several.slp", "clip.mp4", several), two),
    }
    for sink, objects in sinks.values():
        with sink:
            for result in clip(objects):
                sink.write(result)
    loaded = ask_tool("movement", LOAD, *(tmp_path / name for name in sinks))
    for (name, (_, objects)), found in zip(sinks.items(), loaded, strict=True):
        assert found["points"] == list(PARTS), name
        assert len(found["individuals"]) == len(objects), name
        if len(objects) > 1:
            assert found["individuals"] == ["b", "a"], name
        assert np.asarray(found["position"]) == pytest.approx(expected(objects), abs=1e-3), name


def test_sleap_io_reads_the_same_points_by_position_and_by_name(tmp_path: Path) -> None:
    sleap = pytest.importorskip("sleap_io")
    objects = prompts()
    with SleapSink(tmp_path / "clip.slp", "clip.mp4", SCHEMA) as sink:
        for result in clip(objects):
            sink.write(result)
    labels = sleap.load_slp(str(tmp_path / "clip.slp"), open_videos=False)
    assert np.nan_to_num(labels.numpy(), nan=-1) == pytest.approx(expected(objects))
    for frame in labels:
        for instance in frame:
            k = ["b", "a"].index(instance.track.name)
            by_name = {name: expected(objects)[frame.frame_idx, k, PARTS.index(name)] for name in PARTS}
            for name, point in by_name.items():
                assert np.nan_to_num(instance.numpy()[instance.skeleton.index(name)], nan=-1) == pytest.approx(point)


def test_sleap_io_reads_tables_of_images_beside_them(tmp_path: Path) -> None:
    sleap = pytest.importorskip("sleap_io")
    folder = tmp_path / "labeled-data" / "clip"
    folder.mkdir(parents=True)
    objects = prompts()
    names: dict[int | str, str] = {index: f"labeled-data/clip/img{index}.png" for index in range(4)}
    schema = LabelSchema(SCHEMA.categories, "anna", names, {"b": "animal", "a": "animal"})
    with DeepLabCutSink(folder / "CollectedData_anna.csv", schema) as sink:
        for result in clip(objects):
            name = f"img{result.frame.index}"
            Image.new("RGB", (64, 64)).save(folder / f"{name}.png")
            sink.write(replace(result, frame=replace(result.frame, name=name, file_name=f"{name}.png")))
    labels = sleap.load_file(str(folder / "CollectedData_anna.csv"))
    assert sorted(frame.frame_idx for frame in labels) == [0, 1, 2, 3]
    for frame in labels:
        for instance in frame:
            k = ["b", "a"].index(instance.track.name)
            for name in PARTS:
                place = instance.numpy()[instance.skeleton.index(name)]
                assert np.nan_to_num(place, nan=-1) == pytest.approx(
                    expected(objects)[frame.frame_idx, k, PARTS.index(name)], abs=1e-3
                )
