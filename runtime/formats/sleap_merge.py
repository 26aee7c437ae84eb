"""Results of several videos in one SLEAP project: a copy of the user's file with new predictions.

The user's instances, videos, skeletons, tracks and suggestions stay as they are. On the videos with results, older
predictions give way; a frame where the user has labelled an animal gets no prediction of it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.atomic_files import AtomicFile, write_errors
from corrflow.errors import InputError
from corrflow.runtime.formats.deeplabcut_h5 import import_h5py
from corrflow.runtime.formats.sleap import write_texts
from corrflow.runtime.formats.sleap_file import PREDICTED, USER, SleapFile, open_sleap

_MARK = "corrflow"
_KEPT = re.compile(
    r"metadata|videos_json|tracks_json|suggestions_json|provenance_json|negative_frames|video_crops|video[0-9]+"
)
"""Parts of a file that do not refer to the numbers of instances."""
_TABLES = ("frames", "instances", "points", "pred_points")


def merge_sleap(project: Path, results: Mapping[int, Path], target: Path) -> list[str]:
    """Write a copy of a project with the results of its videos, and return the names of parts that are not in it.

    results: file of results by the number of the video in the project

    Raises InputError where the target is not to be replaced or a file cannot be read, CorrflowError where the disk is
    full.
    """
    h5py = import_h5py(target)
    check_sleap_target(project, target)
    try:
        merge = _Merge.of(open_sleap(project), {number: open_sleap(path) for number, path in results.items()})
        with write_errors(target), AtomicFile(target) as part:
            shutil.copyfile(project, part)
            with h5py.File(part, "r+", locking=False) as file:
                dropped = [name for name in file if not _KEPT.fullmatch(name) and name not in _TABLES]
                lost = [name for name in dropped if not hasattr(file[name], "shape") or file[name].size]
                types = {name: file[name].dtype for name in _TABLES}
                for name in (*dropped, *_TABLES, *(("tracks_json",) if "tracks_json" in file else ())):
                    del file[name]
                for name in _TABLES:
                    file.create_dataset(name, data=merge.table(name, types[name]))
                write_texts(file, "tracks_json", [json.dumps([0, name]) for name in merge.tracks])
                file.attrs[_MARK] = "1"
            return lost
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"expected SLEAP files in {str(project)!r} and the results, got one that cannot be read "
            f"({type(error).__name__}: {error})"
        ) from error


def check_sleap_target(project: Path, target: Path) -> None:
    """Raise InputError where a merged file would replace a file of the user."""
    if not target.exists():
        return
    try:
        with import_h5py(target).File(target, "r") as file:
            is_own = _MARK in file.attrs
    except OSError:
        is_own = False
    if not is_own or target.resolve() == project.resolve():
        raise InputError(f"expected to write {str(target)!r}, got a file there that is not of corrflow; move it away")


@dataclass
class _Merge:
    """Rows of the tables of the merged file.

    shift: pixels to add to coordinates of results, for the files of old versions
    """

    tracks: list[str]
    shift: float
    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=lambda: {name: [] for name in _TABLES})

    @classmethod
    def of(cls, project: SleapFile, results: Mapping[int, SleapFile]) -> _Merge:
        merge = cls(list(project.tracks), project.shift)
        frames: dict[tuple[int, int], list[tuple[SleapFile, Any]]] = {}
        labelled: dict[tuple[int, int], set[str]] = {}
        for row in project.tables["frames"]:
            key = int(row["video"]), int(row["frame_idx"])
            instances = _instances(project, row)
            kept = [one for one in instances if key[0] not in results or one["instance_type"] == USER]
            if len(instances) and not kept:
                continue
            frames.setdefault(key, []).extend((project, one) for one in kept)
            labelled.setdefault(key, set()).update(_track(project, one) for one in kept)
        for number, result in results.items():
            for row in result.tables["frames"]:
                key = number, int(row["frame_idx"])
                for one in _instances(result, row):
                    if one["instance_type"] == PREDICTED and _track(result, one) not in labelled.get(key, ()):
                        frames.setdefault(key, []).append((result, one))
        skeletons = {id(file): _skeletons(file, project) for file in (project, *results.values())}
        for key, instances in sorted(frames.items(), key=lambda item: item[0]):
            merge._add_frame(key, instances, project, skeletons)
        return merge

    def _add_frame(
        self, key: tuple[int, int], instances: list[tuple[SleapFile, Any]], project: SleapFile,
        skeletons: Mapping[int, list[int]],
    ) -> None:  # fmt: skip
        start = len(self.rows["instances"])
        for file, one in instances:
            table = "points" if one["instance_type"] == USER else "pred_points"
            points = file.tables[table][int(one["point_id_start"]) : int(one["point_id_end"])].copy()
            if file is not project:
                points["x"] += self.shift
                points["y"] += self.shift
            first = len(self.rows[table])
            self.rows[table] += points.tolist()
            track = int(one["track"]) if file is project else self._track_number(_track(file, one))
            fields = {
                "instance_id": len(self.rows["instances"]),
                "instance_type": int(one["instance_type"]),
                "frame_id": len(self.rows["frames"]),
                "skeleton": skeletons[id(file)][int(one["skeleton"])],
                "track": track,
                "from_predicted": -1,
                "score": float(one["score"]),
                "point_id_start": first,
                "point_id_end": len(self.rows[table]),
                "tracking_score": float(one["tracking_score"]) if "tracking_score" in one.dtype.names else 0.0,
            }
            self.rows["instances"].append(tuple(fields.values()))
        self.rows["frames"].append((len(self.rows["frames"]), *key, start, len(self.rows["instances"])))

    def _track_number(self, name: str) -> int:
        if not name:
            return -1
        if name not in self.tracks:
            self.tracks.append(name)
        return self.tracks.index(name)

    def table(self, name: str, dtype: np.dtype) -> np.ndarray:
        """Return the rows of a table with the types of the project's file, which older versions have fewer of."""
        if dtype.names is None:
            raise ValueError(f"{name} without named columns")
        return np.array([row[: len(dtype.names)] for row in self.rows[name]], dtype)


def _instances(file: SleapFile, frame: Any) -> np.ndarray:
    return file.tables["instances"][int(frame["instance_id_start"]) : int(frame["instance_id_end"])]


def _track(file: SleapFile, instance: Any) -> str:
    number = int(instance["track"])
    return file.tracks[number] if 0 <= number < len(file.tracks) else ""


def _skeletons(file: SleapFile, project: SleapFile) -> list[int]:
    """Return the number in the project of each skeleton of a file. Raises ValueError for one that it has not."""
    if file is project:
        return list(range(len(file.skeletons)))
    numbers = []
    for one in file.skeletons:
        alike = [k for k, other in enumerate(project.skeletons) if other.point_names == one.point_names]
        named = [k for k in alike if project.skeletons[k].name == one.name]
        if not alike:
            raise ValueError(f"the skeleton {one.name!r}, which the project has not")
        numbers.append((named or alike)[0])
    return numbers
