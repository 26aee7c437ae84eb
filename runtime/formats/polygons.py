"""Masks as polygons, for formats that have neither images nor run lengths, and polygons as masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np

MIN_COMPONENT = 10
"""Pixels: smaller components and holes of a mask are specks; the largest component never is."""

_MAX_CROSSINGS = 3_000_000
"""Rows of pixels that the sides of one polygon may cross; each takes some 150 bytes while the polygon is filled."""


def simplified_polygons(mask: np.ndarray, tolerance: float = 1.0, along_edges: bool = False) -> list[np.ndarray]:
    """Convert a mask [H, W] bool to few corners: polygons [P, 2] float64 (x, y) in pixels, P >= 3, largest first.

    tolerance:   pixels between the outline and its simplification, at most 1
    along_edges: False for polygons through the centres of the pixels on the rim, which loaders fill rim included, as
                 `filled` does; True for polygons along the outer edges of these pixels, whose area is the mask's

    (0, 0) is the centre of the top-left pixel. The filled polygons differ from the mask by pixels at its rim alone, and
    by specks, see `MIN_COMPONENT`. A component with a hole is cut in two there.
    """
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    if not width:
        return []
    box = without_specks(mask[top : top + height, left : left + width]).astype(np.uint8)
    corner = np.array([left, top], np.float64)
    # Pixels that have to be in a polygon, and pixels that may be.
    inner, outer = (change(np.pad(box, 1), np.ones((3, 3), np.uint8)) for change in (cv2.erode, cv2.dilate))
    found: list[tuple[int, np.ndarray]] = []
    for piece, x, y in _pieces(box, 0, 0):
        part = slice(y, y + piece.shape[0] + 2), slice(x, x + piece.shape[1] + 2)
        needed = inner[part] & np.pad(piece, 1)
        polygon = _simplified(piece, needed, outer[part], tolerance, along_edges)
        found.append((int(piece.sum()), polygon + corner + [x, y]))
    return [polygon for _, polygon in sorted(found, key=lambda entry: -entry[0])]


def without_specks(mask: np.ndarray) -> np.ndarray:
    """Return a mask [H, W] bool without its components and holes of less than `MIN_COMPONENT` pixels."""
    clean = mask.astype(np.uint8)
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(clean, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    if len(areas) > 2:
        keep = areas >= min(MIN_COMPONENT, int(areas[1:].max()))
        keep[0] = False
        clean = np.asarray(keep)[np.asarray(numbers, np.int64)].astype(np.uint8)
    # A hole is connected by edges, because the object around it is connected by corners.
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(1 - clean, connectivity=4)
    x, y, width, height, areas = stats.T
    is_inner = (x > 0) & (y > 0) & (x + width < mask.shape[1]) & (y + height < mask.shape[0])
    fill = is_inner & (areas < MIN_COMPONENT)
    fill[0] = False  # the object
    return (clean | fill[numbers]).astype(bool)


def bridged(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Join polygons [P, 2] to one, for formats with one outline for each object; bridges have no width."""
    whole, *others = polygons
    bridges: dict[int, list[np.ndarray]] = {}
    for polygon in others:
        distances = ((whole[:, None] - polygon[None]) ** 2).sum(2)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        bridges.setdefault(int(here), []).append(np.concatenate([polygon[there:], polygon[: there + 1]]))
    parts: list[np.ndarray] = []
    for index, corner in enumerate(whole):
        parts.append(corner[None])
        for loop in bridges.get(index, ()):
            parts += [loop, corner[None]]
    return np.concatenate(parts)


def rotated(corners: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate corners [P, 2] clockwise about the centre of their box."""
    angle = math.radians(degrees)
    centre = (corners.min(0) + corners.max(0)) / 2
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (corners - centre) @ turn + centre if angle else corners


def filled(polygons: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Fill polygons [P, 2] in pixels, edges included, and return their union, [H, W] bool.

    (0, 0) is the centre of the top-left pixel. Corners are rounded to pixels. Raises ValueError for corners far
    outside.
    """
    mask = np.zeros(shape, np.uint8)
    for polygon in map(checked_polygon, polygons):
        cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1)
    return mask.astype(bool)


