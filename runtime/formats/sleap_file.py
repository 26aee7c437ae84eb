"""Parts of SLEAP's .slp, which is HDF5: tables of frames, instances and points; skeletons, tracks and videos as JSON.

In SLEAP 1.2 and later, (0, 0) is the centre of the top-left pixel. Points of older files are shifted by half a pixel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.file_budget import FileBudget
from corrflow.runtime.formats.deeplabcut_h5 import import_h5py, read_array
from corrflow.runtime.formats.hdf5_check import check_hdf5
from corrflow.runtime.formats.label_schema import Category

FRAME = np.dtype(
    [
        ("frame_id", "<u8"),
        ("video", "<u4"),
        ("frame_idx", "<u8"),
        ("instance_id_start", "<u8"),
        ("instance_id_end", "<u8"),
    ]
)
INSTANCE = np.dtype(
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
POINT = np.dtype([("x", "<f8"), ("y", "<f8"), ("visible", "?"), ("complete", "?")])
PREDICTED_POINT = np.dtype([*POINT.descr, ("score", "<f8")])
USER, PREDICTED = 0, 1
"""Types of instances."""

OTHER_LABELS = ("rois", "masks", "bboxes", "centroids", "label_images", "events")
"""Labels of newer files that are no skeletons."""

_EDGE, _SYMMETRY = 1, 2
_MAX_NODES, _MAX_SKELETONS = 2000, 200


@dataclass(frozen=True)
class SleapVideo:
    """Video of a file.

    number: its number in the table of frames
    path:   path of the film, or of its first image; "" for one that is only embedded in the file
    images: paths of its images; empty for a film
    entry:  its entry as JSON, with the film that embedded frames are from; "" without one
    """

    number: int
    path: str
    images: tuple[str, ...]
    entry: str


@dataclass(frozen=True)
class SleapFile:
    """Content of a file.

    skeletons: by their number in the table of instances; categories of the same name are one
    tracks:    names by their number
    tables:    frames, instances, points and pred_points
    shift:     pixels to subtract from coordinates
    negative:  (number of the video, frame) without any animal
    others:    names of the labels that are no skeletons
    """

    skeletons: tuple[Category, ...]
    tracks: tuple[str, ...]
    videos: tuple[SleapVideo, ...]
    tables: Mapping[str, np.ndarray]
    shift: float
    negative: tuple[tuple[int, int], ...]
    others: tuple[str, ...]


def open_sleap(path: Path, budget: FileBudget | None = None) -> SleapFile:
    """Read a file. Raises plain exceptions of damage, and InputError where h5py is missing."""
    h5py = import_h5py(path)
    budget = budget or FileBudget.of(path)
    check_hdf5(path)
    with h5py.File(path, "r") as file:
        metadata = json.loads(text_of(file["metadata"].attrs["json"]))
        version = float(file["metadata"].attrs.get("format_id", 1.1))
        if version >= 3:
            raise ValueError(f"format {version:g}, of which nothing is known")
        tables = {name: read_array(file[name], budget) for name in ("frames", "instances", "points", "pred_points")}
        frames, instances = tables["frames"], tables["instances"]
        _check_ranges(frames["instance_id_start"], frames["instance_id_end"], len(instances))
        points = len(tables["points"]) + len(tables["pred_points"])
        _check_ranges(instances["point_id_start"], instances["point_id_end"], points)
        negative = read_array(file["negative_frames"], budget) if "negative_frames" in file else ()
        return SleapFile(
            decode_skeletons(metadata),
            tuple(str(json.loads(text)[1]) for text in _texts(file, "tracks_json", budget)),
            tuple(
                _video(file, number, json.loads(text))
                for number, text in enumerate(_texts(file, "videos_json", budget))
            ),
            tables,
            0.5 if version < 1.1 else 0.0,
            tuple((int(row["video_id"]), int(row["frame_idx"])) for row in negative),
            tuple(
                name
                for name in OTHER_LABELS
                if name in file and (file[name].shape if hasattr(file[name], "shape") else (1,))[0]
            ),
        )


def text_of(value: Any) -> str:
    """Return the text of an attribute or of a cell, which may be bytes."""
    value = value.tobytes() if isinstance(value, np.ndarray | np.void) else value
    return bytes(value).decode() if isinstance(value, bytes) else str(value)


def _texts(file: Any, name: str, budget: FileBudget) -> list[str]:
    return [text_of(text) for text in read_array(file[name], budget)] if name in file else []


def _check_ranges(starts: np.ndarray, ends: np.ndarray, count: int) -> None:
    """Raise ValueError for ranges that overlap, because a small file may state any number of them."""
    lengths = ends.astype(np.float64) - starts.astype(np.float64)
    if lengths.clip(0).sum() > count:
        raise ValueError("tables that do not fit each other")


def _video(file: Any, number: int, entry: dict[str, Any]) -> SleapVideo:
    dataset = str((entry.get("backend") or {}).get("dataset") or "")
    group = dataset.partition("/")[0]
    if group.startswith("video") and group.removeprefix("video").isdigit():
        number = int(group.removeprefix("video"))
    paths, is_film = _paths(entry)
    if paths[0] in (".", ""):
        source = file.get(f"{group}/source_video")
        if source is None:
            return SleapVideo(number, "", (), "")
        entry = json.loads(text_of(source["json"][()] if "json" in source else source.attrs["json"]))
        paths, is_film = _paths(entry)
    return SleapVideo(number, paths[0], () if is_film else paths, json.dumps(entry))


def _paths(entry: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Return the path of a video, or the paths of its images; and True for a film."""
    backend = entry.get("backend") or {}
    listed = backend.get("filenames") or backend.get("filename") or entry.get("filename") or ""
    if isinstance(listed, list):
        return tuple(str(one) for one in listed) or ("",), False
    return (str(listed),), True


