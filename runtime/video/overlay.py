"""Overlay: a frame's result drawn onto its image, in the colours of the DAVIS palette."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from corrflow.runtime.types import MIN_POINT_CONFIDENCE, FrameResult, ObjectResult

FILL_OPACITY = 0.4

FAINT_CONFIDENCE = MIN_POINT_CONFIDENCE
"""Points up to this confidence count as hidden, and are drawn hollow and dim."""

_Colour = tuple[int, int, int]

_DARK: _Colour = (24, 24, 24)

# OpenCV takes subpixel coordinates as fixed-point numbers.
_RADIUS, _MIN_RADIUS = 4.4, 1.8  # of a point, for 540 rows, and in pixels
_SHARE_OF_SPACING = 0.25  # of the distance between neighbouring points
_SUBPIXEL_BITS = 4


def davis_palette() -> np.ndarray:
    """Return the colour of each object id in the masks of DAVIS and PASCAL VOC: [256, 3] uint8, RGB.

    The bits of an id go to red, green and blue in turn, the lowest bits to the highest bits of the channels.
    """
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (((ids >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


def draw_overlay(result: FrameResult) -> np.ndarray:
    """Draw every object's mask, contour, points and name on a copy of the frame: [H, W, 3] uint8, BGR.

    Line widths scale with the frame. Raises ValueError for a mask of another size.
    """
    image_bgr = result.frame.image
    if result.mask.shape != image_bgr.shape[:2]:
        raise ValueError(f"expected a mask of the frame's size {image_bgr.shape[:2]}, got {result.mask.shape}")
    canvas = image_bgr.copy()
    # 1 for 540 rows; small frames get relatively thicker lines, which are visible.
    unit = max(0.62, min(image_bgr.shape[:2]) / 540)
    _draw_masks(canvas, result.mask, unit)
    for obj in result.objects:
        _draw_points(canvas, obj, unit)
    for obj in result.objects:
        _draw_name(canvas, obj, unit)
    return canvas


@lru_cache(maxsize=1)
def fill_colours() -> np.ndarray:
    """Return the palette with a gamma of 0.45, because its first colours are too dark: [256, 3] uint8, BGR."""
    return (255 * (davis_palette()[:, ::-1] / 255) ** 0.45).round().astype(np.uint8)


def _colour(object_id: int, whiteness: float = 0.0) -> _Colour:
    blue, green, red = (round(channel + (255 - channel) * whiteness) for channel in fill_colours()[object_id].tolist())
    return blue, green, red


def _draw_masks(canvas: np.ndarray, mask: np.ndarray, unit: float) -> None:
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return
    # Only the bounding box of the masks: blending a large frame is slower than all other steps.
    region, labels = canvas[y : y + height, x : x + width], mask[y : y + height, x : x + width]
    fill = cv2.applyColorMap(labels, fill_colours()[:, None])
    region[:] = cv2.copyTo(cv2.addWeighted(region, 1 - FILL_OPACITY, fill, FILL_OPACITY, 0), labels, region)
    thickness = max(1, round(1.8 * unit))
    for object_id in np.unique(labels).tolist():
        if object_id:
            binary = (mask == object_id).view(np.uint8)
            contours = cv2.findContours(binary, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
            if thickness > 1:  # a dark edge would hide a thin line
                cv2.drawContours(canvas, contours, -1, _DARK, thickness + 2, cv2.LINE_AA)
            cv2.drawContours(canvas, contours, -1, _colour(object_id, 0.6), thickness, cv2.LINE_AA)


def _draw_points(canvas: np.ndarray, obj: ObjectResult, unit: float) -> None:
    drawable = _drawable_points(obj, canvas.shape)
    radius = _point_radius([point for point, _ in drawable], unit)
    unit = radius / _RADIUS
    for point, confidence in drawable:
        if confidence > FAINT_CONFIDENCE:
            _disc(canvas, point, radius + 1.4 * unit, _DARK)
            _disc(canvas, point, radius, _colour(obj.id, 0.75))
            _disc(canvas, point, radius * 0.66, _colour(obj.id))
        else:
            margin = int(radius) + 3
            x0, y0 = (max(0, int(coordinate) - margin) for coordinate in point)
            region = canvas[y0 : int(point[1]) + margin + 1, x0 : int(point[0]) + margin + 1]
            ringed = np.ascontiguousarray(region)
            _ring(ringed, point - (x0, y0), radius, _DARK, max(1, round(3 * unit)))
            _ring(ringed, point - (x0, y0), radius, _colour(obj.id, 0.45), max(1, round(1.4 * unit)))
            region[:] = cv2.addWeighted(region, 0.45, ringed, 0.55, 0)


def _point_radius(points: list[np.ndarray], unit: float) -> float:
    """Return the radius of points, which is less where they lie close together: they would hide a small animal."""
    if len(points) < 3:
        return _RADIUS * unit
    places = np.array(points, np.float64)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    spacing = float(np.median(distances.min(1)))
    return float(np.clip(_SHARE_OF_SPACING * spacing, min(_MIN_RADIUS, _RADIUS * unit), _RADIUS * unit))


def _drawable_points(obj: ObjectResult, shape: tuple[int, ...]) -> list[tuple[np.ndarray, float]]:
    """Return (x, y) and confidence of the points in the frame, because drawing of far or undefined points overflows."""
    if obj.points is None:
        return []
    height, width = shape[:2]
    confidence = np.ones(len(obj.points)) if obj.point_confidence is None else obj.point_confidence
    inside = ((obj.points >= -0.5) & (obj.points < (width - 0.5, height - 0.5))).all(axis=1)
    return [(obj.points[i], float(confidence[i])) for i in np.flatnonzero(inside)]


def _disc(canvas: np.ndarray, centre: np.ndarray, radius: float, colour: _Colour) -> None:
    _ring(canvas, centre, radius, colour, thickness=cv2.FILLED)


def _ring(canvas: np.ndarray, centre: np.ndarray, radius: float, colour: _Colour, thickness: int) -> None:
    x, y, radius_fixed = (round(float(length) * (1 << _SUBPIXEL_BITS)) for length in (*centre, radius))
    cv2.circle(canvas, (x, y), radius_fixed, colour, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_name(canvas: np.ndarray, obj: ObjectResult, unit: float) -> None:
    """Draw an object's name above its top-left corner, inside the frame."""
    corner = _corner(obj, canvas.shape) if obj.name and obj.visible else None
    if corner is None:
        return
    label, opacity = _label(obj.name, round(15 * max(unit, 0.8)), _colour(obj.id))
    gap = round(4 * unit)
    x = max(0, min(corner[0], canvas.shape[1] - label.shape[1]))
    y = max(0, corner[1] - label.shape[0] - gap)
    region = canvas[y : y + label.shape[0], x : x + label.shape[1]]
    height, width = region.shape[:2]  # smaller than the label in a small frame
    mixed = region * (1 - opacity[:height, :width]) + label[:height, :width] * opacity[:height, :width]
    region[:] = mixed.round().astype(np.uint8)


