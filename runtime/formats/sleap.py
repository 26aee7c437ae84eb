"""Writer of SLEAP's .slp: the user's instances as they were, and predicted ones on the other frames."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.deeplabcut_h5 import import_h5py
from corrflow.runtime.formats.label_schema import EMPTY_SCHEMA, Category, LabelSchema
from corrflow.runtime.formats.sleap_file import (
    FRAME,
    INSTANCE,
    POINT,
    PREDICTED,
    PREDICTED_POINT,
    USER,
    encode_metadata,
)
from corrflow.runtime.types import MIN_POINT_CONFIDENCE, FrameResult, ObjectResult
from corrflow.runtime.video.suffixes import IMAGE_SUFFIXES

_CACHE = 1 << 16  # bytes for each table; HDF5's default of a mebibyte grows with the video
_UNNAMED = "skeleton"


class SleapSink(Sink):
    """Writer of the points of every frame.

    Where points are the user's own label, they are an instance of the user without others. Elsewhere instances are
    predicted; their points that are not visible are NaN, and an object without a visible point has no instance.
    """

    def __init__(self, path: str | Path, video: str | Sequence[str], schema: LabelSchema = EMPTY_SCHEMA) -> None:
        """Create the file.

        video: path of the video, or paths of its images, unless the schema has SLEAP's own entry

        Raises InputError where the path cannot be written to, or h5py is missing.
        """
        self._path, self._schema = Path(path), schema
        self._video = schema.video or _entry([video] if isinstance(video, str) else video)
        check_writable(self._path)
        self._h5py = import_h5py(self._path)
        self._output = AtomicFile(self._path)
        self._file = self._h5py.File(self._output.part, "w", rdcc_nbytes=_CACHE, locking=False)
        self._tables = {
            name: self._file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1024,))
            for name, dtype in (
                ("frames", FRAME), ("instances", INSTANCE), ("points", POINT), ("pred_points", PREDICTED_POINT)
            )
        }  # fmt: skip
        self._skeletons = [one for one in schema.categories if one.point_names]
        self._categories = [one.name for one in self._skeletons]  # of the objects with that skeleton
        self._tracks: dict[int, str] = {}

    def write(self, result: FrameResult) -> None:
        objects = [obj for obj in result.objects if obj.points is not None]
        self._add_skeletons(objects)
        for obj in objects:
            if obj.id not in self._tracks:
                self._tracks[obj.id] = self._track_name(obj)
        tracks = {identity: number for number, identity in enumerate(self._tracks)}
        new: dict[str, list[tuple[Any, ...]]] = {name: [] for name in self._tables}
        start = {name: len(table) for name, table in self._tables.items()}
        for obj in objects:
            is_user = bool(obj.annotated_points)
            if not (is_user or obj.visible):
                continue
            number = self._skeleton_of(obj)
            table = "points" if is_user else "pred_points"
            first = start[table] + len(new[table])
            new[table] += _points(obj, self._skeletons[number], is_user)
            identity = start["instances"] + len(new["instances"])
            end, score = start[table] + len(new[table]), 0.0 if is_user else obj.confidence
            kind = USER if is_user else PREDICTED
            new["instances"].append(
                (identity, kind, start["frames"], number, tracks[obj.id], -1, score, first, end, score)
            )
        if new["instances"]:
            end = start["instances"] + len(new["instances"])
            new["frames"].append((start["frames"], 0, result.frame.index, start["instances"], end))
        with write_errors(self._path):
            for name, rows in new.items():
                append_rows(self._tables[name], rows)

    def _add_skeletons(self, objects: Sequence[ObjectResult]) -> None:
        """Add one skeleton for each category whose points none has."""
        missing: dict[str, dict[str, None]] = {}
        for obj in objects:
            if self._skeleton_of(obj) < 0:
                missing.setdefault(obj.category, {}).update(dict.fromkeys(obj.point_names))
        for category, names in missing.items():
            count = self._categories.count(category)
            known = self._schema.category(category) or Category(category or _UNNAMED)
            points = (*known.point_names, *(one for one in names if one not in known.point_names))
            name = f"{known.name} {count + 1}" if count else known.name
            self._skeletons.append(replace(known, name=name, point_names=points))
            self._categories.append(category)

    def _skeleton_of(self, obj: ObjectResult) -> int:
        """Return the number of an object's skeleton, or -1."""
        for number, (category, one) in enumerate(zip(self._categories, self._skeletons, strict=True)):
            if category == obj.category and set(obj.point_names) <= set(one.point_names):
                return number
        return -1

    def _track_name(self, obj: ObjectResult) -> str:
        name = str(obj.track_id) if obj.track_id is not None else obj.name or str(obj.id)
        return f"{name} {obj.id}" if name in self._tracks.values() else name

    def close(self) -> None:
        if not self._file:
            return
        try:
            with write_errors(self._path):
                write_texts(self._file, "videos_json", [self._video])
                write_texts(self._file, "tracks_json", [json.dumps([0, name]) for name in self._tracks.values()])
                write_texts(self._file, "suggestions_json", [])
                metadata = self._file.create_group("metadata")
                metadata.attrs["format_id"] = 1.4
                metadata.attrs["json"] = np.bytes_(encode_metadata(self._skeletons).encode())
                self._file.close()
                self._output.finish(keep=bool(self._tracks))
        finally:
            self._output.finish(keep=False)


def _entry(paths: Sequence[str]) -> str:
    """Return SLEAP's entry of a film, or of images."""
    if PurePath(paths[0]).suffix.lower() not in IMAGE_SUFFIXES:
        return json.dumps({"filename": paths[0], "backend": {"type": "MediaVideo", "filename": paths[0]}})
    backend = {"type": "ImageVideo", "filename": paths[0], "filenames": list(paths)}
    return json.dumps({"filename": paths[0], "backend": backend})


def _points(obj: ObjectResult, skeleton: Category, is_user: bool) -> list[tuple[Any, ...]]:
    """Return the rows of an instance's points in the order of its skeleton."""
    assert obj.points is not None and obj.point_confidence is not None
    found = {
        name: (x, y, confidence)
        for name, (x, y), confidence in zip(
            obj.point_names, obj.points.tolist(), obj.point_confidence.tolist(), strict=True
        )
        if (name in obj.annotated_points if is_user else confidence > MIN_POINT_CONFIDENCE)
    }
    confidences = dict(zip(obj.point_names, obj.point_confidence.tolist(), strict=True))
    rows = []
    for name in skeleton.point_names:
        x, y, score = found.get(name, (math.nan, math.nan, confidences.get(name, 0.0)))
        row = x, y, name in found, False
        rows.append(row if is_user else (*row, score))
    return rows


def append_rows(table: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    """Add rows to a table of a file."""
    if rows:
        table.resize((len(table) + len(rows),))
        table[-len(rows) :] = np.array(rows, table.dtype)


def write_texts(file: Any, name: str, texts: Sequence[str]) -> None:
    """Write a list of texts, such as JSON."""
    import h5py

    dataset = file.create_dataset(name, (len(texts),), h5py.string_dtype())
    for index, text in enumerate(texts):
        dataset[index] = text
