"""Points as CSV: of one frame, or with a column `frame` of several."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.formats.base import TableSink
from corrflow.runtime.formats.jsonl import named_points
from corrflow.runtime.types import FrameResult, KeypointsObject


def read_points_by_frame(path: Path) -> dict[int, list[KeypointsObject]]:
    """Read the objects by the index of their frame, 0 without the column `frame`.

    A number in the column `object` is an id; any other text is a name, with id 0. Raises InputError.
    """
    by_frame: dict[str, list[list[str]]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file)
            header = next(table, [])
            names = [cell.strip().lower() for cell in header]
            if "frame" not in names or "x" not in names:
                return {0: [_with_id(obj) for obj in read_keypoints(path, 1)]}
            column = names.index("frame")
            for line in table:
                if len(line) > column:
                    by_frame.setdefault(line[column].strip(), []).append(line)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a CSV of keypoints in {path}, found a file that is none ({error})") from error
    if not by_frame:
        raise InputError(f"expected keypoints in {path}, found only the line of names; add one line for each point")
    objects: dict[int, list[KeypointsObject]] = {}
    for frame, lines in by_frame.items():
        if not (frame.isascii() and frame.isdigit()):
            raise InputError(f"expected the index of a frame, from 0, in {path}, got {frame!r}")
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *lines])
        text.seek(0)
        objects.setdefault(int(frame), []).extend(_with_id(obj) for obj in parse_keypoints(text, path, 1))
    return objects


def _with_id(obj: KeypointsObject) -> KeypointsObject:
    """Return an object named by a number with that number as its id, any other object with id 0."""
    number = int(obj.name) if obj.name.isascii() and obj.name.isdigit() and len(obj.name) < 4 else 0
    return replace(obj, id=number, name="") if 0 < number < 256 else replace(obj, id=0)


class KeypointCsvSink(TableSink):
    """Writer of one row for each point and frame: frame,time,object,point,x,y,confidence.

    frame:      index from 0
    time:       seconds
    object:     id of the object
    point:      name of the point
    x, y:       pixels, with (0, 0) at the centre of the top-left pixel
    confidence: 0..1
    """

    _header = "frame,time,object,point,x,y,confidence\n"

    def _lines(self, result: FrameResult) -> str:
        lines = io.StringIO()
        table = csv.writer(lines, lineterminator="\n")
        for obj in result.objects:
            for name, (x, y, confidence) in named_points(obj).items():
                numbers = (_text(x, 2), _text(y, 2), _text(confidence, 4))
                table.writerow([result.frame.index, f"{result.frame.time:.6f}", obj.id, name, *numbers])
        return lines.getvalue()


def _text(number: float, digits: int) -> str:
    return f"{number:.{digits}f}" if math.isfinite(number) else ""


_POINT_COLUMNS = ("point", "name", "bodypart", "keypoint")


def read_keypoints(path: Path, first_id: int) -> list[KeypointsObject]:
    """Read keypoints from columns x and y, in pixels, and optional columns point and object, both names.

    Without a header the columns are x, y or point, x, y. Points of one `object` form one object. Ids start at
    `first_id`. Raises InputError.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return parse_keypoints(file, path, first_id)
    except FileNotFoundError as error:
        raise InputError(f"expected keypoints in {path}, which does not exist; check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a CSV of keypoints in {path}, found a file that is none ({error})") from error


def parse_keypoints(file: TextIO, path: Path, first_id: int) -> list[KeypointsObject]:
    """Read keypoints from open text, as `read_keypoints` does. Raises also csv.Error and UnicodeDecodeError.

    path: file name for error messages
    """
    lines = [[cell.strip() for cell in line] for line in csv.reader(file) if any(cell.strip() for cell in line)]
    if not lines:
        raise InputError(f"expected keypoints in {path}, found none; write one line for each: name,x,y")
    header = [cell.lower() for cell in lines[0]]
    if "x" in header and "y" in header:
        lines = lines[1:]
    else:
        header = ["point", "x", "y"] if len(lines[0]) >= 3 else ["x", "y"]
    point_column = next((header.index(name) for name in _POINT_COLUMNS if name in header), None)
    object_column = header.index("object") if "object" in header else None

    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            x, y = float(line[header.index("x")]), float(line[header.index("y")])
            name = line[point_column] if point_column is not None else ""
            group = groups.setdefault(line[object_column] if object_column is not None else "", {})
        except (ValueError, IndexError) as error:
            raise InputError(
                f"expected {','.join(header)} in keypoint {number} of {path}, got {','.join(line)!r}"
            ) from error
        name = name or f"point{len(group) + 1}"
        if name in group:
            raise InputError(f"expected every point of an object to have its own name, got {name!r} twice in {path}")
        group[name] = (x, y)
    if not any(groups.values()):
        raise InputError(f"expected keypoints in {path}, found only the line of names; add one line for each point")
    return [
        KeypointsObject(first_id + k, np.array(list(points.values()), np.float32), tuple(points), name)
        for k, (name, points) in enumerate(groups.items())
    ]
