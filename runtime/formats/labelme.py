"""LabelMe JSON: one file for each picture, masks as polygons, points by their names.

The shapes of one object have one `group_id`, its id; the label of a point is the point's name, and the object's name
is in its description. A mask with holes or in several parts is several polygons, as LabelMe has it.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from corrflow.atomic_files import prepare_place, save_whole
from corrflow.errors import InputError
from corrflow.runtime.formats.base import LARGEST_SIDE, Sink
from corrflow.runtime.formats.polygons import filled, polygons_of
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject, TrackedObject

_VERSION = "5.5.0"


class LabelMeSink(Sink):
    """FRAME.json for each frame, beside which LabelMe expects FRAME.jpg."""

    def __init__(self, folder: str | Path) -> None:
        """Raises InputError where nothing can be written into the folder."""
        self._folder = Path(folder)
        prepare_place(self._folder / "labels.json")

    def write(self, result: FrameResult) -> None:
        shapes: list[dict[str, Any]] = []
        for track in result.objects:
            if track.points is None:
                label = track.name or f"object {track.id}"
                shapes += [
                    _shape("polygon", label, track.id, "", polygon.tolist())
                    for polygon in polygons_of(result.mask == track.id)
                ]
            else:
                places = np.round(track.points.astype(np.float64), 3).tolist()
                shapes += [
                    _shape("point", name, track.id, track.name, [place])
                    for name, place in zip(track.point_names, places, strict=True)
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
        save_whole(os.path.join(self._folder, f"{result.frame.name}.json"), text.encode())

    def close(self) -> None:
        pass


def read_labelme(content: dict[str, Any], path: Path) -> list[TrackedObject]:
    """The objects of the JSON of one picture: polygons, rectangles, circles, masks and points; lines are passed over.

    Shapes of one label and group are one mask, points of one group one object. Raises InputError for what cannot be
    read.
    """
    try:
        shape = int(content["imageHeight"]), int(content["imageWidth"])
        if not all(1 <= side <= LARGEST_SIDE for side in shape):
            raise ValueError(f"a picture of {shape[1]}x{shape[0]}")
        masks: dict[tuple[str, object], np.ndarray] = {}
        points: dict[object, tuple[str, dict[str, list[float]]]] = {}
        for number, entry in enumerate(content["shapes"]):
            kind, label, group = entry.get("shape_type", "polygon"), str(entry["label"]), entry.get("group_id")
            places = np.array(entry["points"], np.float64).reshape(-1, 2)
            if not np.isfinite(places).all():
                raise ValueError(f"coordinates of {label!r} that are no numbers")
            if kind == "point":
                own = points.setdefault(group, (str(entry.get("description") or ""), {}))[1]
                if label in own:
                    raise ValueError(f"the point {label!r} twice; give each object its group_id")
                own[label] = places[0].tolist()
                continue
            polygon = _polygon(kind, places)
            if polygon is None and kind != "mask":
                continue
            mask = _drawn(entry["mask"], places, shape) if polygon is None else filled([polygon], shape)
            key = label, number if group is None else ("group", group)
            masks[key] = masks.get(key, False) | mask
        objects: list[TrackedObject] = []
        for (label, key), mask in masks.items():
            identity = _identity(key[1]) if isinstance(key, tuple) else 0
            if mask.any():
                objects.append(MaskObject(identity, mask, "" if label == f"object {identity}" else label))
        for group, (name, own) in points.items():
            objects.append(
                KeypointsObject(_identity(group), np.array(list(own.values()), np.float32), tuple(own), name)
            )
        return objects
    # Wrong types anywhere on the way show as these.
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


def _polygon(kind: str, places: np.ndarray) -> np.ndarray | None:
    """Corners [P, 2] of a shape with pixels."""
    if kind == "polygon":
        return places
    if kind == "rectangle":
        (x0, y0), (x1, y1) = places[:2]
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if kind == "circle":
        centre, rim = places[:2]
        angle = np.linspace(0, 2 * np.pi, 128, endpoint=False)
        return centre + np.hypot(*(rim - centre)) * np.stack([np.cos(angle), np.sin(angle)], 1)
    return None


def _drawn(text: str, places: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[H, W] bool of a PNG in base64 that covers the box of `places`, whose corners are both in it."""
    encoded = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    picture = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) if len(encoded) else None
    (x0, y0), (x1, y1) = np.round(places[:2]).astype(int).tolist()
    if picture is None or picture.shape != (y1 - y0 + 1, x1 - x0 + 1):
        raise ValueError("a mask that is no PNG of its box")
    if x0 < 0 or y0 < 0 or x1 >= shape[1] or y1 >= shape[0]:
        raise ValueError("a mask that leaves its picture")
    mask = np.zeros(shape, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = picture > 0
    return mask


def _identity(group: object) -> int:
    return group if isinstance(group, int) and 0 < group < 256 else 0
