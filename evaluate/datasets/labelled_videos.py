"""Videos with labelled points, from label files of any readable format or from arrays.

Arrays are an .npz file without pickles, of one of two layouts:

xy, nodes                xy [T, A, P, 2] pixels for T frames, A animals and P points, NaN where a point is not visible;
                         nodes [P] text
points, occluded, names  TAP-Vid's arrays: points [N, T, 2] from 0 to 1, occluded [N, T] bool, names [N] "object/point"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corrflow.errors import InputError
from corrflow.file_budget import FileBudget
from corrflow.runtime.formats.annotations import Annotations, ReadContext
from corrflow.runtime.formats.registry import read_annotations
from corrflow.runtime.types import AbsentObject, KeypointsObject
from corrflow.runtime.video.open_source import open_source

MAX_OBJECTS = 255
_Labels = dict[tuple[str, str], dict[int, tuple[float, float]]]  # by object and point, then by frame


@dataclass(frozen=True)
class LabelledVideo:
    """Video with the true points of some frames.

    source:     path of the video, as for `open_source`
    names:      object and point of each of K points; the points of an object follow each other
    frames:     indices of the L labelled frames, ascending
    points:     [L, K, 2] float64, (x, y) in pixels, (0, 0) the centre of the top-left pixel; NaN where not visible
    is_labelled: [L, K] bool: False where the labels say nothing about the point's object
    notes:      labels that were left out
    """

    name: str
    source: str
    names: tuple[tuple[str, str], ...]
    frames: tuple[int, ...]
    points: np.ndarray
    is_labelled: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def objects(self) -> dict[str, list[int]]:
        """Indices of the points of each object, by the object's name."""
        groups: dict[str, list[int]] = {}
        for index, (name, _) in enumerate(self.names):
            groups.setdefault(name, []).append(index)
        return groups

    @property
    def is_visible(self) -> np.ndarray:
        """[L, K] bool: True where a point has a true position."""
        return np.isfinite(self.points).min(-1)

    def prompts(self, row: int) -> list[KeypointsObject]:
        """Return the visible points of a labelled frame as objects to track; their ids count the video's objects."""
        prompts, visible = [], self.is_visible[row]
        for number, (name, indices) in enumerate(self.objects.items(), 1):
            if shown := [k for k in indices if visible[k]]:
                names = tuple(self.names[k][1] for k in shown)
                prompts.append(KeypointsObject(number, self.points[row, shown].astype(np.float32), names, name))
        return prompts

    def index_of(self, number: int, point: str) -> int:
        """Return the index of a point by its object's id in `prompts` and its name."""
        return self.names.index((list(self.objects)[number - 1], point))


def open_labelled_video(source: str, labels: Path) -> LabelledVideo:
    """Read the points of a video. Raises InputError for files that cannot be read, and without any visible point."""
    with open_source(source) as opened:
        height, width = next(iter(opened)).image.shape[:2]
        frame_names = opened.frame_names
        name = opened.name
    size = height, width
    if labels.suffix.lower() == ".npz":
        read, labelled, notes = *_from_arrays(labels, size), ()
    else:
        context = ReadContext(name, 0, lambda: size, frame_names, source=Path(source))
        read, labelled, notes = _from_annotations(labels, context, frame_names)
    for by_frame in read.values():
        outside = [t for t, (x, y) in by_frame.items() if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5)]
        for t in outside:
            del by_frame[t]
    # Points that are never visible can be neither prompted nor scored.
    names = [key for key, by_frame in read.items() if by_frame]
    names.sort(key=lambda key: [one for one, _ in read].index(key[0]))
    frames = sorted({t for by_frame in read.values() for t in by_frame})
    if not frames:
        raise InputError(f"expected points inside of the frames of {source} in {labels}, got none; check the files")
    if len({one for one, _ in names}) > MAX_OBJECTS:
        raise InputError(f"expected points of at most {MAX_OBJECTS} objects in {labels}, got more; split the file")
    FileBudget(labels).take(25 * len(frames) * len(names), "points")
    points = np.full((len(frames), len(names), 2), np.nan)
    is_labelled = np.zeros((len(frames), len(names)), bool)
    for k, key in enumerate(names):
        for row, t in enumerate(frames):
            is_labelled[row, k] = t in labelled[key[0]]
            if t in read[key]:
                points[row, k] = read[key][t]
    return LabelledVideo(name, source, tuple(names), tuple(frames), points, is_labelled, notes)