def decode_skeletons(metadata: Mapping[str, Any]) -> tuple[Category, ...]:
    """Return the skeletons of a file's metadata; a name that several different skeletons have gets a number."""
    nodes = [str(node["name"] if isinstance(node, dict) else node) for node in metadata["nodes"]]
    if len(nodes) > _MAX_NODES or len(metadata["skeletons"]) > _MAX_SKELETONS:
        raise ValueError(f"{len(nodes)} nodes of {len(metadata['skeletons'])} skeletons")
    found: list[Category] = []
    for entry in metadata["skeletons"]:
        graph = entry.get("nx_graph", entry)
        order = [int(node["id"]) for node in graph["nodes"]]
        if max(len(order), len(graph["links"])) > _MAX_NODES:
            raise ValueError(f"a skeleton of {len(order)} nodes and {len(graph['links'])} edges")
        links: dict[int, list[tuple[int, int]]] = {_EDGE: [], _SYMMETRY: []}
        kinds: list[int] = []  # in the order of their first mention, as jsonpickle numbers them
        for link in graph["links"]:
            kind = link.get("type") or {}
            if "py/reduce" in kind:
                kinds.append(int(kind["py/reduce"][1]["py/tuple"][0]))
                value = kinds[-1]
            else:
                number = int(kind.get("py/id", 1))
                value = kinds[number - 1] if 1 <= number <= len(kinds) else number
            pair = order.index(int(link["source"])), order.index(int(link["target"]))
            if value == _EDGE or (pair not in links[_SYMMETRY] and pair[::-1] not in links[_SYMMETRY]):
                links.setdefault(value, []).append(pair)
        name = str(graph["graph"].get("name") or "skeleton")
        points = tuple(nodes[index] for index in order)
        one = Category(name, None, points, tuple(links[_EDGE]), symmetries=tuple(links[_SYMMETRY]))
        number = 1
        while any(other.name == one.name and other.point_names != points for other in found):
            number += 1
            one = Category(f"{name} {number}", None, points, one.edges, symmetries=one.symmetries)
        found.append(one)
    return tuple(found)


def encode_metadata(skeletons: Sequence[Category]) -> str:
    """Return the metadata of a file with these skeletons, as JSON."""
    nodes: list[str] = []
    entries = []
    for one in skeletons:
        start = len(nodes)
        nodes += one.point_names
        links = [
            {"edge_insert_idx": k, "key": 0, "source": start + a, "target": start + b, "type": _link_type(_EDGE, k, 1)}
            for k, (a, b) in enumerate(one.edges)
        ]
        second = 2 if one.edges else 1
        links += [
            {"key": 0, "source": start + a, "target": start + b, "type": _link_type(_SYMMETRY, k, second)}
            for k, (a, b) in enumerate(one.symmetries)
        ]
        entries.append(
            {
                "directed": True,
                "graph": {"name": one.name, "num_edges_inserted": len(one.edges)},
                "links": links,
                "multigraph": True,
                "nodes": [{"id": start + k} for k in range(len(one.point_names))],
            }
        )
    content = {
        "version": "2.0.0",
        "skeletons": entries,
        "nodes": [{"name": name, "weight": 1.0} for name in nodes],
        "videos": [],
        "tracks": [],
        "suggestions": [],
        "negative_anchors": {},
        "provenance": {},
    }
    return json.dumps(content)


def _link_type(kind: int, position: int, number: int) -> dict[str, Any]:
    """Return the type of a link: written out at its first mention, then by the number of that mention."""
    if position:
        return {"py/id": number}
    return {"py/reduce": [{"py/type": "sleap.skeleton.EdgeType"}, {"py/tuple": [kind]}]}
