"""Targets: an object's mask, or those of its points that are annotated on the same frames."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import CompressedAnnotation
from corrflow.runtime.types import KeypointsObject, MaskObject, TrackedObject

MAX_TARGETS = 255
"""Number of ids of a tracker."""


@dataclass(frozen=True)
class Target:
    """One mask, or points of one object, with its annotations.

    number:      1..255, its id in a tracker
    annotations: at least one, by the index of the frame, ascending; each has the id of the object
    """

    number: int
    annotations: Mapping[int, CompressedAnnotation]

    @property
    def prompt(self) -> TrackedObject:
        """First annotated object; its mask is compressed."""
        return next(iter(self.annotations.values())).prompt

    def annotation(self, frame: int) -> TrackedObject:
        """Return the annotation of a frame, with the target's number as its id."""
        return replace(self.annotations[frame].unpacked(), id=self.number)

    def before(self, frame: int) -> int | None:
        """Return the last annotated frame before a frame."""
        position = bisect_left(self._frames, frame)
        return self._frames[position - 1] if position else None

    def after(self, frame: int) -> int | None:
        """Return the first annotated frame after a frame."""
        position = bisect_right(self._frames, frame)
        return self._frames[position] if position < len(self._frames) else None

    @cached_property
    def _frames(self) -> list[int]:
        return list(self.annotations)


def targets_of(annotations: Mapping[int, Sequence[CompressedAnnotation]]) -> list[Target]:
    """Return the targets of the objects annotated on each frame, ascending by object.

    Raises InputError for an object that is a mask on one frame and points on another, and for too many targets.
    """
    by_object: dict[int, dict[int, CompressedAnnotation]] = {}
    for frame in sorted(annotations):
        for packed in annotations[frame]:
            by_object.setdefault(packed.prompt.id, {})[frame] = packed
    parts: list[dict[int, CompressedAnnotation]] = []
    for identity, by_frame in sorted(by_object.items()):
        kinds = {type(packed.prompt) for packed in by_frame.values()}
        if len(kinds) > 1:
            raise InputError(
                f"expected object {identity} as a mask or as points, got both on different frames; give it two names"
            )
        parts += [by_frame] if kinds == {MaskObject} else _group_points(by_frame)
    if len(parts) > MAX_TARGETS:
        raise InputError(f"expected at most {MAX_TARGETS} objects, got {len(parts)}; track them in several runs")
    return [Target(number, by_frame) for number, by_frame in enumerate(parts, 1)]


def point_order(annotations: Mapping[int, Sequence[CompressedAnnotation]]) -> dict[int, tuple[str, ...]]:
    """Return the names of each object's points in the order of their first annotation; formats number points."""
    names: dict[int, dict[str, None]] = {}
    for frame in sorted(annotations):
        for packed in annotations[frame]:
            if isinstance(packed.prompt, KeypointsObject):
                names.setdefault(packed.prompt.id, {}).update(dict.fromkeys(packed.prompt.point_names))
    return {identity: tuple(points) for identity, points in names.items()}


def _group_points(by_frame: Mapping[int, CompressedAnnotation]) -> list[dict[int, CompressedAnnotation]]:
    """Split the points of an object into groups of points that are annotated on the same frames."""
    frames_of: dict[str, list[int]] = {}
    for frame, packed in by_frame.items():
        assert isinstance(packed.prompt, KeypointsObject)
        for name in packed.prompt.point_names:
            frames_of.setdefault(name, []).append(frame)
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, frames in frames_of.items():
        groups.setdefault(tuple(frames), []).append(name)
    return [{frame: _select_points(by_frame[frame], names) for frame in frames} for frames, names in groups.items()]


def _select_points(packed: CompressedAnnotation, names: Sequence[str]) -> CompressedAnnotation:
    prompt = packed.prompt
    assert isinstance(prompt, KeypointsObject)
    indices = [prompt.point_names.index(name) for name in names]
    points = np.asarray(prompt.points)[indices]
    return CompressedAnnotation(replace(prompt, points=points, point_names=tuple(names)), ())
