"""DeepLabCut's table of points, whatever its file: a column for each individual, body part and coordinate.

Columns are tuples of scorer, individual, body part and coordinate; tables of a single animal have no individual. The
body parts of the individual "single" are those that the animals do not share. A row is the image that was labelled,
such as labeled-data/clip/img0012.png, or the index of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from corrflow.runtime.formats.annotations import FileContent, ReadContext
from corrflow.runtime.formats.label_schema import Category, FrameKey, LabelSchema
from corrflow.runtime.types import MIN_POINT_CONFIDENCE, FrameResult, KeypointsObject, ObjectResult
from corrflow.runtime.video.suffixes import IMAGE_SUFFIXES

SCORER = "corrflow"
TITLES = ("scorer", "individuals", "bodyparts", "coords")
COORDINATES = ("x", "y", "likelihood")

ANIMAL = "animal"
"""Category of the individuals that share their body parts."""
UNIQUE = "single"
"""DeepLabCut's individual with the body parts that the animals do not share, and the category of it."""


@dataclass
class TableLayout:
    """Columns of the table that a writer makes, in the order and with the names of the labels.

    points:          body parts of each individual, in order; the individual of a single animal is ""
    has_individuals: False for the table of a single animal
    """

    scorer: str
    has_individuals: bool
    points: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, schema: LabelSchema) -> TableLayout:
        """Return the columns of a schema; those of other objects follow with `extend`."""
        layout = cls(schema.scorer or SCORER, tuple(schema.individuals) != ("",))
        for individual, name in schema.individuals.items():
            if individual or not layout.has_individuals:
                category = schema.category(name)
                layout.points += [(individual, part) for part in (category.point_names if category else ())]
        return layout

    def extend(self, result: FrameResult, schema: LabelSchema) -> None:
        """Add the columns of a frame's points that are missing, at the end."""
        known = set(self.points)
        for individual, obj in individuals_of(result, self.has_individuals).items():
            category = schema.category(obj.category)
            names = dict.fromkeys((*(category.point_names if category else ()), *obj.point_names))
            self.points += [(individual, name) for name in names if (individual, name) not in known]

    def columns(self) -> list[tuple[str, ...]]:
        """Return the columns, three for each point."""
        return [(*self._names(*point), coordinate) for point in self.points for coordinate in COORDINATES]

    def _names(self, individual: str, part: str) -> tuple[str, ...]:
        if self.has_individuals:
            return self.scorer, individual, part
        return self.scorer, f"{individual}_{part}" if individual else part

    def titles(self) -> tuple[str, ...]:
        """Return the titles of the lines of names."""
        return tuple(title for title in TITLES if self.has_individuals or title != "individuals")

    def values(self, result: FrameResult) -> list[float]:
        """Return x, y and likelihood of every point; NaN for a point that is not tracked or not visible.

        A label of the user has likelihood 1.
        """
        objects = individuals_of(result, self.has_individuals)
        found: dict[tuple[str, str], tuple[float, float, float]] = {}
        for individual, obj in objects.items():
            assert obj.points is not None and obj.point_confidence is not None
            rows = zip(obj.point_names, obj.points.tolist(), obj.point_confidence.tolist(), strict=True)
            for name, (x, y), confidence in rows:
                is_own = name in obj.annotated_points
                if not is_own and confidence <= MIN_POINT_CONFIDENCE:
                    x = y = math.nan
                found[individual, name] = x, y, 1.0 if is_own else confidence
        missing = (math.nan,) * 3
        return [value for point in self.points for value in found.get(point, missing)]


def individuals_of(result: FrameResult, has_individuals: bool = True) -> dict[str, ObjectResult]:
    """Return the keypoints objects of a frame by the name of the individual, which is unique.

    Without individuals the first object is the single animal, "".
    """
    keypoints = [obj for obj in result.objects if obj.points is not None]
    names = [obj.name for obj in keypoints]
    found: dict[str, ObjectResult] = {}
    for obj in keypoints:
        if not (found or has_individuals):
            name = ""
        elif obj.track_id is not None:
            name = str(obj.track_id)
        else:
            name = obj.name if names.count(obj.name) == 1 and obj.name else f"{obj.name}{obj.id}"
        found[name if name not in found else f"{name}_{obj.id}"] = obj
    return found


def row_of(result: FrameResult, schema: LabelSchema) -> int | str:
    """Return the row of a frame: its image in the style of the labels, or its index."""
    frame = result.frame
    return schema.image_name(frame) if frame.file_name and schema.image_names else frame.index


