"""Projects of CVAT, YOLO and LabelMe are found as their tools lay them out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corrflow.errors import InputError
from corrflow.runtime.batch.image_projects import find_image_project
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.label_discovery import find_annotations
from corrflow.runtime.batch.process_item import Job, labels_of

SIZE = (20, 30)


def save_images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(folder / name)


def frames(item: Item, *others: str) -> tuple[int, ...]:
    job = Job(Path("none"), Path(), Path(), (), "", names=(item.name, *others))
    return find_annotations(labels_of(job, item), lambda: SIZE).frames


def labelme(name: str) -> str:
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[3, 3], [9, 9]], "group_id": None}
    return json.dumps({"shapes": [shape], "imagePath": name, "imageHeight": 20, "imageWidth": 30})


CVAT = """<annotations><version>1.1</version>
<image id="1" name="frame_000001.png" width="30" height="20"><box label="car" xtl="2" ytl="2" xbr="9" ybr="9"/></image>
</annotations>"""


def test_a_cvat_export_has_its_images_or_its_video(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(CVAT)
    with pytest.raises(InputError, match="expected images or a video beside"):
        find_image_project(tmp_path)
    save_images(tmp_path / "images", "frame_000000.png", "frame_000001.png")
    project = find_image_project(tmp_path)
    assert project is not None and project.tool == "CVAT" and project.formats[0] == "cvat"
    (item,) = project.items
    assert item.name == tmp_path.name and frames(item) == (1,)
    assert project.out == tmp_path.resolve().with_name(f"{tmp_path.name}_corrflow")


@pytest.mark.parametrize("layout", ["images/train", "train/images"])
def test_a_yolo_data_set_has_its_parts(tmp_path: Path, layout: str) -> None:
    labels = layout.replace("images", "labels")
    save_images(tmp_path / layout, "a0.jpg", "a1.jpg")
    (tmp_path / labels).mkdir(parents=True)
    (tmp_path / labels / "a1.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    text = f"path: /gone\ntrain: ../{layout}\nval: {layout.replace('train', 'val')}\nnames: [cat]\n"
    (tmp_path / "data.yaml").write_text(text)
    project = find_image_project(tmp_path)
    assert project is not None and (project.tool, project.formats[0], project.with_frames) == (
        "YOLO",
        "yolo-seg",
        "all",
    )
    (item,) = project.items
    assert item.name == "train" and frames(item) == (1,)


def test_a_data_set_without_images_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat]\n")
    with pytest.raises(InputError, match="got none that exists"):
        find_image_project(tmp_path)
    for damaged in ("a: [", "2001-99-99", "!!timestamp 1", "? {a: b}\n: 1"):
        (tmp_path / "data.yaml").write_text(damaged)
        with pytest.raises(InputError, match="expected YAML"):
            find_image_project(tmp_path)


def test_folders_of_labelme_are_found_one_by_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_images(tmp_path / name, "0.png", "1.png")
    (tmp_path / "one" / "1.json").write_text(labelme("1.png"))
    project = find_image_project(tmp_path)
    assert project is not None and project.tool == "LabelMe" and [one.name for one in project.items] == ["one"]
    assert frames(project.items[0], "two") == (1,)
    alone = find_image_project(tmp_path / "one")
    assert alone is not None and frames(alone.items[0]) == (1,)


def test_other_folders_are_no_projects(tmp_path: Path) -> None:
    save_images(tmp_path, "0.png")
    (tmp_path / "0.json").write_text("[1]")
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    assert find_image_project(tmp_path) is None and find_image_project(tmp_path / "0.png") is None
