"""LabelMe JSON: one file for each image, with masks as polygons, and points.

All shapes of an object have its identity as `group_id`, and masks its category as their label. The label of a point is
the point's name; the object's category is in its description. LabelMe takes only numbers as `group_id`; an identity
that is a text stands in the field `track_id`, which LabelMe keeps.

A coordinate of LabelMe counts from the corner of the image: 5.0 to 5.99 are pixel 5, and its centre is 5.5. A mask has
the pixels that LabelMe's own export gives a shape.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from corrflow.atomic_files import check_writable, write_file
from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import FileContent, ReadContext, frame_finder
from corrflow.runtime.formats.base import LARGEST_SIDE, Sink
from corrflow.runtime.formats.compressed_annotation import PACKED, PackedFrames
from corrflow.runtime.formats.label_schema import EMPTY_SCHEMA, Category, FrameKey, LabelSchema
from corrflow.runtime.formats.mask_image import MAX_OBJECTS, MAX_PIXELS
from corrflow.runtime.formats.packed_masks import BitMask
from corrflow.runtime.formats.polygons import simplified_polygons, united
from corrflow.runtime.types import MIN_POINT_CONFIDENCE, FrameResult, KeypointsObject, MaskObject, ObjectResult, TrackId
from corrflow.runtime.video.image_file import check_chunks

_VERSION = "5.5.0"
_CENTRE = 0.5  # of a pixel, in LabelMe's coordinates
# Of a pixel, for corners at its centre: LabelMe truncates them and other loaders round them; both find the pixel.
_RIM = 0.25
_FARTHEST = 1e5  # pixels; a shape that is farther away cannot be drawn
_LINES = ("line", "linestrip")
_POLYGONS = {"polygon": 3, "oriented_rectangle": 4, "rotation": 4, "quadrilateral": 4}
"""Least number of corners of shapes that are polygons."""


class LabelMeSink(Sink):
    """Writer of IMAGE.json for each frame; LabelMe expects the image at `imagePath`, seen from that file."""

    def __init__(self, folder: str | Path, schema: LabelSchema = EMPTY_SCHEMA) -> None:
        """Create the folder. Raises InputError where nothing can be written to it."""
        self._folder, self._schema = Path(folder), schema
        check_writable(self._folder / "labels.json")

    def write(self, result: FrameResult) -> None:
        shapes: list[dict[str, Any]] = []
        for obj in result.objects:
            if obj.visible:
                shapes += _point_shapes(obj) if obj.points is not None else _mask_shapes(obj, result.mask == obj.id)
        image = self._schema.image_name(result.frame)
        height, width = result.mask.shape
        content = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": image,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        path = os.path.join(self._folder, f"{PureWindowsPath(image).stem}.json")
        if os.path.exists(path):  # images of one name in several folders; the folder of results is new
            path = os.path.join(self._folder, f"{result.frame.name}.json")
        write_file(path, json.dumps(content, ensure_ascii=False, allow_nan=False))

    def close(self) -> None:
        pass


def _mask_shapes(obj: ObjectResult, mask: np.ndarray) -> list[dict[str, Any]]:
    label = obj.category or obj.name or f"object {obj.id}"
    if obj.is_annotation and obj.polygons:
        # Ten digits undo the shift by half a pixel exactly.
        polygons = [np.round(polygon + _CENTRE, 10) for polygon in obj.polygons]
    else:
        polygons = [polygon + _RIM for polygon in simplified_polygons(mask)]
    return [_shape("polygon", label, obj, "", polygon.tolist()) for polygon in polygons]


def _point_shapes(obj: ObjectResult) -> list[dict[str, Any]]:
    """Return the shapes of the visible points."""
    assert obj.points is not None
    points = np.round(obj.points.astype(np.float64) + _CENTRE, 3)
    confidence = np.ones(len(points)) if obj.point_confidence is None else obj.point_confidence
    return [
        _shape("point", name, obj, obj.category or obj.name, [point.tolist()])
        for name, point, probability in zip(obj.point_names, points, confidence, strict=True)
        if np.isfinite(point).all() and (probability > MIN_POINT_CONFIDENCE or name in obj.annotated_points)
    ]


def _shape(kind: str, label: str, obj: ObjectResult, description: str, points: list[list[float]]) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "label": label,
        "points": points,
        "group_id": obj.track_id if isinstance(obj.track_id, int) else obj.id,
        "description": description,
        "shape_type": kind,
        "flags": {},
    }
    return shape | ({"track_id": obj.track_id} if isinstance(obj.track_id, str) else {})


@dataclass
class _Instance:
    """Shapes of one object with a mask.

    parts:    pieces of its mask with the row and column where each begins
    polygons: contours; None where a shape has none
    """

    label: str
    track_id: TrackId
    parts: list[tuple[np.ndarray, int, int]] = field(default_factory=list)
    polygons: list[np.ndarray] | None = field(default_factory=list)


@dataclass
class _Points:
    """Points of one group, by name."""

    track_id: TrackId
    points: dict[str, list[float]] = field(default_factory=dict)
    descriptions: set[str] = field(default_factory=set)


def read_labelme(path: Path, content: Any, context: ReadContext) -> FileContent:
    """Convert the JSON of one image to objects: polygons, rectangles, circles, masks and points, but no lines.

    content: parsed JSON
    path:    file name for error messages

    Masks with the same label and group form one object, as points of one group do. A mask without a group is an object
    of its own. The image is that of `imagePath`, or else of the file's name. Raises InputError.
    """
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise InputError(f"expected LabelMe JSON in {path}, got one without a list of shapes; save it again")
    shape = _image_size(content, path, context)
    frame, image_names = _frame_of(content.get("imagePath"), context)
    masks: dict[object, _Instance] = {}
    groups: dict[TrackId, _Points] = {}
    for number, entry in enumerate(content["shapes"]):
        what = f"frame {frame!r}, shape {number}"
        try:
            what = f"frame {frame!r}, {str(entry['label'])!r}"
            _read_shape(entry, number, shape, masks, groups, context, what)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
            context.leave_out(what, _reason(error))
    if len(masks) + len(groups) > MAX_OBJECTS:
        raise InputError(
            f"expected at most {MAX_OBJECTS} objects, got {len(masks) + len(groups)} in {path}; track them in several"
            " runs"
        )
    if content.get("flags"):
        context.ignore(f"frame {frame!r}", "flags have no meaning here")
    return _objects(frame, shape, masks, groups, context, image_names)


def _objects(
    frame: FrameKey,
    shape: tuple[int, int],
    masks: dict[object, _Instance],
    groups: dict[TrackId, _Points],
    context: ReadContext,
    image_names: dict[FrameKey, str],
) -> FileContent:
    frames, categories = PackedFrames(context.budget), dict[str, Category]()
    labels: dict[TrackId, str] = {}
    for one in masks.values():
        part, corner = united(one.parts)
        if not part.any():
            context.leave_out(f"frame {frame!r}, {one.label!r}", "it has no pixel in the image")
            continue
        name = "" if one.label == f"object {one.track_id}" else one.label
        own = MaskObject(0, PACKED, name, one.track_id, name, tuple(one.polygons or ()))
        frames.add(frame, own, BitMask.of(part, corner, shape))
        categories.setdefault(name, Category(name))
        labels.setdefault(one.track_id, name)
    for one in groups.values():
        # The description names the object, or else the mask of the same group does.
        name = one.descriptions.pop() if len(one.descriptions) == 1 else ""
        name = name or (labels.get(one.track_id, "") if one.track_id is not None else "")
        names = tuple(one.points)
        points = np.array(list(one.points.values()), np.float64) - _CENTRE
        frames.add(frame, KeypointsObject(0, points.astype(np.float32), names, name, one.track_id, name))
        categories[name] = Category(name, None, names)
    categories.pop("", None)
    has_outlines = any(one.polygons for one in masks.values())
    schema = LabelSchema(tuple(categories.values()), image_names=image_names, has_outlines=has_outlines)
    return FileContent(frames, schema)


def _image_size(content: dict[str, Any], path: Path, context: ReadContext) -> tuple[int, int]:
    """Return (height, width) of the image; those of the video's frames where the file does not state them."""
    stated = content.get("imageHeight"), content.get("imageWidth")
    if stated == (None, None):
        return context.frame_size()
    try:
        height, width = (int(side) for side in stated if isinstance(side, (int, float)))
    except (ValueError, OverflowError):
        height = width = 0
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE and height * width <= MAX_PIXELS):
        raise InputError(
            f"expected the size of an image in {path}, got imageWidth {stated[1]!r:.20} and imageHeight"
            f" {stated[0]!r:.20}; save it again"
        )
    return height, width


