"""LabelMe JSON: one file for each image, with masks as polygons, and points.

All shapes of an object have its id as `group_id`. The label of a point is the point's name; the object's name is in the
description. A mask with holes or several components has several polygons.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from corrflow.atomic_files import check_writable, write_file
from corrflow.errors import InputError
from corrflow.runtime.formats.base import LARGEST_SIDE, Sink
from corrflow.runtime.formats.polygons import filled, polygons_of
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject, TrackedObject

_VERSION = "5.5.0"


class LabelMeSink(Sink):
    """Writer of FRAME.json for each frame; LabelMe expects FRAME.jpg beside that file."""

    def __init__(self, folder: str | Path) -> None:
        """Create the folder. Raises InputError where nothing can be written to it."""
        self._folder = Path(folder)
        check_writable(self._folder / "labels.json")

    def write(self, result: FrameResult) -> None:
        shapes: list[dict[str, Any]] = []
        for obj in result.objects:
            if obj.points is None:
                label = obj.name or f"object {obj.id}"
                shapes += [
                    _shape("polygon", label, obj.id, "", polygon.tolist())
                    for polygon in polygons_of(result.mask == obj.id)
                ]
            else:
                points = np.round(obj.points.astype(np.float64), 3).tolist()
                shapes += [
                    _shape("point", name, obj.id, obj.name, [point])
                    for name, point in zip(obj.point_names, points, strict=True)
                ]
        height, width = result.mask.shape
        content = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": f"{result.frame.name}.jpg",
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        write_file(os.path.join(self._folder, f"{result.frame.name}.json"), text)

    def close(self) -> None:
        pass


def read_labelme(content: dict[str, Any], path: Path) -> list[TrackedObject]:
    """Convert the JSON of one image to objects: polygons, rectangles, circles, masks and points, but no lines.

    content: parsed JSON
    path:    file name for error messages

    Shapes with the same label and group form one mask; points of one group form one object. Raises InputError.
    """
    try:
        shape = int(content["imageHeight"]), int(content["imageWidth"])
        if not all(1 <= side <= LARGEST_SIDE for side in shape):
            raise ValueError(f"an image of {shape[1]}x{shape[0]}")
        masks: dict[tuple[str, object], np.ndarray] = {}
        points: dict[object, tuple[str, dict[str, list[float]]]] = {}
        for number, entry in enumerate(content["shapes"]):
            kind, label, group = entry.get("shape_type", "polygon"), str(entry["label"]), entry.get("group_id")
            corners = np.array(entry["points"], np.float64).reshape(-1, 2)
            if not np.isfinite(corners).all():
                raise ValueError(f"coordinates of {label!r} that are no numbers")
            if kind == "point":
                named = points.setdefault(group, (str(entry.get("description") or ""), {}))[1]
                if label in named:
                    raise ValueError(f"the point {label!r} twice; give each object its group_id")
                named[label] = corners[0].tolist()
                continue
            polygon = _polygon(kind, corners)
            if polygon is None and kind != "mask":
                continue
            mask = _decode_mask(entry["mask"], corners, shape) if polygon is None else filled([polygon], shape)
            key = label, number if group is None else ("group", group)
            masks[key] = masks.get(key, False) | mask
        objects: list[TrackedObject] = []
        for (label, key), mask in masks.items():
            identity = _identity(key[1]) if isinstance(key, tuple) else 0
            if mask.any():
                objects.append(MaskObject(identity, mask, "" if label == f"object {identity}" else label))
        for group, (name, named) in points.items():
            coordinates = np.array(list(named.values()), np.float32)
            objects.append(KeypointsObject(_identity(group), coordinates, tuple(named), name))
        return objects
    # Wrong types in the JSON raise these.
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(
            f"expected LabelMe JSON in {path}, got one that cannot be read ({type(error).__name__}: {error}); save it "
            "again"
        ) from error


def _shape(kind: str, label: str, group: int, description: str, points: list[list[float]]) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": group,
        "description": description,
        "shape_type": kind,
        "flags": {},
    }


def _polygon(kind: str, corners: np.ndarray) -> np.ndarray | None:
    """Return the corners [P, 2] of a shape with an area; None for any other shape."""
    if kind == "polygon":
        return corners
    if kind == "rectangle":
        (x0, y0), (x1, y1) = corners[:2]
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if kind == "circle":
        centre, rim = corners[:2]
        angle = np.linspace(0, 2 * np.pi, 128, endpoint=False)
        return centre + np.hypot(*(rim - centre)) * np.stack([np.cos(angle), np.sin(angle)], 1)
    return None


def _decode_mask(text: str, corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Decode a PNG in base64 that covers the box of two corners, both included, to a mask [H, W] bool."""
    encoded = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) if len(encoded) else None
    (x0, y0), (x1, y1) = np.round(corners[:2]).astype(int).tolist()
    if image is None or image.shape != (y1 - y0 + 1, x1 - x0 + 1):
        raise ValueError("a mask that is no PNG of its box")
    if x0 < 0 or y0 < 0 or x1 >= shape[1] or y1 >= shape[0]:
        raise ValueError("a mask that leaves its image")
    mask = np.zeros(shape, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = image > 0
    return mask


def _identity(group: object) -> int:
    """Return a group_id that is a valid object id, else 0."""
    return group if isinstance(group, int) and 0 < group < 256 else 0
