"""Projects of DeepLabCut and SLEAP are found as they are laid out, and results go where their tools open them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from corrflow.errors import InputError
from corrflow.runtime.batch.deeplabcut_project import find_deeplabcut_project, result_scorer
from corrflow.runtime.batch.label_discovery import LabelSource
from corrflow.runtime.batch.projects import Project, find_project
from corrflow.runtime.batch.sleap_project import find_sleap_project
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.deeplabcut_h5 import DeepLabCutH5Sink, H5Table, read_h5_table
from corrflow.runtime.formats.label_schema import Category, LabelSchema
from corrflow.runtime.formats.sleap import SleapSink
from corrflow.runtime.tracking.results import frame_result, keypoints_result
from corrflow.runtime.types import Frame, KeypointsObject

pytest.importorskip("h5py")
FLY = np.array([[10.5, 20.25], [30, 40]], np.float32)
CONFIG = """Task: reach
scorer: anna
date: Aug20
multianimalproject: false
iteration: 2
TrainingFraction: [0.95]
cropping: {cropping}
video_sets:
  ? C:\\Users\\anna\\videos\\clip.mp4
  : crop: {crop}
  ? /home/anna/gone.avi
  : crop: 0, 640, 0, 480
bodyparts: [snout, tail]
"""
TABLE = """scorer,anna,anna,anna,anna
bodyparts,snout,snout,tail,tail
coords,x,y,x,y
labeled-data/clip/img0.png,10.5,20.25,,
labeled-data/clip/img2.png,,,,
"""


def deeplabcut(folder: Path, cropping: bool = False, crop: str = "0, 640, 0, 480") -> Path:
    """Make a project with one labelled video, one without its film, and one without labels."""
    for name in ("clip", "gone", "new", "clip_labeled"):
        (folder / "labeled-data" / name).mkdir(parents=True)
        for index in (0, 2, 99):
            Image.new("RGB", (8, 8)).save(folder / "labeled-data" / name / f"img{index}.png")
    for name in ("clip", "gone"):
        (folder / "labeled-data" / name / "CollectedData_anna.csv").write_text(TABLE)
    (folder / "config.yaml").write_text(CONFIG.format(cropping=str(cropping).lower(), crop=crop))
    (folder / "videos").mkdir()
    (folder / "videos" / "clip.mp4").write_bytes(b"film")
    return folder


def write(sink: Sink, objects: Sequence[KeypointsObject], frames: int = 3, labelled: int = 0) -> None:
    """Write results that move by a pixel a frame, with the user's own labels on one frame."""
    with sink:
        for index in range(frames):
            frame = Frame(np.zeros((64, 64, 3), np.uint8), index, 0, f"{index:05d}")
            tracked = [
                keypoints_result(
                    one, one.points + index, np.full(len(one.points), 0.8, np.float32),
                    one.point_names if index == labelled else (),
                )
                for one in objects
            ]  # fmt: skip
            sink.write(frame_result(frame, (64, 64), [], [], tracked))


def finish(project: Project, out: Path) -> list[str]:
    assert project.finish is not None
    return project.finish(out, [item.name for item in project.items])


def test_a_project_of_deeplabcut_has_its_labelled_videos_wherever_they_were(tmp_path: Path) -> None:
    folder = deeplabcut(tmp_path / "reach-anna")
    for path in (folder, folder / "config.yaml"):
        project = find_project(path)
        assert project is not None and project.tool == "DeepLabCut" and "deeplabcut-h5" in project.formats
    assert [(one.name, one.source) for one in project.items] == [("clip", folder / "videos" / "clip.mp4")]
    notes = " ".join(project.notes)
    assert "gone: its video" in notes and "new: no CollectedData" in notes and "_labeled" not in notes
    assert project.out == tmp_path / "reach-anna_corrflow"


def test_labels_of_cropped_images_are_not_misplaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="parts of the frames"):
        find_project(deeplabcut(tmp_path / "a", True, "100, 640, 50, 480"))
    assert find_project(deeplabcut(tmp_path / "b", True)) is not None


