"""YOLO's text files, one for each frame, for segmentation and for pose, with a data.yaml.

The class of an object is its id minus 1. A mask with holes or several components has several lines of its class.
Coordinates are fractions of the image's sides.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from corrflow.atomic_files import check_writable, write_file
from corrflow.errors import InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.polygons import filled, polygons_of
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject, ObjectResult, TrackedObject

DATA_YAML = "data.yaml"

# Some loaders round coordinates to pixels, others truncate; a quarter of a pixel makes both give the same pixel.
_PIXEL_OFFSET = 0.25


class YoloSink(Sink):
    """Writer of labels/FRAME.txt for each frame, and of data.yaml with the names at the end."""

    def __init__(self, folder: str | Path, task: Literal["segment", "pose"]) -> None:
        """Create the folders.

        task: "segment" for masks, "pose" for points

        Raises InputError where nothing can be written to the folder.
        """
        self._folder, self._pose = Path(folder), task == "pose"
        check_writable(self._folder / DATA_YAML)
        check_writable(self._folder / "labels" / "frame.txt")
        self._names: dict[int, str] = {}
        self._points: dict[int, tuple[str, ...]] = {}

    def write(self, result: FrameResult) -> None:
        height, width = result.mask.shape
        sides = np.array([width, height])
        lines: list[str] = []
        objects = [obj for obj in result.objects if (obj.points is not None) is self._pose]
        num_points = max((len(obj.point_names) for obj in objects), default=0)
        for obj in objects:
            self._names[obj.id] = obj.name or f"object {obj.id}"
            self._points[obj.id] = obj.point_names
            if self._pose:
                lines.append(_line(obj.id, _pose(obj, sides, num_points)))
            else:
                for polygon in polygons_of(result.mask == obj.id):
                    lines.append(_line(obj.id, ((polygon + _PIXEL_OFFSET) / sides).ravel()))
        write_file(os.path.join(self._folder, "labels", f"{result.frame.name}.txt"), "".join(lines))

    def close(self) -> None:
        names = [self._names.get(id, f"object {id}") for id in range(1, max(self._names, default=0) + 1)]
        # JSON is valid YAML. Without `path`, Ultralytics uses the folder of data.yaml, not the current folder.
        text = f"train: images\nval: images\nnames: {json.dumps(names, ensure_ascii=False)}\n"
        if self._pose and self._points:
            text += f"kpt_shape: [{max(map(len, self._points.values()))}, 3]\nkpt_names:\n"
            for id, points in sorted(self._points.items()):
                text += f"  {id - 1}: {json.dumps(points, ensure_ascii=False)}\n"
        write_file(self._folder / DATA_YAML, text)


def read_yolo(path: Path, shape: tuple[int, int]) -> list[TrackedObject]:
    """Read the objects of one frame; all boxes and polygons of a class form one mask.

    shape: (height, width) of the frame

    data.yaml, beside the file or one folder above, has the names and, for pose, `kpt_shape`. Raises InputError.
    """
    try:
        data = _read_data_yaml(path)
        names, point_names = data.get("names", []), data.get("kpt_names", {})
        names = dict(enumerate(names)) if isinstance(names, list) else names
        sides = np.array(shape[::-1])
        polygons: dict[int, list[np.ndarray]] = {}
        objects: list[TrackedObject] = []
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if not line.strip():
                continue
            kind, *rest = line.split()
            numbers = np.array([float(number) for number in rest])
            id = int(kind) + 1
            if not 1 <= id <= 255 or not np.isfinite(numbers).all() or not (np.abs(numbers) < 1e4).all():
                raise ValueError(f"the line {line[:40]!r}")
            if "kpt_shape" in data:
                count, each = (int(number) for number in data["kpt_shape"])
                rows = numbers[4:].reshape(count, each)
                labels = point_names.get(id - 1) or [f"point{index + 1}" for index in range(count)]
                visible = [i for i in range(min(count, len(labels))) if rows[i, :2].any() and (each < 3 or rows[i, 2])]
                if visible:
                    points = (rows[visible, :2] * sides).astype(np.float32)
                    visible_names = tuple(str(labels[i]) for i in visible)
                    objects.append(KeypointsObject(id, points, visible_names, _name(names, id)))
                continue
            if len(numbers) in (4, 5):
                x, y, w, h = numbers[:4]
                # The mask has the pixels with their centre in the box.
                low = np.round((np.array([x, y]) - np.array([w, h]) / 2) * sides)
                high = np.round((np.array([x, y]) + np.array([w, h]) / 2) * sides) - 1
                polygon = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
            else:
                polygon = np.trunc(numbers[: len(numbers) // 2 * 2].reshape(-1, 2) * sides)
            if len(polygon) < 3:
                raise ValueError(f"the line {line[:40]!r}")
            polygons.setdefault(id, []).append(polygon)
        for id, parts in polygons.items():
            mask = filled(parts, shape)
            if mask.any():
                objects.append(MaskObject(id, mask, _name(names, id)))
        return objects
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"expected YOLO labels in {path}, got some that cannot be read ({type(error).__name__}: {error})"
        ) from error


def _pose(obj: ObjectResult, sides: np.ndarray, num_points: int) -> np.ndarray:
    """Return box and points, padded to `num_points`: [4 + 3 * num_points]."""
    assert obj.points is not None
    points = obj.points.astype(np.float64) / sides
    low, high = points.min(0), points.max(0)
    rows = np.zeros((num_points, 3))
    rows[: len(points), :2], rows[: len(points), 2] = points, 2
    return np.concatenate([(low + high) / 2, high - low, rows.ravel()])


def _line(id: int, numbers: np.ndarray) -> str:
    return " ".join([str(id - 1), *(f"{number:.8g}" for number in numbers.tolist())]) + "\n"


def _name(names: Any, id: int) -> str:
    name = str(names.get(id - 1, ""))
    return "" if name == f"object {id}" else name


def _read_data_yaml(path: Path) -> dict[str, Any]:
    """Return the content of the data.yaml beside a file or one folder above; empty without one."""
    candidates = [place for place in (path.with_name(DATA_YAML), path.parent.parent / DATA_YAML) if place.is_file()]
    if not candidates:
        return {}
    try:
        content = yaml.safe_load(candidates[0].read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(f"{candidates[0]} is no YAML") from error
    return content if isinstance(content, dict) else {}