def _frame_of(image_path: object, context: ReadContext) -> tuple[FrameKey, dict[FrameKey, str]]:
    """Return the frame of a file, and the path of its image where it names one of the video."""
    if isinstance(image_path, str) and image_path:
        stem = PureWindowsPath(image_path).stem
        is_known = context.frame_names is not None and stem in context.frame_names
        find = frame_finder(None if context.frame_names is None else list(context.frame_names))
        if is_known or (isinstance(context.frame, str) and find(stem) is not None):
            return stem, {stem: image_path}
    return context.frame, {}


def _read_shape(
    entry: dict[str, Any],
    number: int,
    shape: tuple[int, int],
    masks: dict[object, _Instance],
    groups: dict[TrackId, _Points],
    context: ReadContext,
    what: str,
) -> None:
    """Add a shape to its object. Raises ValueError, and errors of wrong types, for one that is left out."""
    kind, label = entry.get("shape_type") or "polygon", str(entry["label"])
    identity = _identity(entry.get("track_id"))
    identity = _identity(entry.get("group_id")) if identity is None else identity
    if kind in _LINES:
        return context.ignore(what, "a line has no area")
    if any((entry.get("flags") or {}).values()):
        context.ignore(what, "flags have no meaning here")
    corners = np.array(entry["points"], np.float64).reshape(-1, 2)
    if not len(corners) or not (np.abs(corners) < _FARTHEST).all():
        raise ValueError("its coordinates are not in any image")
    if kind == "point":
        group = groups.setdefault(identity, _Points(identity))
        if label in group.points:
            raise ValueError("a point of this name is in its group already; give each object its group_id")
        group.points[label] = corners[0].tolist()
        group.descriptions.add(str(entry.get("description") or ""))
        return None
    if kind == "mask":
        part = _decoded_mask(entry["mask"], corners, shape)
    elif kind in _POLYGONS or kind in ("rectangle", "circle"):
        part = _drawn(kind, corners, shape)
    else:
        return context.ignore(what, f"a shape of the type {kind!r:.20} has no meaning here")
    instance = masks.setdefault((label, identity) if identity is not None else number, _Instance(label, identity))
    instance.parts.append(part)
    if kind in ("mask", "circle"):
        instance.polygons = None
    elif instance.polygons is not None:
        if kind == "rectangle" and len(corners) == 2:
            (x0, y0), (x1, y1) = corners.tolist()
            corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        instance.polygons.append(corners - _CENTRE)
    return None


