"""Identities: which annotations on different frames are one object.

Objects with the same identity in their file are one object. Objects without one are matched by name, and where several
have that name, by place, size and points. Their order in the file has no meaning.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.formats.compressed_annotation import CompressedAnnotation
from corrflow.runtime.types import AbsentObject, KeypointsObject, MaskObject, TrackId

MAX_ID = 255
"""Largest id, because an indexed mask has 8 bits."""

_Kind = tuple[bool, str]  # True for masks, and the name of the class or object


@dataclass(frozen=True)
class _Shape:
    """Place, size and points of an annotation, in pixels."""

    centre: np.ndarray
    size: float
    points: Mapping[str, np.ndarray]


@dataclass
class _Identity:
    """Object on all frames.

    number: id; 0 until it is assigned
    shapes: by the index of the frame
    frames: these indices, ascending
    """

    kind: _Kind
    track_id: TrackId
    number: int = 0
    shapes: dict[int, CompressedAnnotation] = field(default_factory=dict)
    frames: list[int] = field(default_factory=list)

    def add(self, frame: int, packed: CompressedAnnotation) -> None:
        """Add the annotation of a frame; the first one counts."""
        if frame not in self.shapes:
            self.shapes[frame] = packed
            insort(self.frames, frame)

    def nearest(self, frame: int) -> CompressedAnnotation:
        """Return the annotation of the nearest frame, the earlier one of two."""
        position = bisect(self.frames, frame)
        around = self.frames[max(position - 1, 0) : position + 1]
        return self.shapes[min(around, key=lambda known: abs(known - frame))]


def assign_ids(
    by_frame: Mapping[int, Sequence[CompressedAnnotation]],
) -> dict[int, list[CompressedAnnotation]]:
    """Give all annotations of an object one id: a number from 1 to 255 in the file if it is free, else the next.

    by_frame: annotations by the index of the frame, ascending

    Numbers of masks are assigned first, because the number of a mask may be the value that its annotator drew. Raises
    InputError for more than 255 objects.
    """
    identities: list[_Identity] = []
    owner: dict[tuple[int, int], _Identity] = {}  # by frame and position in that frame
    # A name as identity may be that of an object with a number, so numbers are known first.
    for kind_of_key in (int, str, type(None)):
        for frame, objects in by_frame.items():
            open_positions = [k for k, one in enumerate(objects) if isinstance(one.prompt.track_id, kind_of_key)]
            if kind_of_key is not type(None):
                for position in open_positions:
                    owner[frame, position] = _keyed(identities, objects[position])
            else:
                taken = [owner[frame, k] for k in range(len(objects)) if (frame, k) in owner]
                for position, identity in _matched(identities, taken, frame, objects, open_positions):
                    owner[frame, position] = identity
            for position in open_positions:
                owner[frame, position].add(frame, objects[position])
    _number(identities)
    return {
        frame: [
            replace(packed, prompt=replace(packed.prompt, id=owner[frame, position].number))
            for position, packed in enumerate(objects)
        ]
        for frame, objects in by_frame.items()
    }


def _is_mask(packed: CompressedAnnotation) -> bool:
    prompt = packed.prompt
    return prompt.is_mask if isinstance(prompt, AbsentObject) else isinstance(prompt, MaskObject)


def _kind(packed: CompressedAnnotation) -> _Kind:
    return _is_mask(packed), packed.prompt.category or packed.prompt.name


def _keyed(identities: list[_Identity], packed: CompressedAnnotation) -> _Identity:
    """Return the identity with an annotation's track_id, new where there is none; a class may be missing in a file."""
    kind, track_id = _kind(packed), packed.prompt.track_id
    same = [one for one in identities if one.track_id == track_id and one.kind[0] == kind[0]]
    for one in same:
        if one.kind[1] == kind[1]:
            return one
    if len(same) == 1 and not (same[0].kind[1] and kind[1]):
        same[0].kind = kind[0], same[0].kind[1] or kind[1]
        return same[0]
    if track_id == packed.prompt.name:
        named = [one for one in identities if one.kind[0] == kind[0] and _has_name(one, packed.prompt.name)]
        if len(named) == 1:
            return named[0]
    return _added(identities, kind, track_id)


def _added(identities: list[_Identity], kind: _Kind, track_id: TrackId) -> _Identity:
    """Return a new identity. Raises InputError for too many, because a small file may have any number."""
    if len(identities) == MAX_ID:
        raise InputError(f"expected at most {MAX_ID} objects, got more; track them in several runs")
    identities.append(_Identity(kind, track_id))
    return identities[-1]


