"""DeepLabCut's CSV of points, with one animal or several: three or four lines of names, then a line for each frame.

Its .h5, which holds the same, is in `deeplabcut_h5`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.formats.base import TableSink
from corrflow.runtime.types import FrameResult, KeypointsObject

SCORER = "corrflow"
HEADER = ("scorer", "individuals", "bodyparts", "coords")


class DeepLabCutSink(TableSink):
    """x, y and likelihood of every point, objects as individuals by their names or ids; frames by index from 0."""

    def _lines(self, result: FrameResult) -> str:
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        tracked = [track for track in result.objects if track.points is not None]
        if self._is_empty:
            points = [(track.name or str(track.id), name) for track in tracked for name in track.point_names]
            coordinates = ("x", "y", "likelihood")
            table.writerow(["scorer", *[SCORER for _ in points for _ in coordinates]])
            table.writerow(["individuals", *[individual for individual, _ in points for _ in coordinates]])
            table.writerow(["bodyparts", *[name for _, name in points for _ in coordinates]])
            table.writerow(["coords", *[coordinate for _ in points for coordinate in coordinates]])
        row: list[object] = [result.frame.index]
        for track in tracked:
            assert track.points is not None and track.point_confidence is not None
            for (x, y), confidence in zip(track.points, track.point_confidence, strict=True):
                row += [f"{x:.3f}", f"{y:.3f}", f"{confidence:.4f}"]
        table.writerow(row)
        return text.getvalue()


def is_deeplabcut(first_line: str) -> bool:
    return first_line.lstrip("\ufeff").split(",")[0].strip().lower() == "scorer"


def read_deeplabcut(path: Path) -> dict[int | str, list[KeypointsObject]]:
    """The labelled points by frame: the row's number, the number at the end of its picture's name, or else that name.

    Points left empty are not labelled. Raises InputError for what cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
        named = ((line[0].strip().lower(), line) for line in lines[:4] if line)
        header = {name: line for name, line in named if name in HEADER}
        parts, coordinates = header["bodyparts"], header["coords"]
        first = next(column for column, cell in enumerate(coordinates) if cell.strip() == "x")
        individuals = header.get("individuals", [""] * len(parts))
        found: dict[int | str, list[KeypointsObject]] = {}
        for line in lines[len(header) :]:
            if not line:
                continue
            objects: dict[str, dict[str, tuple[float, float]]] = {}
            for column in range(first, len(coordinates)):
                if coordinates[column].strip() != "x":
                    continue
                x, y = (float(cell) if cell.strip() else math.nan for cell in line[column : column + 2])
                if math.isfinite(x) and math.isfinite(y):
                    objects.setdefault(individuals[column].strip(), {})[parts[column].strip()] = (x, y)
            if objects:
                frame = frame_of(line[first - 1])
                found[frame] = objects_of(objects)
        if not found:
            raise InputError(f"expected labelled points in {path}, got none; label at least one frame")
        return found
    except OSError as error:
        raise InputError(f"expected a CSV of DeepLabCut in {path}, which cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, IndexError, StopIteration, csv.Error) as error:
        raise InputError(
            f"expected a CSV of DeepLabCut in {path}, got one that cannot be read ({type(error).__name__}: {error})"
        ) from error


def objects_of(individuals: Mapping[str, Mapping[str, tuple[float, float]]]) -> list[KeypointsObject]:
    """The objects of one frame out of individuals with named points; a number is an id, other words are names."""
    objects = []
    for name, points in individuals.items():
        identity = int(name) if re.fullmatch(r"[1-9][0-9]{0,2}", name) and int(name) < 256 else 0
        places = np.array(list(points.values()), np.float32)
        objects.append(KeypointsObject(identity, places, tuple(points), "" if identity else name))
    return objects


def frame_of(cell: str) -> int | str:
    """The frame that the name of a row means: its number, the number at the end of its picture's name, or that name."""
    name = PurePosixPath(cell.strip().replace("\\", "/")).name
    stem = name if name.isdigit() else PurePosixPath(name).stem
    digits = re.search(r"[0-9]+$", stem)
    return int(digits.group()) if digits and len(digits.group()) < 10 else stem