def _drawn(kind: str, corners: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Draw a shape as LabelMe's export does, with Pillow: corners are truncated to pixels, and the outline is included.

    Returns the pixels of its box [H, W] bool, with the row and column where it begins.
    """
    if kind == "circle":
        if len(corners) != 2:
            raise ValueError("a circle has two points")
        radius = np.hypot(*(corners[1] - corners[0]))
        corners = np.stack([corners[0] - radius, corners[0] + radius])
    elif len(corners) < (2 if kind == "rectangle" else _POLYGONS[kind]):
        raise ValueError("it has too few corners")
    pixels = np.trunc(corners)
    low = np.maximum(pixels.min(0), 0).astype(int)
    high = np.minimum(pixels.max(0), (shape[1] - 1, shape[0] - 1)).astype(int)
    width, height = (high - low + 1).tolist()
    if width <= 0 or height <= 0:
        return np.zeros((0, 0), bool), 0, 0
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    places = [(x, y) for x, y in (pixels - low).tolist()]
    if kind == "circle":
        draw.ellipse(places, fill=1, outline=1)
    elif kind == "rectangle" and len(places) == 2:
        (x0, y0), (x1, y1) = places
        draw.rectangle([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)], fill=1, outline=1)
    else:
        draw.polygon(places, fill=1, outline=1)
    return np.asarray(canvas).astype(bool), int(low[1]), int(low[0])


def _decoded_mask(text: str, corners: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Decode a PNG in base64 that covers the box of two corners, both included."""
    encoded = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    (x0, y0), (x1, y1) = np.trunc(corners[:2]).astype(int).tolist()
    # The header of a PNG states its size, which is compared before a bomb is decoded.
    stated = tuple(int.from_bytes(encoded[start : start + 4].tobytes(), "big") for start in (20, 16))
    image = None
    if stated == (y1 - y0 + 1, x1 - x0 + 1) and 0 < stated[0] <= shape[0] and 0 < stated[1] <= shape[1]:
        check_chunks(encoded.tobytes())
        image = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
    if image is None or image.shape != stated:
        raise ValueError("its mask is no PNG of its box")
    if x0 < 0 or y0 < 0 or x1 >= shape[1] or y1 >= shape[0]:
        raise ValueError("its mask leaves the image")
    return image > 0, y0, x0


def _identity(group: object) -> TrackId:
    """Return a group_id that is a number or a text, else None."""
    if isinstance(group, float) and group.is_integer():
        return int(group)
    return group if isinstance(group, (int, str)) and not isinstance(group, bool) else None


def _reason(error: Exception) -> str:
    """Return why a shape is left out, without what is particular to one shape."""
    is_own = isinstance(error, ValueError) and str(error).startswith(("its ", "it ", "a "))
    return str(error) if is_own else "it is no shape of LabelMe"
