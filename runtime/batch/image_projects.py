"""Projects of tools that label images: a CVAT export, a YOLO data set, and folders of LabelMe.

A project is found by its own files. Its images and labels are taken from where the tool keeps them, and its results get
the tool's format, in a folder beside the project.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corrflow import file_budget
from corrflow.errors import InputError
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.formats.yolo_classes import DATA_YAMLS, YAML_ERRORS, yaml_reason
from corrflow.runtime.video.image_sequence import is_image, natural_order
from corrflow.runtime.video.suffixes import VIDEO_SUFFIXES

_MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class Project:
    """Project of another tool.

    tool:        name of the tool
    items:       its videos, each with the place of its labels
    out:         folder of results, unless --out names one
    formats:     formats of the results, unless --format names some
    with_frames: frames whose images are written beside the results
    notes:       a line for each part that is not tracked
    finish:      writes the results of the named items, which are in a folder, to the places of the tool, and returns
                 a line for each file; None where the tool opens the results as they are
    """

    tool: str
    items: tuple[Item, ...]
    out: Path
    formats: tuple[str, ...]
    with_frames: str = "none"
    notes: tuple[str, ...] = ()
    finish: Callable[[Path, Collection[str]], list[str]] | None = None


def find_image_project(path: Path) -> Project | None:
    """Return the project in a folder, or None for a folder that is none. Raises InputError for a damaged one."""
    if not path.is_dir():
        return None
    for find in (_cvat, _yolo, _labelme):
        if (project := find(path)) is not None:
            return project
    return None


def _cvat(path: Path) -> Project | None:
    """Return the items of an export "CVAT for images" or "CVAT for video" with its images or its video."""
    labels = path / "annotations.xml"
    if not labels.is_file():
        return None
    folders = [folder for folder in _folders_of_images(path / "images") if folder != path / "images"]
    items = [Item(folder.name, folder, labels) for folder in folders]
    if not items and _has_images(path / "images"):
        items = [Item(path.name, path / "images", labels)]
    videos = [one for place in (path, path / "images", path / "data") if place.is_dir() for one in place.iterdir()]
    items += [Item(one.stem, one, labels) for one in sorted(videos, key=natural_order) if _is_video(one)]
    if not items:
        raise InputError(
            f"expected images or a video beside {str(labels)!r}, got neither; export with images, or add the video"
        )
    return Project("CVAT", tuple(items), _beside(path), ("cvat", "report"))


def _yolo(path: Path) -> Project | None:
    """Return the items of a data set with data.yaml: one for each part, or for each folder of images in a part."""
    files = [path / name for name in DATA_YAMLS if (path / name).is_file()]
    if not files:
        return None
    data = read_yaml(files[0])
    if not {"train", "val", "test"} & set(data):
        return None
    root = path / str(data["path"]) if isinstance(data.get("path"), str) else path
    root = root if root.is_dir() else path  # a path of another machine
    items: dict[Path, Item] = {}
    for part in ("train", "val", "test"):
        for text in _texts(data.get(part)):
            images = _existing(root, path, text)
            for folder in [] if images is None else _folders_of_images(images):
                name = part if folder == images else folder.name
                items.setdefault(folder, Item(name, folder, folder.parent, _labels_folder(folder)))
    if not items:
        raise InputError(
            f"expected folders of images in {str(files[0])!r}, got none that exists; correct its paths, or name videos"
        )
    kind = "yolo-pose" if "kpt_shape" in data else "yolo-seg"
    return Project("YOLO", tuple(items.values()), _beside(path), (kind, "report"), "all")


def _labelme(path: Path) -> Project | None:
    """Return the items of folders with images and LabelMe's JSON beside them: this folder, or those in it."""
    folders = [path] if _has_images(path) else [one for one in _children(path) if one.is_dir()]
    items = tuple(Item(one.resolve().name, one, one.parent, one) for one in folders if _has_labelme(one))
    return Project("LabelMe", items, _beside(path), ("labelme", "report"), "all") if items else None


def _has_labelme(folder: Path) -> bool:
    """Return True if the first JSON file beside an image of its name is LabelMe's."""
    for child in _children(folder):
        if is_image(child) and (labels := child.with_suffix(".json")).is_file():
            try:
                content = file_budget.read_json(labels, limit=_MAX_JSON_BYTES)
            except (OSError, ValueError, RecursionError, InputError):
                return False
            return isinstance(content, dict) and "shapes" in content
    return False


def _labels_folder(images: Path) -> Path:
    """Return the folder of labels of a folder of images: the last part `images` becomes `labels`, as in Ultralytics."""
    parts = list(images.parts)
    for index in reversed(range(len(parts))):
        if parts[index] == "images":
            parts[index] = "labels"
            return Path(*parts)
    return images


def _existing(root: Path, folder: Path, text: str) -> Path | None:
    """Return the folder that a data.yaml means: from its root, beside the file, or with a needless ../ before it."""
    candidates = [root / text, folder / text, folder / text.removeprefix("../")]
    return next((one for one in candidates if one.is_dir()), None)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [one for one in value or [] if isinstance(one, str)]


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, {} for another content. Raises InputError for a damaged or a large file."""
    try:
        content = file_budget.read_yaml(path)
    except YAML_ERRORS as error:
        raise InputError(
            f"expected YAML in {str(path)!r}, got a file that cannot be read ({yaml_reason(error)}); correct it"
        ) from None
    return content if isinstance(content, dict) else {}


def _children(folder: Path) -> Iterable[Path]:
    try:
        return sorted((one for one in folder.iterdir() if not one.name.startswith(".")), key=natural_order)
    except OSError:
        return []


def _folders_of_images(folder: Path) -> list[Path]:
    """Return the folders with images: this one, or those below it."""
    if _has_images(folder):
        return [folder]
    return [inner for child in _children(folder) if child.is_dir() for inner in _folders_of_images(child)]


def _has_images(folder: Path) -> bool:
    return any(is_image(one) for one in _children(folder))


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _beside(path: Path) -> Path:
    """Return the default folder of a project's results."""
    plain = path.resolve()
    return plain.with_name(f"{plain.name}_corrflow")