def test_results_get_the_names_that_deeplabcut_looks_for_and_extracted_images_machine_labels(tmp_path: Path) -> None:
    folder = deeplabcut(tmp_path / "reach")
    project = find_deeplabcut_project(folder)
    assert project is not None
    schema = LabelSchema((Category("animal", point_names=("snout", "tail")),), "anna", individuals={"": "animal"})
    prompt = KeypointsObject(1, FLY, ("snout", "tail"), "", None, "animal")
    write(DeepLabCutH5Sink(tmp_path / "out" / "clip" / "deeplabcut.h5", schema), [prompt])
    before = (folder / "labeled-data" / "clip" / "CollectedData_anna.csv").read_text()
    lines = finish(project, tmp_path / "out")
    base = folder / "videos" / "clipDLC_corrflow_reachAug20shuffle1_0"
    columns, rows, values = read_h5_table(base.with_name(f"{base.name}.h5"))
    assert columns[0] == ("DLC_corrflow_reachAug20shuffle1_0", "snout", "x") and len(columns) == 6
    assert [row[0] for row in rows] == ["0", "1", "2"] and values[2][0] == pytest.approx(12.5)
    assert base.with_name(f"{base.name}.csv").read_text().startswith("scorer,DLC_corrflow")
    machine = folder / "labeled-data" / "clip" / "machinelabels-iter2.h5"
    _, rows, values = read_h5_table(machine)
    assert rows == [("labeled-data", "clip", "img2.png")] and values[0][0] == pytest.approx(12.5)
    assert "labeled-data,clip,img2.png,12.500" in machine.with_name("machinelabels.csv").read_text()
    assert (folder / "labeled-data" / "clip" / "CollectedData_anna.csv").read_text() == before
    project_files = LabelSource(folder / "labeled-data", "clip", folder / "videos" / "clip.mp4").files()
    assert not [path for path in project_files if "machine" in path.name]  # they do not make the results out of date
    assert len(lines) == 4 and finish(project, tmp_path / "out") == lines  # a second run replaces its own files


def test_machine_labels_of_a_network_stay(tmp_path: Path) -> None:
    folder = deeplabcut(tmp_path / "reach")
    project = find_deeplabcut_project(folder)
    assert project is not None
    write(DeepLabCutH5Sink(tmp_path / "out" / "clip" / "deeplabcut.h5"), [KeypointsObject(1, FLY, ("a", "b"), "x")])
    table = H5Table(folder / "labeled-data" / "clip" / "machinelabels-iter2.h5")
    table.append("labeled-data/clip/img2.png", [1, 2])
    table.finish([("net", "snout", "x"), ("net", "snout", "y")], ("scorer", "bodyparts", "coords"))
    assert "it is not of corrflow" in finish(project, tmp_path / "out")[-1]
    assert read_h5_table(folder / "labeled-data" / "clip" / "machinelabels-iter2.h5")[0][0][0] == "net"


@pytest.mark.parametrize(
    ("models", "files", "scorer"),
    [
        ("dlc-models", {"pose_cfg.yaml": "net_type: resnet_50", "snapshot-500.index": "", "snapshot-1000.index": ""},
         "DLC_resnet50_reachAug20shuffle1_1000_corrflow"),
        ("dlc-models", {"pose_cfg.yaml": "net_type: mobilenet_v2_0.35", "snapshot-5.index": ""},
         "DLC_mobnet_35_reachAug20shuffle1_5_corrflow"),
        ("dlc-models-pytorch", {"pytorch_config.yaml": "net_type: hrnet_w32\nmethod: bu", "snapshot-200.pt": "",
                                "snapshot-best-050.pt": ""},
         "DLC_HrnetW32_reachAug20shuffle1_snapshot_best-50_corrflow"),
        ("dlc-models", {"pose_cfg.yaml": "net_type: resnet_50"}, "DLC_corrflow_reachAug20shuffle1_0"),
    ],
)  # fmt: skip
def test_results_begin_with_the_scorer_of_the_projects_network(
    tmp_path: Path, models: str, files: dict[str, str], scorer: str
) -> None:
    train = tmp_path / models / "iteration-2" / "reachAug20-trainset95shuffle1" / "train"
    train.mkdir(parents=True)
    for name, text in files.items():
        (train / name).write_text(text)
    config = {"Task": "reach", "date": "Aug20", "iteration": 2, "TrainingFraction": [0.95]}
    assert result_scorer(tmp_path, config) == result_scorer(tmp_path, config | {"snapshotindex": "all"}) == scorer
    first = result_scorer(tmp_path, config | {"snapshotindex": 0})
    assert first == scorer.replace("_1000_", "_500_").replace("best-50", "200")


def sleap_project(path: Path) -> Any:
    """Save a project of three films, of which two are labelled and share their name."""
    sio = pytest.importorskip("sleap_io")
    body, track = sio.Skeleton(["tail", "head"], name="fly"), sio.Track("male")
    films = [sio.Video(name, open_backend=False) for name in ("day1/clip.mp4", "D:\\day2\\clip.mp4", "other.mp4")]
    own = sio.Instance.from_numpy(FLY.astype(float), skeleton=body, track=track)
    loose = sio.Instance.from_numpy(FLY + 0.125, skeleton=body)
    guess = sio.PredictedInstance.from_numpy(FLY.astype(float), skeleton=body, track=track, score=0.5)
    frames = [
        sio.LabeledFrame(video=films[0], frame_idx=0, instances=[own, guess]),
        sio.LabeledFrame(video=films[0], frame_idx=9, instances=[guess]),
        sio.LabeledFrame(video=films[1], frame_idx=1, instances=[loose]),
    ]
    suggestions = [sio.SuggestionFrame(video=films[2], frame_idx=7)]
    sio.save_slp(sio.Labels(frames, videos=films, suggestions=suggestions), str(path), embed=False)
    for name in ("day1", "day2"):
        (path.parent / name).mkdir()
        (path.parent / name / "clip.mp4").write_bytes(b"film")
    return sio


