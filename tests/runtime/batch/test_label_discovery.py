"""Labels are found by name, in files of one video or of several, and images of the video are no masks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corrflow.errors import InputError
from corrflow.runtime.batch.label_discovery import LabelSource, find_annotations, unused_labels
from corrflow.runtime.formats.annotations import Annotations
from corrflow.runtime.formats.deeplabcut_h5 import H5Table
from corrflow.runtime.types import KeypointsObject

SIZE = (20, 30)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def coco(*images: str, label: str = "car") -> str:
    """Return COCO with one box on each image."""
    box = {"category_id": 1, "iscrowd": 0, "segmentation": [], "bbox": [5, 5, 8, 8], "area": 64}
    return json.dumps(
        {
            "images": [{"id": k, "file_name": name, "height": 20, "width": 30} for k, name in enumerate(images)],
            "annotations": [{"id": k + 1, "image_id": k, **box} for k in range(len(images))],
            "categories": [{"id": 1, "name": label}],
        }
    )


def found(place: Path, video: str = "clip", **options: object) -> Annotations:
    source = LabelSource(place, video, place.parent / f"{video}.mp4", **options)  # pyright: ignore[reportArgumentType]
    return find_annotations(source, lambda: SIZE)


@pytest.mark.parametrize(
    "name", ["clip.csv", "clip.mp4.csv", "CLIP.labels.csv", "clip.mp4.labels.v002.csv", "clipDLC_resnet50_day1.csv"]
)
def test_a_file_named_after_the_video_in_the_ways_of_the_tools_is_its_own(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("frame,name,x,y\n3,nose,4,5\n")
    assert found(tmp_path).frames == (3,)


@pytest.mark.parametrize("name", ["clip2.csv", "clip-b.csv", "my clip.csv", "clip.notes.csv"])
def test_a_file_named_after_another_video_is_not(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("frame,name,x,y\n3,nose,4,5\n")
    with pytest.raises(InputError, match="expected labels for 'clip'"):
        found(tmp_path, others=("clip", "clip2", "clip-b", "my clip", "clip.notes"))


def test_one_file_of_several_videos_gives_each_its_own(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(coco("cam1/00003.png", "cam2/00005.png", "cam2/00006.png"))
    videos = ("cam1", "cam2", "cam3")
    assert found(tmp_path, "cam1", others=videos).frames == (3,)
    assert found(tmp_path, "cam2", others=videos).frames == (5, 6)
    with pytest.raises(InputError, match="expected labels for 'cam3'"):
        found(tmp_path, "cam3", others=videos)
    # The file itself may be given in place of its folder.
    assert found(tmp_path / "all.json", "cam2", others=videos).frames == (5, 6)


def test_images_without_a_folder_are_those_of_the_only_video(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(coco("00003.png"))
    assert found(tmp_path / "annotations.json", others=("clip",)).frames == (3,)
    with pytest.raises(InputError, match="expected labels for 'clip'"):
        found(tmp_path / "annotations.json", others=("clip", "other"))


def test_the_only_file_of_a_tool_is_for_the_only_video(tmp_path: Path) -> None:
    (tmp_path / "instances_default.json").write_text(coco("frame_000010.PNG"))
    assert found(tmp_path, others=("clip",)).frames == (10,)
    with pytest.raises(InputError, match="expected labels for 'clip'"):
        found(tmp_path, others=("clip", "other"))
    (tmp_path / "instances_default.json").rename(tmp_path / "elephant.json")
    with pytest.raises(InputError, match="expected labels for 'clip'"):
        found(tmp_path, others=("clip",))


def test_a_fault_in_a_file_of_several_videos_is_refused_under_strict(tmp_path: Path) -> None:
    (tmp_path / "clip.csv").write_text("frame,name,x,y\n3,nose,4,5\n")
    far = json.loads(coco("clip/00003.png", "other/00003.png"))
    far["annotations"][0]["bbox"] = [500, 500, 8, 8]
    (tmp_path / "all.json").write_text(json.dumps(far))
    videos = ("clip", "other")
    assert found(tmp_path, others=videos).frames == (3,)
    with pytest.raises(InputError, match=r"under --strict, got frame .*all\.json"):
        found(tmp_path, others=videos, is_strict=True)


def test_images_of_the_video_are_no_masks(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    for index in range(3):
        Image.fromarray(noise).save(folder / f"img{index}.png")
    (folder / "CollectedData_anna.csv").write_text(
        "scorer,anna,anna\nbodyparts,nose,nose\ncoords,x,y\nlabeled-data/clip/img1.png,4,5\n"
    )
    own = LabelSource(tmp_path, "clip", folder, frame_names=["img0", "img1", "img2"])
    for source in (own, replace(own, source=tmp_path / "clip.mp4", frame_names=None)):
        annotations = find_annotations(source, lambda: SIZE)
        assert annotations.frames == (1,) and [one.prompt.track_id for one in annotations.objects[1]] == [None]
        assert any("left out 3 images: " in note for note in annotations.notes)


def test_labelme_beside_its_images_is_read_and_the_images_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(folder / "00002.png")
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[3, 3], [9, 9]], "group_id": None}
    content = {"shapes": [shape], "imagePath": "00002.png", "imageHeight": 20, "imageWidth": 30}
    (folder / "00002.json").write_text(json.dumps(content))
    annotations = found(tmp_path)
    assert annotations.frames == (2,) and [one.prompt.name for one in annotations.objects[2]] == ["cat"]
    assert any("their labels are in the JSON beside them" in note for note in annotations.notes)


def test_a_file_that_is_no_label_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip.csv").write_text("frame,name,x,y\n3,nose,4,5\n")
    (tmp_path / "package.json").write_text("[1, 2]")
    assert any("package.json" in note and "named after no video" in note for note in found(tmp_path).notes)


def test_labels_that_no_video_uses_are_named(tmp_path: Path) -> None:
    for name in ("clip.csv", "clp.csv", "all.json", ".hidden.csv", "data.yaml", "notes.md"):
        (tmp_path / name).touch()
    for name in ("clip", "klip"):
        (tmp_path / name).mkdir()
    assert unused_labels(tmp_path, ["clip"], [str(tmp_path / "clip.csv")]) == ["all.json", "clp.csv", "klip"]


def test_an_unreadable_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected to read .*, got an error"):
        found(tmp_path / "none")


DEEPLABCUT = """scorer,anna,anna
bodyparts,snout,snout
coords,x,y
labeled-data/clip/img3.png,10.5,12.25
"""


@pytest.mark.parametrize(("x", "note"), [("10.5", "has the same labels"), ("11.5", "has other labels")])
def test_a_table_of_deeplabcut_is_read_once_and_its_images_and_machine_labels_are_none(
    tmp_path: Path, x: str, note: str
) -> None:
    pytest.importorskip("h5py")
    folder = tmp_path / "labels" / "clip"
    folder.mkdir(parents=True)
    (folder / "CollectedData_anna.csv").write_text(DEEPLABCUT.replace("10.5", x))
    (folder / "machinelabels.csv").write_text(DEEPLABCUT)
    Image.new("RGB", (30, 20), (9, 9, 9)).save(folder / "img3.png")
    table = H5Table(folder / "CollectedData_anna.h5")
    table.append("labeled-data/clip/img3.png", [10.5, 12.25])
    table.finish([("anna", "snout", "x"), ("anna", "snout", "y")], ("scorer", "bodyparts", "coords"))
    annotations = found(tmp_path / "labels")
    (packed,) = annotations.objects[3]
    assert isinstance(packed.prompt, KeypointsObject) and packed.prompt.points.tolist() == [[10.5, 12.25]]
    notes = " ".join(annotations.notes)
    assert note in notes and "predictions for a user to correct" in notes and "images that DeepLabCut" in notes
    (folder / "CollectedData_anna.h5").write_bytes(b"damaged")
    text = found(tmp_path / "labels")
    assert [one.prompt.points.tolist() for one in text.objects[3]] == [[[float(x), 12.25]]]  # type: ignore[union-attr]
    assert any("CollectedData_anna.csv beside it is read" in one for one in text.notes)