def _corner(obj: ObjectResult, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return (x, y) of the top-left corner of an object's drawing; None for an object that is not drawn."""
    if obj.box is not None:
        return obj.box[0], obj.box[1]
    points = [point for point, confidence in _drawable_points(obj, shape) if confidence > FAINT_CONFIDENCE]
    if not points:
        return None
    x, y = np.min(points, axis=0)
    return int(x), int(y) - round(min(shape[:2]) / 90)


@lru_cache(maxsize=256)
def _label(text: str, size: int, colour: _Colour) -> tuple[np.ndarray, np.ndarray]:
    """Draw text on a rounded box: [h, w, 3] float32, BGR 0..255, and its opacity [h, w, 1] float32, 0..1.

    Pillow draws the text, because OpenCV has no smooth font.
    """
    # The font has only ASCII: accents are removed, and other characters become question marks.
    text = unicodedata.normalize("NFKD", text)
    text = "".join(letter for letter in text if not unicodedata.combining(letter)).encode("ascii", "replace").decode()
    font = ImageFont.load_default(size)
    left, _, right, _ = font.getbbox(text)
    padding, height = round(0.4 * size), round(1.4 * size)
    width = round(right - left) + 2 * padding
    blue, green, red = colour
    is_light = 0.114 * blue + 0.587 * green + 0.299 * red > 140
    enlarged = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(enlarged).rounded_rectangle((0, 0, 4 * width - 1, 4 * height - 1), radius=1.2 * size, fill=225)
    plate = Image.new("RGB", (width, height), (red, green, blue))
    ink = (16, 16, 16) if is_light else (255, 255, 255)
    ImageDraw.Draw(plate).text((padding - left, height / 2), text, fill=ink, font=font, anchor="lm")
    opacity = np.asarray(enlarged.resize((width, height), Image.Resampling.BOX), np.float32)[..., None] / 255
    return np.asarray(plate, np.float32)[..., ::-1], opacity
