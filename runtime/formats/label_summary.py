"""Summary of a video's labels, for terminals, manifests and reports: what was read, and what was left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corrflow.runtime.formats.annotations import NOT_READ, AnnotationFile, Annotations
from corrflow.runtime.types import AbsentObject, Annotation, KeypointsObject

MAX_SPANS = 6
"""Spans of frames that a text names; the rest is counted."""

MAX_FILES = 5
"""Files of one format in a folder that are named one by one."""


@dataclass(frozen=True)
class ObjectSummary:
    """One object of the labels.

    id:     its id in the results
    frames: indices of its labelled frames, ascending
    absent: those of them on which it is labelled as out of the picture
    points: names of its points; empty for masks
    """

    id: int
    track_id: int | str | None
    name: str
    category: str
    frames: tuple[int, ...]
    absent: tuple[int, ...] = ()
    points: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Text for the kind of label."""
        return f"{len(self.points)} points" if self.points else "mask"

    @property
    def label(self) -> str:
        """Text for the object: its name, and its identity in the file where that says more."""
        name = self.name or self.category or f"object {self.id}"
        category = f" ({self.category})" if self.category and self.category != name else ""
        known = self.track_id is None or str(self.track_id) == name
        return f"{name}{category}" + ("" if known else f", track {self.track_id}")


def object_summaries(annotations: Annotations) -> list[ObjectSummary]:
    """Return the objects of a video's labels by id."""
    by_id: dict[int, dict[int, Annotation]] = {}
    for frame, objects in annotations.objects.items():
        for packed in objects:
            by_id.setdefault(packed.prompt.id, {})[frame] = packed.prompt
    return [_object_summary(identity, by_frame) for identity, by_frame in sorted(by_id.items())]


def _object_summary(identity: int, by_frame: Mapping[int, Annotation]) -> ObjectSummary:
    first = next(iter(by_frame.values()))
    points: dict[str, None] = {}
    for prompt in by_frame.values():
        if isinstance(prompt, KeypointsObject):
            points.update(dict.fromkeys(prompt.point_names))
    absent = tuple(frame for frame, prompt in by_frame.items() if isinstance(prompt, AbsentObject))
    name = next((prompt.name for prompt in by_frame.values() if prompt.name), "")
    category = next((prompt.category for prompt in by_frame.values() if prompt.category), "")
    return ObjectSummary(identity, first.track_id, name, category, tuple(by_frame), absent, tuple(points))


def summary_record(annotations: Annotations, notes: Sequence[str]) -> dict[str, Any]:
    """Return the summary as JSON values; notes: what was left out, of the labels and of the video."""
    return {
        "files": [
            {"path": str(path), "format": name, "count": len(files)}
            for path, name, files in _grouped(annotations.files)
        ],
        "frames": spans_text(annotations.frames),
        "objects": [
            {
                "id": one.id,
                "track_id": one.track_id,
                "name": one.name,
                "category": one.category,
                "kind": one.kind,
                "frames": len(one.frames),
            }
            for one in object_summaries(annotations)
        ],
        "notes": list(notes),
    }


def summary_lines(video: str, annotations: Annotations) -> list[str]:
    """Return the lines of a summary for the terminal: the video, its files, its objects, and what is left out."""
    objects = object_summaries(annotations)
    frames = annotations.frames
    lines = [f"{video}: {_count(len(objects), 'object')} on {_count(len(frames), 'frame')} ({spans_text(frames)})"]
    for path, name, files in _grouped(annotations.files):
        labelled = sum(bool(found) for file in files for found in file.content.frames.values())
        what = "" if name == NOT_READ else f", {_count(labelled, 'frame')}"
        several = f", {len(files)} files" if len(files) > 1 else ""
        lines.append(f"  {path}: {name}{several}{what}")
        for file in files:
            of_file = f"{file.path.name}: " if len(files) > 1 else ""
            lines += [f"    {of_file}{sentence}" for sentence in file.notes.sentences()]
    for one in objects:
        absent = f", out of the picture from frame {spans_text(one.absent)}" if one.absent else ""
        points = f": {', '.join(one.points)}" if one.points else ""
        lines.append(
            f"  id {one.id}: {one.label}, {one.kind}{points}, on {_count(len(one.frames), 'frame')}"
            f" ({spans_text(one.frames)}){absent}"
        )
    return lines


def _grouped(files: Sequence[AnnotationFile]) -> list[tuple[Path, str, list[AnnotationFile]]]:
    """Return path, format and files of each entry; many files of one format are named by their folder."""
    by_folder: dict[tuple[Path, str], list[AnnotationFile]] = {}
    for file in files:
        by_folder.setdefault((file.path.parent, file.format), []).append(file)
    entries: list[tuple[Path, str, list[AnnotationFile]]] = []
    for (folder, name), together in by_folder.items():
        if len(together) > MAX_FILES:
            entries.append((folder, name, together))
        else:
            entries += [(file.path, name, [file]) for file in together]
    return entries


def spans_text(frames: Iterable[int]) -> str:
    """Return frames as text with spans: 0, 4-9, 12."""
    spans: list[list[int]] = []
    for frame in frames:
        if spans and frame == spans[-1][1] + 1:
            spans[-1][1] = frame
        else:
            spans.append([frame, frame])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in spans[:MAX_SPANS]]
    more = len(spans) - MAX_SPANS
    return ", ".join([*texts, f"and {more} more"] if more > 0 else texts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
