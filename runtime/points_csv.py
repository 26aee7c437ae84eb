"""Points of one frame out of a CSV that may have the column `frame`, as `KeypointCsvSink` writes it."""

from __future__ import annotations

import csv
from pathlib import Path

from corrflow.plugins.errors import InputError
from corrflow.runtime.initial import read_keypoints
from corrflow.runtime.tracks import KeypointsObject


def read_points_of_frame(path: Path) -> tuple[int, list[KeypointsObject]]:
    """The frame's index from 0 (0 without such a column) and the objects; ids count from 1.

    Raises InputError for what cannot be read, and for points on several frames.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = [cell.strip().lower() for cell in next(csv.reader(file), [])]
            if "frame" not in header or "x" not in header:
                return 0, read_keypoints(path, 1)
            column = header.index("frame")
            frames = {line[column].strip() for line in csv.reader(file) if len(line) > column}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a CSV of keypoints in {path}, found a file that is none ({error})") from error
    if len(frames) != 1:
        raise InputError(f"expected points on one frame in {path}, got {len(frames)} frames; keep one")
    frame = frames.pop()
    if not (frame.isascii() and frame.isdigit()):
        raise InputError(f"expected the index of a frame, from 0, in {path}, got {frame!r}")
    return int(frame), read_keypoints(path, 1)
