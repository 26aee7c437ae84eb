"""DeepLabCut's CSV of points, for one animal or several: lines of names, then one line for each frame."""

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
    """Writer of x, y and likelihood of every point. Objects are individuals; frames are indices from 0."""

    def _lines(self, result: FrameResult) -> str:
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        keypoints = [obj for obj in result.objects if obj.points is not None]
        if self._is_empty:
            points = [(obj.name or str(obj.id), name) for obj in keypoints for name in obj.point_names]
            coordinates = ("x", "y", "likelihood")
            table.writerow(["scorer", *[SCORER for _ in points for _ in coordinates]])
            table.writerow(["individuals", *[individual for individual, _ in points for _ in coordinates]])
            table.writerow(["bodyparts", *[name for _, name in points for _ in coordinates]])
            table.writerow(["coords", *[coordinate for _ in points for coordinate in coordinates]])
        row: list[object] = [result.frame.index]
        for obj in keypoints:
            assert obj.points is not None and obj.point_confidence is not None
            for (x, y), confidence in zip(obj.points, obj.point_confidence, strict=True):
                row += [f"{x:.3f}", f"{y:.3f}", f"{confidence:.4f}"]
        table.writerow(row)
        return text.getvalue()


def is_deeplabcut(first_line: str) -> bool:
    """Return True for the first line of DeepLabCut's CSV."""
    return first_line.lstrip("\ufeff").split(",")[0].strip().lower() == "scorer"


def read_deeplabcut(path: Path) -> dict[int | str, list[KeypointsObject]]:
    """Read the labelled points by frame, see `frame_of`; empty points are left out. Raises InputError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
        titled = ((line[0].strip().lower(), line) for line in lines[:4] if line)
        header = {title: line for title, line in titled if title in HEADER}
        parts, coordinates = header["bodyparts"], header["coords"]
        first = next(column for column, cell in enumerate(coordinates) if cell.strip() == "x")
        individuals = header.get("individuals", [""] * len(parts))
        by_frame: dict[int | str, list[KeypointsObject]] = {}
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
                by_frame[frame_of(line[first - 1])] = objects_of(objects)
        if not by_frame:
            raise InputError(f"expected labelled points in {path}, got none; label at least one frame")
        return by_frame
    except OSError as error:
        raise InputError(f"expected a CSV of DeepLabCut in {path}, which cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, IndexError, StopIteration, csv.Error) as error:
        raise InputError(
            f"expected a CSV of DeepLabCut in {path}, got one that cannot be read ({type(error).__name__}: {error})"
        ) from error


def objects_of(individuals: Mapping[str, Mapping[str, tuple[float, float]]]) -> list[KeypointsObject]:
    """Convert individuals with named points to objects. An individual from 1 to 255 is an id, any other a name."""
    objects = []
    for name, points in individuals.items():
        identity = int(name) if re.fullmatch(r"[1-9][0-9]{0,2}", name) and int(name) < 256 else 0
        coordinates = np.array(list(points.values()), np.float32)
        objects.append(KeypointsObject(identity, coordinates, tuple(points), "" if identity else name))
    return objects


def frame_of(cell: str) -> int | str:
    """Return the frame of a row: its number, the number at the end of its image's name, or else that name."""
    name = PurePosixPath(cell.strip().replace("\\", "/")).name
    stem = name if name.isdigit() else PurePosixPath(name).stem
    digits = re.search(r"[0-9]+$", stem)
    return int(digits.group()) if digits and len(digits.group()) < 10 else stem
