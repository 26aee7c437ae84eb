"""Points as CSV: of one frame, or with a column `frame` of several."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from corrflow.errors import InputError
from corrflow.file_budget import FileBudget, open_text
from corrflow.runtime.formats.annotations import FileContent, FrameKey, ReadContext, check_number_of_points
from corrflow.runtime.formats.base import MAX_TABLE_BYTES, TableSink, identity_texts
from corrflow.runtime.formats.jsonl import named_points
from corrflow.runtime.types import MIN_POINT_CONFIDENCE, FrameResult, KeypointsObject


def read_points(path: Path, content: Any, context: ReadContext) -> FileContent:
    """Read the objects by the index of their frame, 0 without the column `frame`.

    The column `object` has the identity of an object: a number, or its name. Without x and y a point is not labelled.
    A second row for a point is left out, and one whose `confidence` is too low is ignored. Raises InputError.
    """
    try:
        with open_text(path) as file:
            rows = _rows(file, path, context.budget)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a CSV of keypoints in {path}, found a file that is none ({error})") from error
    by_frame: dict[int, dict[str, dict[str, tuple[float, float]]]] = {}
    for row in rows:
        frame = row.frame or "0"
        if not (frame.isascii() and frame.isdigit() and len(frame) < 10):
            raise InputError(f"expected the index of a frame, from 0, in row {row.number} of {path}, got {frame!r}")
        group = by_frame.setdefault(int(frame), {}).setdefault(row.object, {})
        name = row.point or f"point{len(group) + 1}"
        what = f"row {row.number}, frame {int(frame)}, point {name!r}" + (f" of {row.object!r}" if row.object else "")
        if row.confidence <= MIN_POINT_CONFIDENCE:
            context.ignore(what, "its confidence says that it is not visible")
        elif row.confidence < context.min_score:
            context.ignore(what, f"its confidence is less than {context.min_score:g}")
        elif name in group:
            context.leave_out(what, "the point has a row already on this frame")
        elif row.place is not None:
            group[name] = row.place
    if not rows:
        raise InputError(f"expected keypoints in {path}, found only the line of names; add one line for each point")
    objects: dict[FrameKey, list[KeypointsObject]] = {}
    for frame, groups in by_frame.items():
        objects[frame] = [_with_identity(obj) for obj in _objects(groups, 1)]
    return FileContent(objects)


def _with_identity(obj: KeypointsObject) -> KeypointsObject:
    """Return an object with its number or name as its identity."""
    is_number = obj.name.isascii() and obj.name.isdigit()
    name, track_id = ("", int(obj.name)) if is_number else (obj.name, obj.name or None)
    return replace(obj, id=0, name=name, track_id=track_id)


class KeypointCsvSink(TableSink):
    """Writer of one row for each point and frame: frame,time,object,point,x,y,confidence.

    frame:      index from 0
    time:       seconds
    object:     identity in the labels, else the id
    point:      name of the point
    x, y:       pixels, with (0, 0) at the centre of the top-left pixel
    confidence: 0..1
    """

    _header = "frame,time,object,point,x,y,confidence\n"

    def _lines(self, result: FrameResult) -> str:
        lines = io.StringIO()
        table = csv.writer(lines, lineterminator="\n")
        objects = [obj for obj in result.objects if obj.points is not None]
        for obj, identity in zip(objects, identity_texts(objects), strict=True):
            for name, (x, y, confidence) in named_points(obj).items():
                numbers = (_text(x, 2), _text(y, 2), _text(confidence, 4))
                table.writerow([result.frame.index, f"{result.frame.time:.6f}", identity, name, *numbers])
        return lines.getvalue()


def _text(number: float, digits: int) -> str:
    return f"{number:.{digits}f}" if math.isfinite(number) else ""


_FARTHEST = 1e9  # pixels; a number beyond is none of an image
_BYTES_OF_ROW = 600
_POINT_COLUMNS = ("point", "name", "bodypart", "keypoint")


@dataclass(frozen=True)
class _Row:
    """Row of a table.

    number: position among the rows with a point, from 1
    place:  x and y; None for a point that is not labelled
    """

    number: int
    frame: str
    object: str
    point: str
    place: tuple[float, float] | None
    confidence: float = 1.0


def read_keypoints(path: Path, first_id: int) -> list[KeypointsObject]:
    """Read keypoints from columns x and y, in pixels, and optional columns point and object, both names.

    Without a header the columns are x, y or point, x, y. Points of one `object` form one object. Ids start at
    `first_id`. Raises InputError.
    """
    try:
        with open_text(path) as file:
            rows = _rows(file, path, FileBudget.of(path))
    except FileNotFoundError as error:
        raise InputError(f"expected keypoints in {path}, which does not exist; check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a CSV of keypoints in {path}, found a file that is none ({error})") from error
    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        group = groups.setdefault(row.object, {})
        name = row.point or f"point{len(group) + 1}"
        if name in group:
            raise InputError(
                f"expected every point of an object to have its own name, got {name!r} twice in {path}; rename one"
            )
        if row.place is not None:
            group[name] = row.place
    if not (objects := _objects(groups, first_id)):
        raise InputError(f"expected keypoints in {path}, found only the line of names; add one line for each point")
    check_number_of_points(objects, str(path))
    return objects


def _rows(file: TextIO, path: Path, budget: FileBudget) -> list[_Row]:
    """Parse a table. Raises InputError for values that are no numbers, csv.Error and UnicodeDecodeError."""
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise InputError(f"expected a CSV of at most {MAX_TABLE_BYTES >> 20} MB, got {path}; split it")
    lines = ([cell.strip() for cell in line] for line in csv.reader(file) if any(cell.strip() for cell in line))
    if (first := next(lines, None)) is None:
        raise InputError(f"expected keypoints in {path}, found none; write one line for each: name,x,y")
    header = [cell.lower() for cell in first]
    if not ("x" in header and "y" in header):
        lines = chain([first], lines)
        header = ["point", "x", "y"] if len(first) >= 3 else ["x", "y"]
    point_column = next((name for name in _POINT_COLUMNS if name in header), "")
    rows = []
    for number, line in enumerate(lines, 1):
        budget.take(_BYTES_OF_ROW, "rows")
        cells = dict(zip(header, line, strict=False))
        try:
            place = None if not cells["x"] and not cells["y"] else (float(cells["x"]), float(cells["y"]))
            confidence = float(cells.get("confidence") or 1)
            if place is not None and not all(abs(number) < _FARTHEST for number in place):
                raise ValueError(place)
        except (ValueError, KeyError) as error:
            raise InputError(
                f"expected {','.join(header)!r:.200} in keypoint {number} of {path}, got {','.join(line)!r}"
            ) from error
        point = cells.get(point_column, "")
        rows.append(_Row(number, cells.get("frame", ""), cells.get("object", ""), point, place, confidence))
    return rows


def _objects(groups: Mapping[str, Mapping[str, tuple[float, float]]], first_id: int) -> list[KeypointsObject]:
    """Return an object for each group with a point."""
    labelled = [(name, points) for name, points in groups.items() if points]
    return [
        KeypointsObject(first_id + k, np.array(list(points.values()), np.float32), tuple(points), name)
        for k, (name, points) in enumerate(labelled)
    ]
