"""YOLO's text files, one for each frame, for segmentation and for pose, with a data.yaml.

The class of an object is the position of its category. An object has one line, in which bridges without
width connect its components. They are taken out when the line is read again. Other loaders draw a bridge as a line of
one pixel. Coordinates are fractions of the image's sides.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import numpy as np

from corrflow.atomic_files import check_writable, write_file
from corrflow.errors import InputError
from corrflow.file_budget import read_text
from corrflow.runtime.formats.annotations import FileContent, ReadContext
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.compressed_annotation import PackedFrames
from corrflow.runtime.formats.label_schema import EMPTY_SCHEMA, Category, FrameKey, LabelSchema
from corrflow.runtime.formats.mask_image import MAX_OBJECTS
from corrflow.runtime.formats.polygons import bridged, filled, simplified_polygons
from corrflow.runtime.formats.yolo_classes import DATA_YAML, YoloClasses, find_classes
from corrflow.runtime.formats.yolo_lines import YoloLine, parse_lines
from corrflow.runtime.types import (
    MIN_POINT_CONFIDENCE,
    Annotation,
    FrameResult,
    KeypointsObject,
    MaskObject,
    ObjectResult,
)

# Some loaders round coordinates to pixels, others truncate; a quarter of a pixel makes both give the same pixel.
_PIXEL_OFFSET = 0.25
_ROUNDING = 2e-3  # pixels that six digits of a fraction are off
_LEAST_SIDE = 2.0  # pixels of a box around the points of a pose
_MAX_BYTES = 4 << 20
_BYTES_OF_NUMBER = 100
_MAX_CORNERS, _MAX_PARTS = 20_000, 200  # of a polygon whose bridges are taken out


class YoloSink(Sink):
    """Writer of labels/FRAME.txt for each frame, and of data.yaml with the names at the end."""

    def __init__(
        self, folder: str | Path, task: Literal["segment", "pose"], schema: LabelSchema = EMPTY_SCHEMA
    ) -> None:
        """Create the folders.

        task: "segment" for masks, "pose" for points

        Raises InputError where nothing can be written to the folder.
        """
        self._folder, self._pose, self._schema = Path(folder), task == "pose", schema
        check_writable(self._folder / DATA_YAML)
        check_writable(self._folder / "labels" / "frame.txt")
        self._classes = [one.name for one in schema.categories if one.name]
        self._points: dict[str, tuple[str, ...]] = {}
        self._num_points = 0

    def write(self, result: FrameResult) -> None:
        height, width = result.mask.shape
        sides = np.array([width, height])
        objects = [obj for obj in result.objects if (obj.points is not None) is self._pose]
        for obj in objects:
            self._add_class(obj)
        lines: list[str] = []
        for obj in objects:
            if self._pose and (numbers := self._pose_of(obj, sides)) is not None:
                lines.append(_line(self._classes.index(_class_name(obj)), numbers))
            elif not self._pose and obj.visible:
                polygons = obj.polygons if obj.is_annotation else ()
                polygons = polygons or simplified_polygons(result.mask == obj.id)
                if polygons:
                    whole = np.clip((bridged(polygons) + _PIXEL_OFFSET) / sides, 0, 1)
                    lines.append(_line(self._classes.index(_class_name(obj)), whole.ravel()))
        # Loaders look for an image's labels where "labels" replaces the last "images" of its path.
        image = PureWindowsPath("images", *_inner_parts(self._schema.image_name(result.frame))).with_suffix(".txt")
        last = max(k for k, part in enumerate(image.parts) if part == "images")
        place = [*image.parts[:last], "labels", *image.parts[last + 1 :]]
        write_file(os.path.join(self._folder, *place), "".join(lines))

    def close(self) -> None:
        # JSON is valid YAML. Without `path`, Ultralytics uses the folder of data.yaml, not the current folder.
        text = f"train: images\nval: images\nnames: {_json(self._classes)}\n"
        if self._points:
            text += f"kpt_shape: [{self._num_points}, 3]\n"
            if len(self._points) == 1 and (flip := self._flip_indices(*self._points)):
                text += f"flip_idx: {json.dumps(flip)}\n"
            text += "kpt_names:\n"
            for name in sorted(self._points, key=self._classes.index):
                text += f"  {self._classes.index(name)}: {_json(self._points[name])}\n"
        write_file(self._folder / DATA_YAML, text)

    def _add_class(self, obj: ObjectResult) -> None:
        name = _class_name(obj)
        if name not in self._classes:
            self._classes.append(name)
        if self._pose:
            category = self._schema.category(name)
            names = dict.fromkeys((*self._points.get(name, category.point_names if category else ()), *obj.point_names))
            self._points[name] = tuple(names)
            self._num_points = max(self._num_points, len(names))

    def _pose_of(self, obj: ObjectResult, sides: np.ndarray) -> np.ndarray | None:
        """Return box and points, hidden ones as 0 0 0: [4 + 3 * points]; None without a visible point."""
        assert obj.points is not None
        confidence = np.ones(len(obj.points)) if obj.point_confidence is None else obj.point_confidence
        shown = {
            name: np.clip(point, 0, sides)
            for name, point, probability in zip(obj.point_names, obj.points.astype(np.float64), confidence, strict=True)
            if np.isfinite(point).all() and (probability > MIN_POINT_CONFIDENCE or name in obj.annotated_points)
        }
        if not shown:
            return None
        rows = np.zeros((self._num_points, 3))
        for k, name in enumerate(self._points[_class_name(obj)]):
            if name in shown:
                rows[k] = *(shown[name] / sides), 2
        places = np.array(list(shown.values()))
        low, high = places.min(0), places.max(0)
        grow = np.maximum(_LEAST_SIDE - (high - low), 0) / 2
        low, high = np.maximum(low - grow, 0) / sides, np.minimum(high + grow, sides) / sides
        return np.concatenate([(low + high) / 2, high - low, rows.ravel()])

    def _flip_indices(self, name: str) -> list[int]:
        """Return the left or right counterpart of each point of a class; [] where there is none."""
        points = self._points[name]
        category = self._schema.category(name) or Category(name)
        flip = list(range(self._num_points))
        pairs = [*category.symmetries, *((k, points.index(other)) for k, other in _mirrored(points))]
        for one, other in pairs:
            flip[one], flip[other] = other, one
        return flip if pairs else []


def _mirrored(points: tuple[str, ...]) -> list[tuple[int, str]]:
    """Return the indices of points of the left side with the names of those of the right side."""
    others = ((k, re.sub("left", "right", re.sub("Left", "Right", name))) for k, name in enumerate(points))
    return [(k, other) for k, other in others if other != points[k] and other in points]


def _class_name(obj: ObjectResult) -> str:
    return obj.category or obj.name or f"object {obj.id}"


def _inner_parts(name: str) -> list[str]:
    """Return the parts of an image's path, without those that leave the folder of images."""
    parts = [part for part in PureWindowsPath(name).parts if part not in ("..", ".") and not set(part) & set(":\\/")]
    return parts or ["image"]


