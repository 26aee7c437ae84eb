"""SLEAP's .slp, which is HDF5: points of objects as instances of tracks, each with its skeleton.

SLEAP 1.2 and later put (0, 0) on the centre of the top-left pixel, as here; older files are half a pixel off, which is
taken away.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.atomic_files import finish, part_of, prepare_place, write_failed
from corrflow.errors import InputError
from corrflow.runtime.formats.base import Sink
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
_CACHE = 1 << 16  # bytes for each table, in place of a mebibyte, which fills up as a video goes on


class SleapSink(Sink):
    """Predicted instances of every frame, appended as they come."""

    def __init__(self, path: str | Path, video: str) -> None:
        """video: what the file calls the video. Raises InputError where it cannot be written or h5py is missing."""
        self._path, self._video = Path(path), video
        prepare_place(self._path)
        self._file = _h5py(self._path).File(part_of(self._path), "w", rdcc_nbytes=_CACHE)
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
        for track in result.objects:
            if track.points is None or track.point_confidence is None:
                continue
            self._objects.setdefault(track.id, (track.name or str(track.id), track.point_names))
            number = list(self._objects).index(track.id)
            start = points + len(new_points)
            for (x, y), confidence in zip(track.points.tolist(), track.point_confidence.tolist(), strict=True):
                new_points.append((x, y, True, False, confidence))
            end = points + len(new_points)
            identity = instances + len(new_instances)
            score = track.confidence
            new_instances.append((identity, _PREDICTED, frames, number, number, -1, score, start, end, score))
        row = (frames, 0, result.frame.index, instances, instances + len(new_instances))
        try:
            for name, rows in (("frames", [row]), ("instances", new_instances), ("pred_points", new_points)):
                table = self._tables[name]
                table.resize((len(table) + len(rows),))
                if rows:
                    table[-len(rows) :] = np.array(rows, table.dtype)
        except OSError as error:
            raise write_failed(self._path, error) from None

    def close(self) -> None:
        if not self._file:
            return
        try:
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
                dataset = self._file.create_dataset(name, (len(texts),), _h5py(self._path).string_dtype())
                for index, text in enumerate(texts):
                    dataset[index] = text
            self._file.close()
            finish(self._path, keep=bool(objects))
        except OSError as error:
            raise write_failed(self._path, error) from None


def read_sleap(path: Path) -> dict[int | str, list[KeypointsObject]]:
    """The objects by the index of their frame: what people placed, or if nothing, what was predicted.

    An instance without a track is called by its skeleton. Raises InputError for what cannot be read, and for labels on
    several videos.
    """
    h5py = _h5py(path)
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
            raise InputError(f"expected labels of one video in {path}, got several; save each for itself")
        instances = tables["instances"]
        kind = 0 if (instances["instance_type"] == 0).any() else _PREDICTED
        found: dict[int | str, list[KeypointsObject]] = {}
        for frame in tables["frames"]:
            objects = []
            for entry in instances[int(frame["instance_id_start"]) : int(frame["instance_id_end"])]:
                if entry["instance_type"] != kind:
                    continue
                points = tables["pred_points" if kind else "points"]
                points = points[int(entry["point_id_start"]) : int(entry["point_id_end"])]
                skeleton, names = skeletons[int(entry["skeleton"])]
                places = np.stack([points["x"], points["y"]], 1) - shift
                seen = np.flatnonzero(np.isfinite(places).all(1) & points["visible"]).tolist()
                name = tracks[int(entry["track"])] if entry["track"] >= 0 else skeleton
                number = int(name) if name.isascii() and name.isdigit() and len(name) < 4 else 0
                identity = number if 0 < number < 256 else 0
                if seen:
                    chosen = tuple(names[index] for index in seen)
                    own = places[seen].astype(np.float32)
                    objects.append(KeypointsObject(identity, own, chosen, "" if identity else name))
            if objects:
                found.setdefault(int(frame["frame_idx"]), []).extend(objects)
        if not found:
            raise InputError(f"expected labelled points in {path}, got none; label at least one frame")
        return found
    # h5py reports damage with many plain exceptions.
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"expected SLEAP labels in {path}, got a file that cannot be read ({type(error).__name__}); save it again"
        ) from error


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"expected h5py for {path}, found none; pip install 'corrflow[formats]'") from error
    return h5py
