"""Lines of YOLO's text files: detection, segmentation, oriented boxes and pose, with and without confidence and id.

A line is a class and numbers, fractions of the image's sides unless said otherwise. Nothing in the file says which
numbers these are, so that their count decides:
4:            a box, x y w h, about its centre
5:            a box and one addition
6:            a box, a confidence and an id, where the last number can be an id and the box is inside; else a triangle
8, 10, ...:   a polygon; without its last two numbers where these can be a confidence and an id. An oriented box is the
              polygon of its four corners
7, 9, ...:    a polygon and one addition
4 + K * D:    a box and the points of a pose, where data.yaml has `kpt_shape: [K, D]`; and additions. Without data.yaml
              there are K > 1 points if each third number behind the box is a visibility: 0, 1 or 2

One addition is an id where all of the file are whole numbers without a decimal point; else they are confidences. The
last of two can be an id if it is such a number. It must be over 1, or have no corner beside it on the same edge of the
image. The number before it is a confidence from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_OUTSIDE = 0.5  # fraction of the image by which a label may leave it; more are pixels
_EDGE = 0.02  # fraction of the image within which two corners touch the same edge
_MAX_DIGITS = 9


@dataclass(frozen=True)
class YoloLine:
    """Object of a line, in fractions of the image's sides.

    number:     position in the file, from 1
    box:        x, y, w, h [4] of a box or pose; None for a polygon
    corners:    [P, 2] of a polygon; None for others
    points:     [K, 2 or 3] of a pose, with a visibility or a likelihood; None for others
    """

    number: int
    index: int
    box: np.ndarray | None = None
    corners: np.ndarray | None = None
    points: np.ndarray | None = None
    confidence: float | None = None
    track_id: int | None = None


@dataclass(frozen=True)
class _Numbers:
    """Numbers of a line as texts and values, without the class."""

    number: int
    index: int
    texts: list[str]
    values: np.ndarray


def parse_lines(
    text: str, point_shape: tuple[int, int] | None, leave_out: Callable[[int, str], None]
) -> list[YoloLine]:
    """Return the objects of a file.

    point_shape: numbers of points and of values for each; None if unknown
    leave_out:   called with the position of a line that cannot be understood, from 1, and the reason
    """
    rows: list[_Numbers] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (parts := line.split()):
            continue
        try:
            values = np.array([float(part) for part in parts])
        except ValueError:
            leave_out(number, "it is not a class and numbers")
            continue
        if not np.isfinite(values).all() or values[0] < 0 or values[0] >= 10_000 or values[0] % 1:
            leave_out(number, "it does not begin with the number of a class")
        elif len(parts) < 5:
            leave_out(number, "it has too few numbers")
        else:
            rows.append(_Numbers(number, int(values[0]), parts[1:], values[1:]))
    if point_shape is not None:
        # A line of a pose that lacks a number must not become a polygon.
        wanted = {4, 5, 6, *range(4 + point_shape[0] * point_shape[1], 7 + point_shape[0] * point_shape[1])}
        for row in rows:
            if len(row.texts) not in wanted:
                leave_out(row.number, "it has not as many numbers as kpt_shape says")
        rows = [row for row in rows if len(row.texts) in wanted]
    shapes = [_shape(row, point_shape) for row in rows]
    single = [row.texts[-1] for row, (count, _) in zip(rows, shapes, strict=True) if len(row.texts) == count + 1]
    is_id = all(_is_whole(one) for one in single)
    found = []
    for row, (count, points) in zip(rows, shapes, strict=True):
        body, extra = row.values[:count], row.values[count:]
        confidence = float(extra[0]) if len(extra) == 2 or (len(extra) == 1 and not is_id) else None
        track_id = int(extra[-1]) if len(extra) == 2 or (len(extra) == 1 and is_id) else None
        places = body if points is None else np.append(body[:4], body[4:].reshape(points)[:, :2])
        if confidence is not None and not 0 <= confidence <= 1:
            leave_out(row.number, "its last number is no confidence from 0 to 1")
        elif not ((places >= -_OUTSIDE) & (places <= 1 + _OUTSIDE)).all():
            leave_out(row.number, "its coordinates are no fractions of the image's sides")
        elif points is not None:
            pose = body[4:].reshape(points)
            found.append(YoloLine(row.number, row.index, body[:4], None, pose, confidence, track_id))
        elif count == 4:
            found.append(YoloLine(row.number, row.index, body, None, None, confidence, track_id))
        else:
            corners = body.reshape(-1, 2)
            found.append(YoloLine(row.number, row.index, None, corners, None, confidence, track_id))
    return found


def _shape(row: _Numbers, point_shape: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
    """Return how many numbers of a line are its shape, and the shape of its points where it is a pose."""
    count = len(row.texts)
    if point_shape is not None and 0 <= count - 4 - point_shape[0] * point_shape[1] <= 2:
        return 4 + point_shape[0] * point_shape[1], point_shape
    if point_shape is None and (points := _points_of_pose(row)):
        return 4 + 3 * points, (points, 3)
    if count <= 5:
        return 4, None
    if count % 2:
        return count - 1, None
    if count == 6:
        x, y, w, h = row.values[:4].tolist()
        is_inside = min(x - w / 2, y - h / 2, w, h) >= -0.01 and max(x + w / 2, y + h / 2) <= 1.01
        return (4, None) if is_inside and _has_id(row) else (6, None)
    return (count - 2 if _has_id(row) else count), None


def _points_of_pose(row: _Numbers) -> int:
    """Return the number of points of a pose with visibilities; 0 for a line that is none."""
    for extra in range(3):
        points, rest = divmod(len(row.texts) - extra - 4, 3)
        flags = row.values[6 : 4 + 3 * points : 3]
        if points > 1 and not rest and np.isin(flags, (0, 1, 2)).all() and (flags == 2).any():
            return points
    return 0


def _has_id(row: _Numbers) -> bool:
    """Return True if the last two numbers can be a confidence and an id, and not a corner."""
    last = row.values[-1]
    if not _is_whole(row.texts[-1]) or not 0 <= row.values[-2] <= 1:
        return False
    return bool(last > 1 or not (np.abs(row.values[1:-2:2] - last) <= _EDGE).any())


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
