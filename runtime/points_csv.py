"""Points out of a CSV that may have the column `frame`, as `KeypointCsvSink` writes it."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

from corrflow.plugins.errors import InputError
from corrflow.runtime.initial import keypoints_of, read_keypoints
from corrflow.runtime.tracks import KeypointsObject


def read_points_by_frame(path: Path) -> dict[int, list[KeypointsObject]]:
    """The objects by the index of their frame, from 0 (0 without such a column).

    An object that is called by a number has it as its id; the others have id 0. Raises InputError for what cannot be
    read.
    """
    by_frame: dict[str, list[list[str]]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file)
            header = next(table, [])
            names = [cell.strip().lower() for cell in header]
            if "frame" not in names or "x" not in names:
                return {0: [_own_id(given) for given in read_keypoints(path, 1)]}
            column = names.index("frame")
            for line in table:
                if len(line) > column:
                    by_frame.setdefault(line[column].strip(), []).append(line)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a CSV of keypoints in {path}, found a file that is none ({error})") from error
    if not by_frame:
        raise InputError(f"expected keypoints in {path}, found only the line of names; add one line for each point")
    found = {}
    for frame, lines in by_frame.items():
        if not (frame.isascii() and frame.isdigit()):
            raise InputError(f"expected the index of a frame, from 0, in {path}, got {frame!r}")
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *lines])
        text.seek(0)
        found.setdefault(int(frame), []).extend(_own_id(given) for given in keypoints_of(text, path, 1))
    return found


def _own_id(given: KeypointsObject) -> KeypointsObject:
    number = int(given.name) if given.name.isascii() and given.name.isdigit() and len(given.name) < 4 else 0
    return replace(given, id=number, name="") if 0 < number < 256 else replace(given, id=0)