def filled_area(polygons: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Fill polygons [P, 2] in pixels, and return the pixels whose centre is inside of one, [H, W] bool.

    This is how formats understand an outline along the edges of pixels; `filled` is for contours through their centres.
    A polygon too thin for any centre gets the pixels of its outline. Raises ValueError for corners far outside.
    """
    mask = np.zeros(shape, bool)
    part, (top, left) = filled_area_part(polygons, shape)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask


def filled_area_part(polygons: Iterable[np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the part of `filled_area` that its polygons are in, [h, w] bool, and its row and column in the image."""
    pieces: list[tuple[np.ndarray, int, int]] = []
    for polygon in map(checked_polygon, polygons):
        low = np.floor(polygon.min(0)).clip(0, [shape[1], shape[0]]).astype(int)
        high = np.ceil(polygon.max(0) + 1).clip(low, [shape[1], shape[0]]).astype(int)
        width, height = (high - low).tolist()
        if width and height:  # else it lies outside of the image
            inside = _inside(polygon - low, (height, width))
            piece = inside if inside.any() else filled([polygon - low], (height, width))
            pieces.append((piece, int(low[1]), int(low[0])))
    if len(pieces) < 2:
        return (pieces[0][0], pieces[0][1:]) if pieces else (np.zeros((0, 0), bool), (0, 0))
    return united(pieces)


def united(pieces: Sequence[tuple[np.ndarray, int, int]]) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the union of pieces of a mask, [h, w] bool with row and column of each; and its row and column."""
    top, left = min(row for _, row, _ in pieces), min(column for _, _, column in pieces)
    bottom = max(row + piece.shape[0] for piece, row, _ in pieces)
    right = max(column + piece.shape[1] for piece, _, column in pieces)
    part = np.zeros((bottom - top, right - left), bool)
    for piece, row, column in pieces:
        part[row - top : row - top + piece.shape[0], column - left : column - left + piece.shape[1]] |= piece
    return part, (top, left)


def crossings(polygon: np.ndarray, height: int) -> int:
    """Return the number of rows of pixels that the sides of a polygon [P, 2] cross. Raises ValueError for too many."""
    first, last = _rows_of_sides(polygon, height)
    if (count := int((last - first).sum())) > _MAX_CROSSINGS:
        raise ValueError("a polygon with too many corners")
    return count


def _rows_of_sides(polygon: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of pixels that each side crosses, and the one after the last, [P] int64."""
    start, end = polygon[:, 1], np.roll(polygon[:, 1], -1)
    # A centre that is exactly on a side belongs to it on its right and lower sides, as in COCO's own library.
    first, last = (
        (np.floor(side) + 1).clip(0, height).astype(np.int64)
        for side in (np.minimum(start, end), np.maximum(start, end))
    )
    return first, last


def _inside(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels with their centre inside of a polygon, by the even-odd rule, [H, W] bool."""
    crossings(polygon, shape[0])
    start, end = polygon, np.roll(polygon, -1, 0)
    first, last = _rows_of_sides(polygon, shape[0])
    counts = last - first
    side = np.repeat(np.arange(len(polygon)), counts)
    rows = np.arange(len(side)) - np.repeat(counts.cumsum() - counts, counts) + first[side]
    (x0, y0), (x1, y1) = start[side].T, end[side].T
    columns = (np.floor(x0 + (rows - y0) / (y1 - y0) * (x1 - x0)) + 1).clip(0, shape[1]).astype(np.int64)
    # A row changes between outside and inside at every crossing.
    changes = np.zeros((shape[0], shape[1] + 1), np.uint8)
    np.bitwise_xor.at(changes, (rows, columns), 1)
    return np.bitwise_xor.accumulate(changes, 1)[:, :-1].astype(bool)


def checked_polygon(polygon: np.ndarray) -> np.ndarray:
    """Return a polygon as [P, 2] float64. Raises ValueError for another array, and corners that are in no image."""
    corners = np.asarray(polygon, np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or not len(corners):
        raise ValueError("a polygon that is no list of (x, y)")
    if not np.abs(corners).max() < 1e6:
        raise ValueError("a polygon with corners that are not in any image")
    return corners


def _outline(piece: np.ndarray) -> np.ndarray:
    """Return the outline of a component without holes, through the centres of its rim, [P, 2]."""
    contours, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return contours[0][:, 0]


def _edge_outline(piece: np.ndarray) -> np.ndarray:
    """Return the outline of a component without holes, along the edges of its pixels, [P, 2]."""
    # Every second row and column is a line between pixels; a pixel fills its square with these lines.
    grid = np.zeros((2 * piece.shape[0] + 1, 2 * piece.shape[1] + 1), np.uint8)
    grid[1::2, 1::2] = piece
    grid = cv2.dilate(grid, np.ones((3, 3), np.uint8))
    return _outline(grid) / 2 - 0.5


def _simplified(
    piece: np.ndarray, needed: np.ndarray, allowed: np.ndarray, tolerance: float, along_edges: bool
) -> np.ndarray:
    """Return the outline of a component without holes, with as few corners as the needed and allowed pixels permit.

    piece:           [H, W] uint8
    needed, allowed: [H + 2, W + 2] uint8, with a border of one pixel
    """
    outline = _edge_outline(piece) if along_edges else _outline(piece)
    fill = filled_area if along_edges else filled
    while tolerance > 0.2:
        corners = cv2.approxPolyDP(outline.astype(np.float32)[:, None], tolerance, True)[:, 0].astype(np.float64)
        if len(corners) > 2:
            area = fill([corners + 1], (allowed.shape[0], allowed.shape[1]))
            if not (needed > area).any() and not (area > allowed).any():
                return corners
        tolerance *= 0.75
    repeated = np.repeat(outline[-1:], max(0, 3 - len(outline)), 0)
    return np.concatenate([outline, repeated]).astype(np.float64)


def _pieces(mask: np.ndarray, left: int, top: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield components without holes in their boxes, [H, W] uint8, with the column and row where each begins.

    mask: [H, W] uint8 of 0 and 1, which begins at column `left` and row `top` of the image
    """
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for index, contour in enumerate(contours):
        _, _, child, parent = hierarchy[0][index].tolist()
        if parent >= 0:
            continue  # a hole, handled with the component around it
        x, y, width, height = cv2.boundingRect(contour)
        component = np.zeros((height, width), np.uint8)
        cv2.fillPoly(component, [contour - [x, y]], 1)
        if child < 0:
            yield component, left + x, top + y
            continue
        component &= mask[y : y + height, x : x + width]
        # The contour of a hole runs over the pixels around the hole, so that its second column is in the hole.
        cut = int(contours[child][:, 0, 0].min()) + 1 - x
        yield from _pieces(np.ascontiguousarray(component[:, :cut]), left + x, top + y)
        yield from _pieces(np.ascontiguousarray(component[:, cut:]), left + x + cut, top + y)
