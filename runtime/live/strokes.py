"""Drawings of a user, parsed from JSON and turned into objects: boxes, lassos, brushes and points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.types import KeypointsObject, MaskObject, TrackedObject

KINDS = ("box", "lasso", "paint", "erase", "object")
MAX_STROKES, MAX_BOXES, MAX_POINTS, MAX_KEYPOINTS, MAX_NAME_LENGTH = 200, 16, 5000, 64, 60
_GRABCUT_SIDE = 240  # pixels of the crop's long side; more costs time and follows an outline no better
_GRABCUT_ITERATIONS = 4
_MIN_FOREGROUND = 0.05  # fraction of a box that a believable segmentation fills


@dataclass(frozen=True)
class Stroke:
    """One movement of the pointer.

    kind:   box (two corners, segmented by GrabCut), lasso (closed outline), paint or erase (path of the brush),
            object (pixels that an object has already, the start of a correction)
    points: [P, 2] float32, (x, y) in pixels, inside the frame or not
    width:  brush diameter in pixels
    object: id for the kind `object`
    """

    kind: str
    points: np.ndarray
    width: float = 1.0
    object: int = 0


def parse_strokes(values: Any) -> list[Stroke]:
    """Parse decoded JSON: [{"kind": "box", "points": [[x, y], ...], "width": 12, "object": 1}, ...].

    Raises InputError for any other content.
    """
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_STROKES:
        raise InputError(f"expected a list of 1 to {MAX_STROKES} strokes, got something else; draw on the frame")
    strokes = [_parse_stroke(value) for value in values]
    if sum(stroke.kind == "box" for stroke in strokes) > MAX_BOXES:  # each of them is segmented
        raise InputError(f"expected at most {MAX_BOXES} boxes in a drawing, got more; use the lasso or the brush")
    return strokes


def parse_points(values: Any, limit: int = MAX_POINTS) -> np.ndarray:
    """Parse decoded JSON [[x, y], ...] to [P, 2] float32. Raises InputError for any other content."""
    try:
        points = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    shape = points.shape
    if len(shape) != 2 or shape[-1] != 2 or not 1 <= shape[0] <= limit or not (np.abs(points) < 1e6).all():
        raise InputError(f"expected 1 to {limit} points [[x, y], ...] in pixels, got something else; draw again")
    return points.astype(np.float32)


def parse_name(value: Any) -> str:
    """Check the name of an object or a point, and strip its spaces. Raises InputError."""
    if not isinstance(value, str) or len(value) > MAX_NAME_LENGTH or not value.isprintable():
        raise InputError(f"expected a name of at most {MAX_NAME_LENGTH} letters, got another; choose a shorter one")
    return value.strip()


def parse_object(
    values: dict[str, Any], image: np.ndarray, mask: np.ndarray, check: Callable[[], None] = lambda: None
) -> TrackedObject:
    """Parse an object that was drawn on a frame; its id is 0 for a new object. Raises InputError.

    values: {"strokes": [...] or "points": [[x, y], ...] and "point_names": [...], "object": id or null, "name": text}
    image:  [H, W, 3] uint8, BGR
    mask:   [H, W] uint8, the ids displayed on the frame
    check:  as of `drawn_mask`
    """
    name, object_id = parse_name(values.get("name", "")), values.get("object")
    if object_id is not None:
        object_id = parse_integer(object_id, "the id of an object")
        if not 1 <= object_id <= 255:
            raise InputError("expected the id of an object from 1 to 255, got another; choose an object of the list")
    if values.get("points") is None:
        drawn = drawn_mask(image, mask, parse_strokes(values.get("strokes")), check)
        return MaskObject(object_id or 0, drawn, name)
    points = parse_points(values["points"], MAX_KEYPOINTS)
    names = values.get("point_names", [""] * len(points))
    if not isinstance(names, list) or len(names) != len(points):
        raise InputError(f"expected a name for each of {len(points)} points, got something else; draw again")
    names = [parse_name(text) or str(number) for number, text in enumerate(names, 1)]
    if len(set(names)) < len(names):
        raise InputError("expected different names for the points of an object, got one twice; rename a point")
    return KeypointsObject(object_id or 0, points, tuple(names), name)


def parse_integer(value: Any, expected: str) -> int:
    """Check a non-negative integer that JSON can hold exactly. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise InputError(f"expected {expected}, got something else; reload the page")
    return value


