"""SLEAP's .slp, which is HDF5: points as instances of tracks, each with its skeleton.

In SLEAP 1.2 and later, (0, 0) is the centre of the top-left pixel. Points of older files are shifted by half a pixel.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.errors import InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.deeplabcut_h5 import import_h5py
from corrflow.runtime.types import FrameResult, KeypointsObject

_FRAME = np.dtype(
    [
        ("frame_id", "<u8"),
        ("video", "<u4"),
        ("frame_idx", "<u8"),
        ("instance_id_start", "<u8"),
        ("instance_id_end", "<u8"),
    ]
)
_INSTANCE = np.dtype(
    [
        ("instance_id", "<i8"),
        ("instance_type", "u1"),
        ("frame_id", "<u8"),
        ("skeleton", "<u4"),
        ("track", "<i4"),
        ("from_predicted", "<i8"),
        ("score", "<f4"),
        ("point_id_start", "<u8"),
        ("point_id_end", "<u8"),
        ("tracking_score", "<f4"),
    ]
)
_POINT = np.dtype([("x", "<f8"), ("y", "<f8"), ("visible", "?"), ("complete", "?")])
_PREDICTED_POINT = np.dtype([*_POINT.descr, ("score", "<f8")])
_PREDICTED = 1
_CACHE = 1 << 16  # bytes for each table; HDF5's default of a mebibyte grows with the video


class SleapSink(Sink):
    """Writer of the points of every frame as predicted instances."""

    def __init__(self, path: str | Path, video: str) -> None:
        """Create the file.

        video: name of the video in the file

        Raises InputError where the path cannot be written to, or h5py is missing.
        """
        self._path, self._video = Path(path), video
        check_writable(self._path)
        self._h5py = import_h5py(self._path)
        self._output = AtomicFile(self._path, exclusive=True)
        self._file = self._h5py.File(self._output.part, "w", rdcc_nbytes=_CACHE)
        self._tables = {
            name: self._file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1024,))
            for name, dtype in (("frames", _FRAME), ("instances", _INSTANCE), ("pred_points", _PREDICTED_POINT))
        }
        self._file.create_dataset("points", (0,), _POINT)
        self._objects: dict[int, tuple[str, tuple[str, ...]]] = {}

    def write(self, result: FrameResult) -> None:
        frames, instances, points = (len(self._tables[name]) for name in ("frames", "instances", "pred_points"))
        new_instances: list[tuple[Any, ...]] = []
        new_points: list[tuple[Any, ...]] = []
        for obj in result.objects:
            if obj.points is None or obj.point_confidence is None:
                continue
            self._objects.setdefault(obj.id, (obj.name or str(obj.id), obj.point_names))
            number = list(self._objects).index(obj.id)
            start = points + len(new_points)
            for (x, y), confidence in zip(obj.points.tolist(), obj.point_confidence.tolist(), strict=True):
                new_points.append((x, y, True, False, confidence))
            end = points + len(new_points)
            identity = instances + len(new_instances)
            score = obj.confidence
            new_instances.append((identity, _PREDICTED, frames, number, number, -1, score, start, end, score))
        row = (frames, 0, result.frame.index, instances, instances + len(new_instances))
        with write_errors(self._path):
            for name, rows in (("frames", [row]), ("instances", new_instances), ("pred_points", new_points)):
                table = self._tables[name]
                table.resize((len(table) + len(rows),))
                if rows:
                    table[-len(rows) :] = np.array(rows, table.dtype)

    def close(self) -> None:
        if not self._file:
            return
        with write_errors(self._path):
            objects = list(self._objects.values())
            names = list(dict.fromkeys(name for _, points in objects for name in points))
            skeletons = [
                {
                    "directed": True,
                    "graph": {"name": name, "num_edges_inserted": 0},
                    "links": [],
                    "multigraph": True,
                    "nodes": [{"id": names.index(point)} for point in points],
                }
                for name, points in objects
            ]
            content = {
                "version": "2.0.0",
                "skeletons": skeletons,
                "nodes": [{"name": name, "weight": 1.0} for name in names],
                "videos": [],
                "tracks": [],
                "suggestions": [],
                "negative_anchors": {},
                "provenance": {},
            }
            metadata = self._file.create_group("metadata")
            metadata.attrs["format_id"] = 1.4
            metadata.attrs["json"] = np.bytes_(json.dumps(content).encode())
            video = {"filename": self._video, "backend": {"filename": self._video}}
            tracks = [json.dumps([0, name]) for name, _ in objects]
            for name, texts in (
                ("videos_json", [json.dumps(video)]),
                ("tracks_json", tracks),
                ("suggestions_json", []),
            ):
                dataset = self._file.create_dataset(name, (len(texts),), self._h5py.string_dtype())
                for index, text in enumerate(texts):
                    dataset[index] = text
            self._file.close()
            self._output.finish(keep=bool(objects))


def read_sleap(path: Path) -> dict[int | str, list[KeypointsObject]]:
    """Read the objects by the index of their frame: the labels, or the predictions of a file without labels.

    An instance without a track has the name of its skeleton. Raises InputError, also for labels of several videos.
    """
    h5py = import_h5py(path)
    try:
        with h5py.File(path, "r") as file:
            metadata = json.loads(bytes(file["metadata"].attrs["json"]))
            shift = 0.5 if float(file["metadata"].attrs["format_id"]) < 1.1 else 0.0
            tracks = [str(json.loads(text)[1]) for text in file["tracks_json"]] if "tracks_json" in file else []
            nodes = [str(node["name"] if isinstance(node, dict) else node) for node in metadata["nodes"]]
            skeletons = [
                (str(entry["graph"].get("name") or ""), [nodes[node["id"]] for node in entry["nodes"]])
                for entry in metadata["skeletons"]
            ]
            tables = {name: file[name][()] for name in ("frames", "instances", "points", "pred_points")}
        if len(np.unique(tables["frames"]["video"])) > 1:
            raise InputError(f"expected labels of one video in {path}, got several; save each video on its own")
        instances = tables["instances"]
        kind = 0 if (instances["instance_type"] == 0).any() else _PREDICTED
        by_frame: dict[int | str, list[KeypointsObject]] = {}
        for frame in tables["frames"]:
            objects = []
            for entry in instances[int(frame["instance_id_start"]) : int(frame["instance_id_end"])]:
                if entry["instance_type"] != kind:
                    continue
                points = tables["pred_points" if kind else "points"]
                points = points[int(entry["point_id_start"]) : int(entry["point_id_end"])]
                skeleton, names = skeletons[int(entry["skeleton"])]
                coordinates = np.stack([points["x"], points["y"]], 1) - shift
                visible = np.flatnonzero(np.isfinite(coordinates).all(1) & points["visible"]).tolist()
                name = tracks[int(entry["track"])] if entry["track"] >= 0 else skeleton
                number = int(name) if name.isascii() and name.isdigit() and len(name) < 4 else 0
                identity = number if 0 < number < 256 else 0
                if visible:
                    chosen = tuple(names[index] for index in visible)
                    selected = coordinates[visible].astype(np.float32)
                    objects.append(KeypointsObject(identity, selected, chosen, "" if identity else name))
            if objects:
                by_frame.setdefault(int(frame["frame_idx"]), []).extend(objects)
        if not by_frame:
            raise InputError(f"expected labelled points in {path}, got none; label at least one frame")
        return by_frame
    # h5py reports damage with many plain exceptions.
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"expected SLEAP labels in {path}, got a file that cannot be read ({type(error).__name__}); save it again"
        ) from error