def _line(index: int, numbers: np.ndarray) -> str:
    return " ".join([str(index), *(f"{number:.8g}" for number in numbers.tolist())]) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_yolo(path: Path, content: Any, context: ReadContext) -> FileContent:
    """Read the objects of one frame; each line is an object, see `yolo_lines`.

    Names are those of `yolo_classes`. A line that cannot be understood is left out. Raises InputError.
    """
    classes = find_classes(path)
    frame = f"frame {context.frame!r}"
    try:
        text = read_text(path, _MAX_BYTES)
        context.budget.take(_BYTES_OF_NUMBER * (len(text) // 2 + 1), "numbers")
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected YOLO labels in {path}, got a file that cannot be read ({type(error).__name__})"
        ) from error
    lines = parse_lines(
        text, classes.point_shape, lambda number, why: context.leave_out(f"{frame}, line {number}", why)
    )
    if len(lines) > MAX_OBJECTS:
        raise InputError(
            f"expected at most {MAX_OBJECTS} objects, got {len(lines)} in {path}; track them in several runs"
        )
    key, image_names = _frame_of(path, context)
    frames = PackedFrames(context.budget)
    point_names: dict[int, tuple[str, ...]] = {}
    has_outlines = False
    for line in lines:
        what = f"{frame}, {classes.name(line.index)!r} in line {line.number}"
        if line.confidence is not None and line.confidence < context.min_score:
            context.ignore(what, f"its confidence is less than {context.min_score:g}")
            continue
        if line.points is not None:
            one = _keypoints(line, classes, what, context)
            point_names[line.index] = classes.points_of(line.index, len(line.points))
        else:
            one = _mask(line, classes, context.frame_size())
            has_outlines |= line.corners is not None
        if one is None:
            context.leave_out(what, "it has nothing in the image")
        else:
            frames.add(key, one)
    categories = tuple(
        one if one.point_names or one.id not in point_names else Category(one.name, one.id, point_names[one.id])
        for one in classes.categories({line.index for line in lines})
    )
    return FileContent(frames, LabelSchema(categories, image_names=image_names, has_outlines=has_outlines))


def _frame_of(path: Path, context: ReadContext) -> tuple[FrameKey, dict[FrameKey, str]]:
    """Return the frame of a file, and the name of its image where frames of a video have other names than here.

    Ultralytics calls the results of a video VIDEO_1.txt and so on, from 1.
    """
    counted = re.fullmatch(rf"{re.escape(context.video)}_([1-9][0-9]{{0,8}})", path.stem)
    if context.frame_names is not None or not isinstance(context.frame, str):
        return context.frame, {}
    if counted and not path.with_name(f"{context.video}_0.txt").exists():
        return int(counted[1]) - 1, {}
    return context.frame, {context.frame: f"{context.frame}.jpg"}


def _mask(line: YoloLine, classes: YoloClasses, shape: tuple[int, int]) -> Annotation | None:
    sides, polygons = np.array(shape[::-1]), list[np.ndarray]()
    if line.box is not None:
        centre, half = line.box[:2] * sides, line.box[2:] * sides / 2
        # The mask has the pixels with their centre in the box.
        (left, top), (right, bottom) = (
            np.clip(np.round(corner), 0, sides).astype(int).tolist() for corner in (centre - half, centre + half)
        )
        mask = np.zeros(shape, bool)
        mask[top:bottom, left:right] = True
    else:
        assert line.corners is not None
        polygons = [part * sides for part in without_bridges(line.corners)]
        mask = filled((np.trunc(part + _ROUNDING) for part in polygons), shape)
    if not mask.any():
        return None
    name = classes.name(line.index)
    return MaskObject(0, mask, name, line.track_id, name, tuple(part - _PIXEL_OFFSET for part in polygons))


def _keypoints(line: YoloLine, classes: YoloClasses, what: str, context: ReadContext) -> Annotation | None:
    """Return the labelled points of a pose: those with a visibility of 1 or 2, or with a likelihood."""
    assert line.points is not None
    names = classes.points_of(line.index, len(line.points))
    is_labelled = np.asarray((line.points[:, :2] > 0).any(1) & (line.points[:, :2] >= 0).all(1))
    likelihood = np.ones(len(names))
    is_predicted = line.confidence is not None
    if line.points.shape[1] == 3:
        is_labelled = np.asarray(line.points[:, 2] > 0)
        if (line.points[:, 2] % 1 != 0).any():
            likelihood, is_predicted = line.points[:, 2], True
    for k in np.flatnonzero(is_labelled & (likelihood < context.min_score)).tolist():
        context.ignore(f"{what}, point {names[k]!r}", f"its likelihood is less than {context.min_score:g}")
        is_labelled[k] = False
    if not is_labelled.any():
        return None
    points = (line.points[is_labelled, :2] * np.array(context.frame_size()[::-1])).astype(np.float32)
    shown = tuple(name for name, labelled in zip(names, is_labelled, strict=True) if labelled)
    name = classes.name(line.index)
    return KeypointsObject(0, points, shown, name, line.track_id, name, is_predicted)


def without_bridges(corners: np.ndarray) -> list[np.ndarray]:
    """Split a polygon [P, 2] at the edges that it has in both directions, where both parts have an area."""
    waiting, parts = [corners], list[np.ndarray]()
    while waiting:
        polygon = waiting.pop()
        if len(polygon) < _MAX_CORNERS and len(waiting) + len(parts) < _MAX_PARTS:
            for first, last in _bridges(polygon)[:_MAX_PARTS]:
                inner, outer = polygon[first + 1 : last], np.concatenate([polygon[: first + 1], polygon[last + 2 :]])
                if _area(inner) > 1e-12 and _area(outer) > 1e-12:
                    waiting += [inner, outer]
                    break
            else:
                parts.append(polygon)
        else:
            parts.append(polygon)
    return parts


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _bridges(polygon: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of indices of edges that are each other's reverse."""
    edges: dict[tuple[float, ...], int] = {}
    pairs = []
    for k in range(len(polygon) - 1):
        start, end = tuple(polygon[k].tolist()), tuple(polygon[k + 1].tolist())
        if (other := edges.get((*end, *start))) is not None and k - other > 2:
            pairs.append((other, k))
        edges[(*start, *end)] = k
    return pairs