def test_results_of_a_sleap_project_come_together_beside_the_users_instances(tmp_path: Path) -> None:
    sio = sleap_project(tmp_path / "flies.slp")
    before = (tmp_path / "flies.slp").read_bytes()
    project = find_project(tmp_path / "flies.slp")
    assert project is not None and project.tool == "SLEAP"
    assert [(one.name, one.source.parent.name) for one in project.items] == [
        ("day1_clip", "day1"), ("day2_clip", "day2"),
    ]  # fmt: skip
    assert "other.mp4: no labels" in project.notes[0]
    schema = LabelSchema((Category("fly", point_names=("tail", "head")),))
    male = KeypointsObject(1, FLY, ("tail", "head"), "male", "male", "fly")
    new = KeypointsObject(2, FLY, ("tail", "head"), "", None, "fly")
    out = tmp_path / "out"
    write(SleapSink(out / "day1_clip" / "tracks.slp", "clip.mp4", schema), [male, new])
    write(SleapSink(out / "day2_clip" / "tracks.slp", "clip.mp4", schema), [new], 3, 1)
    (line,) = finish(project, out)
    target = tmp_path / "flies.corrflow.slp"
    assert str(target) in line and finish(project, out) == [line]
    labels = sio.load_slp(str(target), open_videos=False)
    assert [one.filename for one in labels.videos] == [
        one.filename for one in sio.load_slp(str(tmp_path / "flies.slp"), open_videos=False).videos
    ]
    assert [(track.name) for track in labels.tracks] == ["male", "2"] and len(labels.suggestions) == 1
    first = {frame.frame_idx: frame for frame in labels if frame.video is labels.videos[0]}
    assert sorted(first) == [0, 1, 2]  # the older prediction of frame 9 gave way
    assert [one.numpy().tolist() for one in first[0].user_instances] == [FLY.tolist()]
    assert [one.track.name for one in first[1].predicted_instances] == ["male", "2"]
    second = {frame.frame_idx: frame for frame in labels if frame.video is labels.videos[1]}
    assert np.array_equal(second[1].user_instances[0].numpy(), FLY + 0.125) and not second[1].predicted_instances
    assert len(labels.skeletons) == 1 and (tmp_path / "flies.slp").read_bytes() == before


def test_a_file_of_the_user_is_not_replaced_by_a_merged_one(tmp_path: Path) -> None:
    sleap_project(tmp_path / "flies.slp")
    (tmp_path / "flies.corrflow.slp").write_bytes((tmp_path / "flies.slp").read_bytes())
    with pytest.raises(InputError, match="not of corrflow"):
        find_sleap_project(tmp_path / "flies.slp")


def test_coordinates_of_an_old_project_keep_their_origin(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    sio = sleap_project(tmp_path / "flies.slp")
    with h5py.File(tmp_path / "flies.slp", "r+") as file:
        instances = file["instances"][()]
        older = np.dtype([(name, instances.dtype[name]) for name in instances.dtype.names[:-1]])
        del file["instances"]
        file["instances"] = np.array([row[:-1] for row in instances.tolist()], older)
        file["metadata"].attrs["format_id"] = 1.0
    project = find_project(tmp_path / "flies.slp")
    assert project is not None
    schema = LabelSchema((Category("fly", point_names=("tail", "head")),))
    new = KeypointsObject(2, FLY, ("tail", "head"), "", None, "fly")
    write(SleapSink(tmp_path / "out" / "day1_clip" / "tracks.slp", "clip.mp4", schema), [new], 2, 1)
    finish(project, tmp_path / "out")
    labels = sio.load_slp(str(tmp_path / "flies.corrflow.slp"), open_videos=False)
    assert labels[0].user_instances[0].numpy() == pytest.approx(FLY - 0.5)
    assert labels[0].predicted_instances[0].numpy() == pytest.approx(FLY)


@pytest.mark.parametrize("text", ["", "Task: [", "- a", "Task: 1"])
def test_what_is_no_project_is_none_or_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "labeled-data").mkdir()
    (tmp_path / "config.yaml").write_text(text)
    try:
        assert find_deeplabcut_project(tmp_path) is None
    except InputError as error:
        assert "\n" not in str(error)
    (tmp_path / "a.slp").write_bytes(b"no project")
    with pytest.raises(InputError, match="SLEAP project"):
        find_sleap_project(tmp_path / "a.slp")
    assert find_sleap_project(tmp_path) is None and json.dumps(text)
