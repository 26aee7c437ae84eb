"""FrameResult drawn onto a picture, in the colours of the DAVIS palette."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from corrflow.runtime.types import FrameResult, ObjectResult

FILL_OPACITY = 0.4

FAINT_CONFIDENCE = 0.3
"""Below it a point is drawn hollow and dim: its place is a guess."""

_Colour = tuple[int, int, int]

_DARK: _Colour = (24, 24, 24)

# OpenCV draws at fractions of a pixel given in fixed point.
_SUBPIXEL_BITS = 4


def davis_palette() -> np.ndarray:
    """[256, 3] uint8, RGB: the colour of each object id in the indexed masks of DAVIS and PASCAL VOC.

    The bits of an id go to red, green and blue in turn, the lowest ones into the highest bits of the channels.
    """
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (((ids >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


def draw_overlay(result: FrameResult) -> np.ndarray:
    """Draw every object's mask, contour, points and name on its frame, sized with the frame.

    Returns [H, W, 3] uint8, BGR; the frame's own image is left alone. Raises ValueError where the mask's size differs.
    """
    image_bgr = result.frame.image
    if result.mask.shape != image_bgr.shape[:2]:
        raise ValueError(f"expected a mask of the frame's size {image_bgr.shape[:2]}, got {result.mask.shape}")
    canvas = image_bgr.copy()
    # 1 at 540 lines; small pictures get relatively bolder marks, which would vanish otherwise.
    unit = max(0.62, min(image_bgr.shape[:2]) / 540)
    _draw_masks(canvas, result.mask, unit)
    for track in result.objects:
        _draw_points(canvas, track, unit)
    for track in result.objects:
        _draw_name(canvas, track, unit)
    return canvas


@lru_cache(maxsize=1)
def fill_colours() -> np.ndarray:
    """[256, 3] uint8, BGR: the palette lifted, because its first colours are too dark to see on dark pictures."""
    return (255 * (davis_palette()[:, ::-1] / 255) ** 0.45).round().astype(np.uint8)


def _colour(object_id: int, whiteness: float = 0.0) -> _Colour:
    blue, green, red = (round(channel + (255 - channel) * whiteness) for channel in fill_colours()[object_id].tolist())
    return blue, green, red


def _draw_masks(canvas: np.ndarray, mask: np.ndarray, unit: float) -> None:
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return
    # Only the part that the masks cover: blending a whole large frame costs more than all the rest.
    region, labels = canvas[y : y + height, x : x + width], mask[y : y + height, x : x + width]
    fill = cv2.applyColorMap(labels, fill_colours()[:, None])
    region[:] = cv2.copyTo(cv2.addWeighted(region, 1 - FILL_OPACITY, fill, FILL_OPACITY, 0), labels, region)
    thickness = max(1, round(1.8 * unit))
    for object_id in np.unique(labels).tolist():
        if object_id:
            silhouette = (mask == object_id).view(np.uint8)
            contours = cv2.findContours(silhouette, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
            if thickness > 1:  # a thin line would drown in a dark edge
                cv2.drawContours(canvas, contours, -1, _DARK, thickness + 2, cv2.LINE_AA)
            cv2.drawContours(canvas, contours, -1, _colour(object_id, 0.6), thickness, cv2.LINE_AA)


def _draw_points(canvas: np.ndarray, track: ObjectResult, unit: float) -> None:
    radius = 4.4 * unit
    for point, confidence in _drawable_points(track, canvas.shape):
        if confidence >= FAINT_CONFIDENCE:
            _disc(canvas, point, radius + 1.4 * unit, _DARK)
            _disc(canvas, point, radius, _colour(track.id, 0.75))
            _disc(canvas, point, radius * 0.66, _colour(track.id))
        else:
            margin = int(radius) + 3
            x0, y0 = (max(0, int(coordinate) - margin) for coordinate in point)
            region = canvas[y0 : int(point[1]) + margin + 1, x0 : int(point[0]) + margin + 1]
            ringed = np.ascontiguousarray(region)
            _ring(ringed, point - (x0, y0), radius, _DARK, max(1, round(3 * unit)))
            _ring(ringed, point - (x0, y0), radius, _colour(track.id, 0.45), max(1, round(1.4 * unit)))
            region[:] = cv2.addWeighted(region, 0.45, ringed, 0.55, 0)


def _drawable_points(track: ObjectResult, shape: tuple[int, ...]) -> list[tuple[np.ndarray, float]]:
    """(x, y) and confidence of the points that are in the picture; drawing overflows on far or undefined ones."""
    if track.points is None:
        return []
    height, width = shape[:2]
    confidence = np.ones(len(track.points)) if track.point_confidence is None else track.point_confidence
    inside = ((track.points >= -0.5) & (track.points < (width - 0.5, height - 0.5))).all(axis=1)
    return [(track.points[i], float(confidence[i])) for i in np.flatnonzero(inside)]


def _disc(canvas: np.ndarray, centre: np.ndarray, radius: float, colour: _Colour) -> None:
    _ring(canvas, centre, radius, colour, thickness=cv2.FILLED)


def _ring(canvas: np.ndarray, centre: np.ndarray, radius: float, colour: _Colour, thickness: int) -> None:
    x, y, radius_fixed = (round(float(length) * (1 << _SUBPIXEL_BITS)) for length in (*centre, radius))
    cv2.circle(canvas, (x, y), radius_fixed, colour, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_name(canvas: np.ndarray, track: ObjectResult, unit: float) -> None:
    """The object's name above its top left corner, pushed back into the picture where it would leave it."""
    corner = _corner(track, canvas.shape) if track.name and track.visible else None
    if corner is None:
        return
    label, opacity = _label(track.name, round(15 * max(unit, 0.8)), _colour(track.id))
    gap = round(4 * unit)
    x = max(0, min(corner[0], canvas.shape[1] - label.shape[1]))
    y = max(0, corner[1] - label.shape[0] - gap)
    region = canvas[y : y + label.shape[0], x : x + label.shape[1]]
    height, width = region.shape[:2]  # smaller than the label where the picture is
    mixed = region * (1 - opacity[:height, :width]) + label[:height, :width] * opacity[:height, :width]
    region[:] = mixed.round().astype(np.uint8)


def _corner(track: ObjectResult, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(x, y) of the top left corner of what is drawn of an object, None where nothing is."""
    if track.box is not None:
        return track.box[0], track.box[1]
    points = [point for point, confidence in _drawable_points(track, shape) if confidence >= FAINT_CONFIDENCE]
    if not points:
        return None
    x, y = np.min(points, axis=0)
    return int(x), int(y) - round(min(shape[:2]) / 90)


@lru_cache(maxsize=256)
def _label(text: str, size: int, colour: _Colour) -> tuple[np.ndarray, np.ndarray]:
    """A name on a rounded plate: [h, w, 3] float32, BGR 0..255, and its opacity [h, w, 1] float32, 0..1.

    Drawn by Pillow, which carries a smooth font; OpenCV's own strokes are ragged.
    """
    # That font has ASCII alone: accents are dropped, and what has no plain letter becomes a question mark.
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