def _matched(
    identities: list[_Identity],
    taken: Sequence[_Identity],
    frame: int,
    objects: Sequence[CompressedAnnotation],
    positions: Sequence[int],
) -> list[tuple[int, _Identity]]:
    """Match the annotations of a frame that have no track_id with identities of their kind, or with new ones."""
    matches: list[tuple[int, _Identity]] = []
    groups: dict[_Kind, list[int]] = {}
    for position in positions:
        groups.setdefault(_kind(objects[position]), []).append(position)
    for kind, members in groups.items():
        if len(members) > MAX_ID:
            raise InputError(
                f"expected at most {MAX_ID} objects on a frame, got {len(members)}; track them in several runs"
            )
        candidates = [one for one in identities if one.kind == kind and not any(one is other for other in taken)]
        if not candidates and kind[1] and len(members) == 1:
            # A name alone may stand for an object that has a class of another name.
            named = [one for one in identities if one.kind[0] == kind[0] and _has_name(one, kind[1])]
            candidates = [one for one in named if not any(one is other for other in taken)][:1]
        pairs = _pairs(frame, [objects[k] for k in members], candidates)
        for row, position in enumerate(members):
            if row not in pairs:
                matches.append((position, _added(identities, kind, None)))
            else:
                matches.append((position, candidates[pairs[row]]))
    return matches


def _has_name(identity: _Identity, name: str) -> bool:
    return any(packed.prompt.name == name for packed in identity.shapes.values())


def _pairs(frame: int, objects: Sequence[CompressedAnnotation], candidates: Sequence[_Identity]) -> dict[int, int]:
    """Return the candidate of each object by position, such that the sum of all distances is smallest."""
    if not candidates:
        return {}
    if len(objects) == len(candidates) == 1:
        return {0: 0}
    nearest = [one.nearest(frame) for one in candidates]
    rows, columns = [_shape(one) for one in objects], [_shape(one) for one in nearest]
    return assignment(np.array([[_distance(row, column) for column in columns] for row in rows]))


def _shape(packed: CompressedAnnotation) -> _Shape:
    prompt = packed.prompt
    if isinstance(prompt, KeypointsObject):
        points = np.asarray(prompt.points, np.float64)
        size = float(np.hypot(*np.ptp(points, axis=0))) if len(points) > 1 else 0.0
        return _Shape(points.mean(0), size, dict(zip(prompt.point_names, points, strict=True)))
    x, y, size = packed.place
    return _Shape(np.array([x, y]), size, {})


def _distance(one: _Shape, other: _Shape) -> float:
    """Return the distance of two shapes in pixels: between points of one name, else centres; and of their sizes."""
    common = sorted(set(one.points) & set(other.points))
    if common:
        return float(np.mean([np.hypot(*(one.points[name] - other.points[name])) for name in common]))
    return float(np.hypot(*(one.centre - other.centre))) + abs(one.size - other.size)


def assignment(costs: np.ndarray) -> dict[int, int]:
    """Return the column of each row, such that the sum of the costs [N, M] is smallest; min(N, M) rows get one.

    This is the Hungarian method with potentials, O(N^2 M).
    """
    is_wide = costs.shape[0] <= costs.shape[1]
    matrix = costs if is_wide else costs.T
    rows, columns = matrix.shape
    row_potential, column_potential = np.zeros(rows + 1), np.zeros(columns + 1)
    row_of = np.zeros(columns + 1, int)  # rows and columns count from 1; 0 is free
    for row in range(1, rows + 1):
        row_of[0], column = row, 0
        least, previous = np.full(columns + 1, np.inf), np.zeros(columns + 1, int)
        used = np.zeros(columns + 1, bool)
        while row_of[column]:
            used[column] = True
            own = row_of[column]
            reduced = matrix[own - 1] - row_potential[own] - column_potential[1:]
            better = ~used[1:] & (reduced < least[1:])
            least[1:][better], previous[1:][better] = reduced[better], column
            step_column = int(np.argmin(np.where(used, np.inf, np.append(np.inf, least[1:]))))
            step = least[step_column]
            row_potential[row_of[used]] += step
            column_potential[used] -= step
            least[~used] -= step
            column = step_column
        while column:
            row_of[column], column = row_of[previous[column]], previous[column]
    pairs = {int(row_of[column]) - 1: column - 1 for column in range(1, columns + 1) if row_of[column]}
    return pairs if is_wide else {column: row for row, column in pairs.items()}


def _number(identities: Sequence[_Identity]) -> None:
    """Give each of up to 255 identities its number: that of its file where free, else one above all of the files."""
    ordered = [one for is_mask in (True, False) for one in identities if one.kind[0] is is_mask]
    stated = {one.track_id for one in ordered if isinstance(one.track_id, int) and 0 < one.track_id <= MAX_ID}
    taken: set[int] = set()
    for one in ordered:
        if one.track_id in stated and one.track_id not in taken and isinstance(one.track_id, int):
            one.number = one.track_id
            taken.add(one.number)
    following = [*range(max(stated, default=0) + 1, MAX_ID + 1), *range(1, MAX_ID + 1)]
    for one in ordered:
        if not one.number:
            one.number = next(number for number in following if number not in taken)
            taken.add(one.number)
