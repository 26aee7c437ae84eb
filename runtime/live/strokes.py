"""What a user draws on a picture, turned into a mask: boxes, lassos and brushes, in the order they were drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from corrflow.errors import InputError

KINDS = ("box", "lasso", "paint", "erase", "object")
MOST_STROKES, MOST_POINTS = 200, 5000
_GRABCUT_SIDE = 240  # pixels of the cut-out's long side; more costs time and follows an outline no better
_GRABCUT_ROUNDS = 4
_LEAST_SHARE = 0.05  # of a box that a cut-out has to fill to be believed


@dataclass(frozen=True)
class Stroke:
    """One movement of the hand.

    kind:   box (two corners; what stands out inside is the object), lasso (an outline), paint, erase (a brush's way),
            object (all that the tracker shows of an object, to begin a correction with)
    points: [P, 2] float32, (x, y) in pixels, inside the picture or not
    width:  of the brush, in pixels
    object: id for the kind `object`
    """

    kind: str
    points: np.ndarray
    width: float = 1.0
    object: int = 0


def parse_strokes(values: Any) -> list[Stroke]:
    """Strokes of decoded JSON: [{"kind": "box", "points": [[x, y], ...], "width": 12, "object": 1}, ...].

    Raises InputError for anything else.
    """
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_STROKES:
        raise InputError(f"expected a list of 1 to {MOST_STROKES} strokes, got something else; draw on the picture")
    return [_parse_stroke(value) for value in values]


def parse_points(values: Any, most: int = MOST_POINTS) -> np.ndarray:
    """Decoded JSON [[x, y], ...] -> [P, 2] float32; raises InputError for anything else, infinities included."""
    try:
        points = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    shape = points.shape  # of anything at all
    if len(shape) != 2 or shape[-1] != 2 or not 1 <= shape[0] <= most or not (np.abs(points) < 1e6).all():
        raise InputError(f"expected 1 to {most} points [[x, y], ...] in pixels, got something else; draw again")
    return points.astype(np.float32)


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


def drawn_mask(image: np.ndarray, shown: np.ndarray, strokes: Sequence[Stroke]) -> np.ndarray:
    """The mask [H, W] bool of strokes on a picture [H, W, 3] uint8, BGR; each adds to those before, or erases.

    shown: the indexed mask [H, W] uint8 that the picture was shown with. Raises InputError where nothing is left.
    """
    mask = np.zeros(image.shape[:2], np.uint8)
    for stroke in strokes:
        if stroke.kind == "object":
            mask[shown == stroke.object] = 1
        elif stroke.kind == "box":
            mask |= _box_mask(image, stroke.points)
        elif stroke.kind == "lasso":
            cv2.fillPoly(mask, [np.round(stroke.points).astype(np.int32)], 1)
        else:
            way, width = np.round(stroke.points).astype(np.int32), max(1, round(stroke.width))
            value = int(stroke.kind == "paint")
            cv2.polylines(mask, [way], False, value, width)
            for x, y in (way[0].tolist(), way[-1].tolist()):  # a touch alone has no way to go
                cv2.circle(mask, (x, y), width // 2, value, cv2.FILLED)
    if not mask.any():
        raise InputError("expected pixels of the object, got none inside the picture; draw on the object")
    return mask.astype(bool)


def _box_mask(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """GrabCut (Rother et al., 2004) inside a box; the whole box where nothing stands out. [H, W] uint8 of 0 and 1."""
    height, width = image.shape[:2]
    low = np.clip(np.floor(corners.min(0)), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(corners.max(0)), 0, (width, height)).astype(int)
    mask = np.zeros((height, width), np.uint8)
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    if right <= left or bottom <= top:
        return mask
    mask[top:bottom, left:right] = 1
    margin = max(8, (right - left) // 2, (bottom - top) // 2)  # what is around tells what is not the object
    x0, y0 = max(0, left - margin), max(0, top - margin)
    cut = image[y0 : bottom + margin, x0 : right + margin]
    scale = min(1.0, _GRABCUT_SIDE / max(cut.shape[:2]))
    size = max(1, round(cut.shape[1] * scale)), max(1, round(cut.shape[0] * scale))
    small = cv2.resize(cut, size, interpolation=cv2.INTER_AREA)
    inside = cv2.resize(mask[y0 : bottom + margin, x0 : right + margin], size, interpolation=cv2.INTER_NEAREST)
    if inside.sum() < 16 or inside.size - inside.sum() < 16:
        return mask  # too few pixels to learn colours from
    labels = np.where(inside > 0, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(small, labels, None, np.empty(0), np.empty(0), _GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except cv2.error:
        return mask
    found = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    if found.sum() < _LEAST_SHARE * inside.sum():
        return mask
    whole = cv2.resize(found, (cut.shape[1], cut.shape[0]), interpolation=cv2.INTER_LINEAR) > 0.5
    kept = np.zeros_like(mask)
    kept[y0 : y0 + cut.shape[0], x0 : x0 + cut.shape[1]] = whole
    return kept & mask


LONGEST_NAME = 60