def _parse_stroke(value: Any) -> Stroke:
    if not isinstance(value, dict) or value.get("kind") not in KINDS:
        raise InputError(f"expected strokes of a kind among {', '.join(KINDS)}, got another; draw again")
    kind, width, number = value["kind"], value.get("width", 1), value.get("object", 0)
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 1 <= width <= 1000:
        raise InputError("expected a brush from 1 to 1000 pixels wide, got another width; choose one of those")
    if kind == "object":
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 255:
            raise InputError("expected the id of an object from 1 to 255, got another; choose an object of the list")
        return Stroke(kind, np.empty((0, 2), np.float32), object=number)
    points = parse_points(value.get("points"))
    if kind == "box" and len(points) != 2:
        raise InputError(f"expected two corners of a box, got {len(points)} points; draw again")
    return Stroke(kind, points, float(width))


def drawn_mask(
    image: np.ndarray, mask: np.ndarray, strokes: Sequence[Stroke], check: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Rasterise strokes in their order to [H, W] bool. Raises InputError if no pixel remains.

    image: [H, W, 3] uint8, BGR
    mask:  [H, W] uint8, the ids displayed on the frame, for strokes of the kind `object`
    check: called before each stroke, which takes up to half a second; its error ends the work
    """
    drawn = np.zeros(image.shape[:2], np.uint8)
    for stroke in strokes:
        check()
        if stroke.kind == "object":
            drawn[mask == stroke.object] = 1
        elif stroke.kind == "box":
            drawn |= _box_mask(image, stroke.points)
        elif stroke.kind == "lasso":
            cv2.fillPoly(drawn, [np.round(stroke.points).astype(np.int32)], 1)
        else:
            path, width = np.round(stroke.points).astype(np.int32), max(1, round(stroke.width))
            value = int(stroke.kind == "paint")
            cv2.polylines(drawn, [path], False, value, width)
            for x, y in (path[0].tolist(), path[-1].tolist()):  # polylines draws nothing for a single touch
                cv2.circle(drawn, (x, y), width // 2, value, cv2.FILLED)
    if not drawn.any():
        raise InputError("expected pixels of the object, got none inside the frame; draw on the object")
    return drawn.astype(bool)


def _box_mask(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Segment the object in a box by GrabCut (Rother et al., 2004): [H, W] uint8 of 0 and 1.

    Returns the whole box if no object stands out.
    """
    height, width = image.shape[:2]
    low = np.clip(np.floor(corners.min(0)), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(corners.max(0)), 0, (width, height)).astype(int)
    mask = np.zeros((height, width), np.uint8)
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    if right <= left or bottom <= top:
        return mask
    mask[top:bottom, left:right] = 1
    margin = max(8, (right - left) // 2, (bottom - top) // 2)  # the surroundings teach the background's colours
    x0, y0 = max(0, left - margin), max(0, top - margin)
    crop = image[y0 : bottom + margin, x0 : right + margin]
    scale = min(1.0, _GRABCUT_SIDE / max(crop.shape[:2]))
    size = max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale))
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    inside = cv2.resize(mask[y0 : bottom + margin, x0 : right + margin], size, interpolation=cv2.INTER_NEAREST)
    if inside.sum() < 16 or inside.size - inside.sum() < 16:
        return mask  # too few pixels to learn colours from
    labels = np.where(inside > 0, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(small, labels, None, np.empty(0), np.empty(0), _GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_MASK)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except cv2.error:
        return mask
    foreground = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    if foreground.sum() < _MIN_FOREGROUND * inside.sum():
        return mask
    enlarged = cv2.resize(foreground, (crop.shape[1], crop.shape[0]), interpolation=cv2.INTER_LINEAR) > 0.5
    segmented = np.zeros_like(mask)
    segmented[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = enlarged
    return segmented & mask
