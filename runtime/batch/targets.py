"""Targets: an object's mask, or those of its points that are annotated on the same frames."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.formats.compressed_annotation import CompressedAnnotation
from corrflow.runtime.tracking.keypoints.keypoint_tracker import MAX_VIEWS
from corrflow.runtime.types import AbsentObject, KeypointsObject, MaskObject, TrackedObject

MAX_TARGETS = 255
"""Number of ids of a tracker."""


@dataclass(frozen=True)
class Target:
    """One mask, or points of one object, with its annotations.

    number:      1..255, its id in a tracker
    annotations: at least one of a mask or of points, by the index of the frame, ascending; each has the object's id
    body:        annotations of all points of the object, of which a target may have some
    """

    number: int
    annotations: Mapping[int, CompressedAnnotation]
    body: Mapping[int, CompressedAnnotation] = field(default_factory=dict)

    @property
    def prompt(self) -> TrackedObject:
        """First annotated object; its mask is compressed."""
        for packed in self.annotations.values():
            if not isinstance(packed.prompt, AbsentObject):
                return packed.prompt
        raise ValueError("a target has a mask or points on at least one frame")

    def annotation(self, frame: int) -> TrackedObject:
        """Return the mask or points of a frame, with the target's number as its id."""
        annotated = self.annotations[frame].unpacked()
        assert not isinstance(annotated, AbsentObject)
        if isinstance(annotated, KeypointsObject):
            return replace(annotated, id=self.number, body=annotated.id)
        return replace(annotated, id=self.number)

    def is_absent(self, frame: int) -> bool:
        """Return True for a frame from which on the object is annotated to be out of the picture."""
        return isinstance(self.annotations[frame].prompt, AbsentObject)

    def labels_for(self, frame: int) -> dict[int, KeypointsObject]:
        """Return labels of the object's points on other frames, the nearest in time, ascending by frame."""
        labels = {
            one: replace(packed.prompt, id=self.number, body=packed.prompt.id)
            for one, packed in self.body.items()
            if one != frame and isinstance(packed.prompt, KeypointsObject)
        }
        return {one: labels[one] for one in sorted(sorted(labels, key=lambda one: abs(one - frame))[: MAX_VIEWS - 1])}

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

    An object that is annotated as absent alone has no target. Raises InputError for an object that is a mask on one
    frame and points on another, and for too many targets.
    """
    by_object: dict[int, dict[int, CompressedAnnotation]] = {}
    for frame in sorted(annotations):
        for packed in annotations[frame]:
            by_object.setdefault(packed.prompt.id, {})[frame] = packed
    parts: list[tuple[dict[int, CompressedAnnotation], dict[int, CompressedAnnotation]]] = []
    for identity, by_frame in sorted(by_object.items()):
        kinds = {type(packed.prompt) for packed in by_frame.values()} - {AbsentObject}
        if not kinds:
            continue
        if len(kinds) > 1:
            raise InputError(
                f"expected object {identity} as a mask or as points, got both on different frames; give it two names"
            )
        parts += [(by_frame, {})] if kinds == {MaskObject} else [(one, by_frame) for one in _group_points(by_frame)]
    if len(parts) > MAX_TARGETS:
        raise InputError(f"expected at most {MAX_TARGETS} objects, got {len(parts)}; track them in several runs")
    return [Target(number, by_frame, body) for number, (by_frame, body) in enumerate(parts, 1)]


def point_order(annotations: Mapping[int, Sequence[CompressedAnnotation]]) -> dict[int, tuple[str, ...]]:
    """Return the names of each object's points in the order of their first annotation; formats number points."""
    names: dict[int, dict[str, None]] = {}
    for frame in sorted(annotations):
        for packed in annotations[frame]:
            if isinstance(packed.prompt, KeypointsObject):
                names.setdefault(packed.prompt.id, {}).update(dict.fromkeys(packed.prompt.point_names))
    return {identity: tuple(points) for identity, points in names.items()}


def _group_points(by_frame: Mapping[int, CompressedAnnotation]) -> list[dict[int, CompressedAnnotation]]:
    """Split the points of an object into groups of points that are annotated on the same frames.

    Where the object is absent, every group is.
    """
    frames_of: dict[str, list[int]] = {}
    for frame, packed in by_frame.items():
        if isinstance(packed.prompt, KeypointsObject):
            for name in packed.prompt.point_names:
                frames_of.setdefault(name, []).append(frame)
    absent = [frame for frame, packed in by_frame.items() if isinstance(packed.prompt, AbsentObject)]
    frames_of = {name: sorted([*frames, *absent]) for name, frames in frames_of.items()}
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, frames in frames_of.items():
        groups.setdefault(tuple(frames), []).append(name)
    return [{frame: _select_points(by_frame[frame], names) for frame in frames} for frames, names in groups.items()]


def _select_points(packed: CompressedAnnotation, names: Sequence[str]) -> CompressedAnnotation:
    prompt = packed.prompt
    if isinstance(prompt, AbsentObject):
        return packed
    assert isinstance(prompt, KeypointsObject)
    indices = [prompt.point_names.index(name) for name in names]
    points = np.asarray(prompt.points)[indices]
    return replace(packed, prompt=replace(prompt, points=points, point_names=tuple(names)))
