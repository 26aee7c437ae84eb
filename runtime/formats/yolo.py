"""YOLO's text files, one for each frame, in the forms for segmentation and for pose, with a data.yaml.

The class of an object is its id less one. A mask with holes or in several parts is several lines of its class, for the
format has no other way to say it. Numbers are shares of the picture's sides.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from corrflow.atomic_files import prepare_place, save_whole
from corrflow.errors import InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.polygons import filled, polygons_of
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject, ObjectResult, TrackedObject

SETUP = "data.yaml"

# Some loaders round polygons to pixels and some cut them off; a quarter of a pixel inside, both find the same one.
_INSIDE = 0.25


class YoloSink(Sink):
    """labels/FRAME.txt for each frame, and data.yaml with the names at the end."""

    def __init__(self, folder: str | Path, task: Literal["segment", "pose"]) -> None:
        """task: "segment" for masks, "pose" for points. Raises InputError where nothing can be written."""
        self._folder, self._pose = Path(folder), task == "pose"
        prepare_place(self._folder / SETUP)
        prepare_place(self._folder / "labels" / "frame.txt")
        self._names: dict[int, str] = {}
        self._points: dict[int, tuple[str, ...]] = {}

    def write(self, result: FrameResult) -> None:
        height, width = result.mask.shape
        sides = np.array([width, height])
        lines: list[str] = []
        own = [track for track in result.objects if (track.points is not None) is self._pose]
        most = max((len(track.point_names) for track in own), default=0)
        for track in own:
            self._names[track.id] = track.name or f"object {track.id}"
            self._points[track.id] = track.point_names
            if self._pose:
                lines.append(_line(track.id, _pose(track, sides, most)))
            else:
                for polygon in polygons_of(result.mask == track.id):
                    lines.append(_line(track.id, ((polygon + _INSIDE) / sides).ravel()))
        save_whole(os.path.join(self._folder, "labels", f"{result.frame.name}.txt"), "".join(lines).encode())

    def close(self) -> None:
        names = [self._names.get(id, f"object {id}") for id in range(1, max(self._names, default=0) + 1)]
        # JSON is YAML too. Without a path, Ultralytics takes the folder that data.yaml is in, not the current one.
        text = f"train: images\nval: images\nnames: {json.dumps(names, ensure_ascii=False)}\n"
        if self._pose and self._points:
            text += f"kpt_shape: [{max(map(len, self._points.values()))}, 3]\nkpt_names:\n"
            for id, points in sorted(self._points.items()):
                text += f"  {id - 1}: {json.dumps(points, ensure_ascii=False)}\n"
        save_whole(self._folder / SETUP, text.encode())


def read_yolo(path: Path, shape: tuple[int, int]) -> list[TrackedObject]:
    """The objects of one frame of (height, width) `shape`: boxes and polygons as masks, those of a class together.

    data.yaml beside the file or above has the names and, for pose, `kpt_shape`. Raises InputError for what cannot be
    read.
    """
    try:
        setup = _setup(path)
        names, points_of = setup.get("names", []), setup.get("kpt_names", {})
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
            if "kpt_shape" in setup:
                count, each = (int(number) for number in setup["kpt_shape"])
                places = numbers[4:].reshape(count, each)
                labels = points_of.get(id - 1) or [f"point{index + 1}" for index in range(count)]
                seen = [i for i in range(min(count, len(labels))) if places[i, :2].any() and (each < 3 or places[i, 2])]
                if seen:
                    places = (places[seen, :2] * sides).astype(np.float32)
                    objects.append(KeypointsObject(id, places, tuple(str(labels[i]) for i in seen), _name(names, id)))
                continue
            if len(numbers) in (4, 5):
                x, y, w, h = numbers[:4]
                # Pixels whose centres are in the box.
                low = np.round((np.array([x, y]) - np.array([w, h]) / 2) * sides)
                high = np.round((np.array([x, y]) + np.array([w, h]) / 2) * sides) - 1
                polygon = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
            else:
                polygon = np.trunc(numbers[: len(numbers) // 2 * 2].reshape(-1, 2) * sides)
            if len(polygon) < 3:
                raise ValueError(f"the line {line[:40]!r}")
            polygons.setdefault(id, []).append(polygon)
        for id, own in polygons.items():
            mask = filled(own, shape)
            if mask.any():
                objects.append(MaskObject(id, mask, _name(names, id)))
        return objects
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"expected YOLO labels in {path}, got some that cannot be read ({type(error).__name__}: {error})"
        ) from error


def _pose(track: ObjectResult, sides: np.ndarray, most: int) -> np.ndarray:
    """Box and points, as many as the object with the most has: [4 + 3 * most]."""
    assert track.points is not None
    places = track.points.astype(np.float64) / sides
    low, high = places.min(0), places.max(0)
    rows = np.zeros((most, 3))
    rows[: len(places), :2], rows[: len(places), 2] = places, 2
    return np.concatenate([(low + high) / 2, high - low, rows.ravel()])


def _line(id: int, numbers: np.ndarray) -> str:
    return " ".join([str(id - 1), *(f"{number:.8g}" for number in numbers.tolist())]) + "\n"


def _name(names: Any, id: int) -> str:
    name = str(names.get(id - 1, ""))
    return "" if name == f"object {id}" else name


def _setup(path: Path) -> dict[str, Any]:
    found = [place for place in (path.with_name(SETUP), path.parent.parent / SETUP) if place.is_file()]
    if not found:
        return {}
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"expected PyYAML for {found[0]}, found none; pip install 'corrflow[formats]'") from error
    try:
        content = yaml.safe_load(found[0].read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(f"{found[0]} is no YAML") from error
    return content if isinstance(content, dict) else {}