def read_rows(
    columns: Sequence[tuple[str, ...]], rows: Iterable[tuple[Sequence[str], Sequence[float]]], context: ReadContext
) -> FileContent:
    """Read the points of a table, by frame.

    rows: parts of the image's path, or the index of the frame as text; and the values of the columns

    Raises ValueError for columns without points, and without any labelled point.
    """
    points = _points(columns, context)
    rows = list(rows)
    keys = [_key(parts) for parts, _ in rows]
    selected = context.select_videos(dict.fromkeys(video for video, _, _ in keys))
    has_likelihood = any("likelihood" in places for places in points.values())
    schema = _schema(columns, points)
    frames: dict[FrameKey, list[KeypointsObject]] = {}
    image_names: dict[FrameKey, str] = {}
    is_empty = True
    names: dict[tuple[str, ...], tuple[str, ...]] = {}  # one tuple for all frames, because a table may have many
    for (video, key, path), (_, values) in zip(keys, rows, strict=True):
        context.budget.check_time()
        individuals = _individuals(points, values, context, path) if video in selected else {}
        if video not in selected:
            if any(math.isfinite(value) for value in values):
                is_empty = False
                context.ignore(f"row {path!r}", "labels of another video")
            continue
        if key in frames:
            context.leave_out(f"row {path!r}", "its image has a row already")
            continue
        if isinstance(key, str):
            image_names[key] = path
        objects = []
        for individual, parts in individuals.items():
            order = names.setdefault(tuple(parts), tuple(parts))
            name = "" if _is_number(individual) else individual
            track_id = int(individual) if _is_number(individual) else individual or None
            category = schema.individuals[individual]
            coordinates = np.array(list(parts.values()), np.float32)
            objects.append(KeypointsObject(0, coordinates, order, name, track_id, category, has_likelihood))
        if objects:
            frames[key] = objects
            is_empty = False
    if is_empty and not context.notes.ignored:
        raise ValueError("no labelled point; label at least one frame")
    return FileContent(frames, LabelSchema(schema.categories, schema.scorer, image_names, schema.individuals))


_Points = dict[tuple[str, str], dict[str, int]]  # place of each coordinate among the columns, by individual and part


def _points(columns: Sequence[tuple[str, ...]], context: ReadContext) -> _Points:
    points: _Points = {}
    for place, column in enumerate(columns):
        if len(column) not in (3, 4):
            raise ValueError("columns that are not of scorer, bodyparts and coords")
        scorer, individual, part = column[0], column[1] if len(column) == 4 else "", column[-2]
        if scorer != columns[0][0]:
            context.ignore(f"column {' '.join(column)!r}", f"labels of another scorer than {columns[0][0]!r}")
            continue
        places = points.setdefault((individual, part), {})
        if column[-1] in places:
            context.leave_out(f"column {' '.join(column)!r}", "it is in the table twice")
        elif column[-1] in COORDINATES:
            places[column[-1]] = place
        else:
            context.ignore(f"column {' '.join(column)!r}", "only x, y and likelihood have a meaning here")
    points = {point: places for point, places in points.items() if "x" in places and "y" in places}
    if not points:
        raise ValueError("no columns x and y")
    return points


def _schema(columns: Sequence[tuple[str, ...]], points: _Points) -> LabelSchema:
    parts: dict[str, dict[str, None]] = {}
    individuals: dict[str, str] = {}
    for individual, part in points:
        individuals[individual] = UNIQUE if individual == UNIQUE else ANIMAL
        parts.setdefault(individuals[individual], {})[part] = None
    categories = tuple(Category(name, point_names=tuple(names)) for name, names in parts.items())
    return LabelSchema(categories, columns[0][0], individuals=individuals)


def _individuals(
    points: _Points, values: Sequence[float], context: ReadContext, row: str
) -> Mapping[str, Mapping[str, tuple[float, float]]]:
    """Return the labelled points of a row by individual."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for (individual, part), places in points.items():
        x, y = values[places["x"]], values[places["y"]]
        likelihood = values[places["likelihood"]] if "likelihood" in places else 1.0
        if not (math.isfinite(x) and math.isfinite(y)):
            if math.isfinite(x) or math.isfinite(y) or math.isinf(x) or math.isinf(y):
                context.leave_out(_label(row, individual, part), "its place is not two numbers")
        elif likelihood < context.min_score:
            context.ignore(_label(row, individual, part), f"its likelihood is under {context.min_score:g}")
        else:
            found.setdefault(individual, {})[part] = x, y
    return found


def _label(row: str, individual: str, part: str) -> str:
    return f"frame {row!r}, " + (f"object {individual!r}, " if individual else "") + f"point {part!r}"


def _key(parts: Sequence[str]) -> tuple[str, FrameKey, str]:
    """Return the video, the key and the path of a row; the video is the image's folder, "" for none."""
    text = "/".join(part.strip().replace("\\", "/") for part in parts if part.strip())
    path = PurePosixPath(text)
    if _is_number(text):
        return "", int(text), text
    if text.endswith(".0") and _is_number(text[:-2]):  # pandas stores indices with gaps as fractions
        return "", int(text[:-2]), text
    folder = str(path.parent)
    name = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    return "" if folder == "." else folder, name, text


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16
