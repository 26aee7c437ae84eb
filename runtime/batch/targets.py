"""What is tracked as one: an object's mask, or those of its points that are labelled on the same frames."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import CompressedAnnotation
from corrflow.runtime.types import KeypointsObject, MaskObject, TrackedObject

MOST_STRANDS = 255
"""As many as a tracker has ids."""


@dataclass(frozen=True)
class Strand:
    """One mask, or points of one object, with its labels.

    number: 1..255, its id in a tracker
    given:  by the index of the frame, ascending, at least one; each with the object's own id
    """

    number: int
    given: Mapping[int, CompressedAnnotation]

    @property
    def object_id(self) -> int:
        return next(iter(self.given.values())).prompt.id

    def label(self, frame: int) -> TrackedObject:
        """The label on that frame, under the strand's number."""
        return replace(self.given[frame].unpacked(), id=self.number)

    def before(self, frame: int) -> int | None:
        """The last labelled frame before this one."""
        place = bisect_left(self._frames, frame)
        return self._frames[place - 1] if place else None

    def after(self, frame: int) -> int | None:
        """The first labelled frame after this one."""
        place = bisect_right(self._frames, frame)
        return self._frames[place] if place < len(self._frames) else None

    @cached_property
    def _frames(self) -> list[int]:
        return list(self.given)


def strands_of(labelled: Mapping[int, Sequence[CompressedAnnotation]]) -> list[Strand]:
    """The strands of the objects labelled on each frame, ascending by object.

    Raises InputError for an object that is a mask on one frame and points on another, and for too many.
    """
    by_object: dict[int, dict[int, CompressedAnnotation]] = {}
    for frame in sorted(labelled):
        for packed in labelled[frame]:
            by_object.setdefault(packed.prompt.id, {})[frame] = packed
    parts: list[dict[int, CompressedAnnotation]] = []
    for identity, given in sorted(by_object.items()):
        kinds = {type(packed.prompt) for packed in given.values()}
        if len(kinds) > 1:
            raise InputError(
                f"expected object {identity} as a mask or as points, got both on different frames; give it two names"
            )
        parts += [given] if kinds == {MaskObject} else _by_frames(given)
    if len(parts) > MOST_STRANDS:
        raise InputError(f"expected at most {MOST_STRANDS} objects, got {len(parts)}; track them in several runs")
    return [Strand(number, given) for number, given in enumerate(parts, 1)]


def order_of_points(labelled: Mapping[int, Sequence[CompressedAnnotation]]) -> dict[int, tuple[str, ...]]:
    """The names of each object's points as they were first labelled: formats number points, so the order must stay."""
    names: dict[int, dict[str, None]] = {}
    for frame in sorted(labelled):
        for packed in labelled[frame]:
            if isinstance(packed.prompt, KeypointsObject):
                names.setdefault(packed.prompt.id, {}).update(dict.fromkeys(packed.prompt.point_names))
    return {identity: tuple(own) for identity, own in names.items()}


def _by_frames(given: Mapping[int, CompressedAnnotation]) -> list[dict[int, CompressedAnnotation]]:
    """The points of one object, those labelled on the same frames together."""
    frames: dict[str, list[int]] = {}
    for frame, packed in given.items():
        assert isinstance(packed.prompt, KeypointsObject)
        for name in packed.prompt.point_names:
            frames.setdefault(name, []).append(frame)
    together: dict[tuple[int, ...], list[str]] = {}
    for name, its_frames in frames.items():
        together.setdefault(tuple(its_frames), []).append(name)
    return [{frame: _only(given[frame], names) for frame in its} for its, names in together.items()]


def _only(packed: CompressedAnnotation, names: Sequence[str]) -> CompressedAnnotation:
    whole = packed.prompt
    assert isinstance(whole, KeypointsObject)
    chosen = [whole.point_names.index(name) for name in names]
    return CompressedAnnotation(replace(whole, points=np.asarray(whole.points)[chosen], point_names=tuple(names)), ())