def _from_annotations(
    path: Path, context: ReadContext, frame_names: Sequence[str] | None
) -> tuple[_Labels, dict[str, set[int]], tuple[str, ...]]:
    """Return the points of a label file, and the frames on which each object is labelled or said to be absent."""
    annotations = Annotations.of([read_annotations(path, context)], frame_names)
    read: _Labels = {}
    labelled: dict[str, set[int]] = {}
    titles: dict[int, str] = {}
    for t in annotations.frames:
        for packed in annotations.objects[t]:
            prompt = packed.prompt
            if isinstance(prompt, AbsentObject) and not prompt.is_mask:
                labelled.setdefault(_title(titles, prompt.id, prompt.name or prompt.category), set()).add(t)
            elif isinstance(prompt, KeypointsObject):
                title = _title(titles, prompt.id, prompt.name or prompt.category)
                labelled.setdefault(title, set()).add(t)
                for name, (x, y) in zip(prompt.point_names, prompt.points, strict=True):
                    read.setdefault((title, name), {}).setdefault(t, (float(x), float(y)))
    return read, labelled, tuple(annotations.notes)


def _title(titles: dict[int, str], number: int, name: str) -> str:
    """Return the name of an object, with its id where another object has that name."""
    if number not in titles:
        plain = name or f"object {number}"
        titles[number] = plain if plain not in titles.values() else f"{plain} {number}"
    return titles[number]


def _from_arrays(path: Path, size: tuple[int, int]) -> tuple[_Labels, dict[str, set[int]]]:
    """Return the points of an .npz file, and the frames on which each object is labelled. Raises InputError."""
    layouts = "xy [T, A, P, 2] with nodes [P], or points [N, T, 2] with occluded [N, T]"
    try:
        FileBudget.of(path).take_arrays(path, 20)  # each once as bytes and once as Python's numbers
        with np.load(path, allow_pickle=False) as arrays:
            if "xy" in arrays:
                xy = np.asarray(arrays["xy"], np.float64)
                nodes = [str(name) for name in np.asarray(arrays["nodes"]).tolist()]
                names = [[(f"object {a + 1}", name) for name in nodes] for a in range(xy.shape[1])]
                expected = xy.ndim == 4 and xy.shape[2:] == (len(nodes), 2) and len(set(nodes)) == len(nodes)
            else:
                points = np.asarray(arrays["points"], np.float64)
                hidden = np.asarray(arrays["occluded"], bool)
                listed = np.asarray(arrays["names"]).tolist() if "names" in arrays else range(len(points))
                flat = [(*str(one).rpartition("/")[::2],) for one in listed]
                names = [[(title or "points", name) for title, name in flat]]
                xy = np.where(hidden[..., None], np.nan, points * size[::-1] - 0.5).transpose(1, 0, 2)[:, None]
                expected = hidden.shape == points.shape[:2] and points.shape[2:] == (2,)
                expected = expected and len(names[0]) == len(points) == len(set(names[0]))
    except FileNotFoundError:
        raise InputError(f"expected points at {path}, found no file; check the path") from None
    except InputError:
        raise
    except Exception as error:  # damaged archives raise many kinds of errors
        raise InputError(
            f"expected {layouts} in {path}, found a file without them ({type(error).__name__}); write it again"
        ) from error
    if not expected:
        raise InputError(f"expected {layouts} in {path}, found arrays of other shapes; write it again")
    return _points_of(xy, names, np.isfinite(xy).min(-1))


def _points_of(
    xy: np.ndarray, names: Sequence[Sequence[tuple[str, str]]], visible: np.ndarray
) -> tuple[_Labels, dict[str, set[int]]]:
    """Return the points of arrays [T, A, P, 2]; a frame without any visible point is not labelled."""
    frames = np.flatnonzero(visible.any((1, 2))).tolist()
    read: _Labels = {}
    for a, of_object in enumerate(names):
        for p, key in enumerate(of_object):
            read[key] = {t: (float(xy[t, a, p, 0]), float(xy[t, a, p, 1])) for t in frames if visible[t, a, p]}
    return read, {title: set(frames) for of_object in names for title, _ in of_object}
