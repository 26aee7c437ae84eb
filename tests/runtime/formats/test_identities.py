"""Identities: the file's own are kept; without one, objects are matched by place, never by their order in the file."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import AnnotationFile, Annotations, FileContent, FrameKey
from corrflow.runtime.formats.identities import assignment
from corrflow.runtime.types import AbsentObject, Annotation, KeypointsObject, MaskObject, TrackId


def mask(x: int, track_id: TrackId = None, name: str = "car", y: int = 10, side: int = 6) -> MaskObject:
    drawn = np.zeros((60, 90), bool)
    drawn[y : y + side, x : x + side] = True
    return MaskObject(0, drawn, name, track_id, name)


def points(x: float, track_id: TrackId = None, names: tuple[str, ...] = ("nose", "tail")) -> KeypointsObject:
    places = np.array([[x + 3 * k, 20.0] for k in range(len(names))], np.float32)
    return KeypointsObject(0, places, names, "fly", track_id, "fly")


def ids(frames: dict[FrameKey, list[Annotation]]) -> dict[int, list[int]]:
    annotations = Annotations.of([AnnotationFile(Path("labels"), "test", FileContent(frames))])
    return {frame: [packed.prompt.id for packed in objects] for frame, objects in annotations.objects.items()}


@pytest.mark.parametrize(("one", "other"), [(1, 2), (0, 1), (500, 501), ("a", "b"), (2**40, -3), ("0", 0), (255, 256)])
def test_an_identity_of_any_kind_is_one_object(one: TrackId, other: TrackId) -> None:
    found = ids({0: [mask(10, one), mask(40, other)], 8: [mask(40, other), mask(20, one)]})
    assert found[8] == found[0][::-1] and len(set(found[0])) == 2
    assert [number == key for number, key in zip(found[0], (one, other), strict=True)] == [
        isinstance(key, int) and 0 < key < 256 for key in (one, other)
    ]


def test_objects_without_identity_are_matched_by_place_in_every_order() -> None:
    for order in itertools.permutations(range(4)):
        moved = [mask(20 * k + 5) for k in order]
        found = ids({0: [mask(20 * k) for k in range(4)], 30: list(moved)})
        assert [found[30][order.index(k)] for k in range(4)] == found[0]


def test_points_are_matched_by_points_of_the_same_name() -> None:
    found = ids({0: [points(10), points(40)], 5: [points(43, names=("tail", "nose", "leg")), points(12)]})
    assert found[5] == found[0][::-1]


def test_a_matching_has_the_smallest_sum_and_not_the_nearest_first() -> None:
    """The nearest pair alone would leave the far object to the other end of the picture."""
    found = ids({0: [mask(20), mask(30)], 5: [mask(28), mask(45)]})
    assert found[5] == found[0]


def test_an_object_is_compared_with_the_nearest_frame_that_has_it() -> None:
    found = ids({0: [mask(0), mask(80)], 10: [mask(40), mask(50)], 20: [mask(0), mask(80)], 11: [mask(51), mask(41)]})
    assert found[11] == found[10][::-1]


def test_one_more_object_than_before_is_a_new_one() -> None:
    found = ids({0: [mask(10), mask(40)], 3: [mask(70), mask(41), mask(11)]})
    assert found[3][1:] == found[0][::-1] and found[3][0] not in found[0]


def test_classes_and_kinds_do_not_mix() -> None:
    found = ids({0: [mask(10), mask(12, name="dog"), points(10)], 4: [points(11), mask(12), mask(10, name="dog")]})
    assert found[4] == [found[0][2], found[0][0], found[0][1]] and len(set(found[0])) == 3


def test_a_mask_and_points_of_one_track_are_two_objects_with_their_track() -> None:
    annotations = Annotations.of(
        [AnnotationFile(Path("labels"), "test", FileContent({0: [mask(10, 7), points(10, 7)]}))]
    )
    prompts = [packed.prompt for packed in annotations.objects[0]]
    assert [one.track_id for one in prompts] == [7, 7] and [one.id for one in prompts] == [7, 8]


def test_an_absent_object_is_the_one_with_its_track() -> None:
    found = ids({0: [mask(10, 300)], 8: [AbsentObject(0, "car", 300, "car")], 15: [mask(70, 300)]})
    assert found == {0: [1], 8: [1], 15: [1]}


def test_numbers_of_masks_are_theirs_before_others_take_them() -> None:
    found = ids({0: [points(3), mask(10, "left"), mask(40, 1)]})
    assert found[0] == [3, 2, 1]


def test_ids_are_from_1_to_255_whatever_the_file_has() -> None:
    found = ids({0: [mask(k % 80, 254 + k) for k in range(200)]})
    assert sorted(found[0]) == sorted(set(found[0])) and min(found[0]) >= 1 and max(found[0]) <= 255
    assert found[0][:2] == [254, 255]
    with pytest.raises(InputError, match="at most 255 objects, got more"):
        ids({0: [mask(k % 80, k) for k in range(256)]})


@settings(max_examples=200, deadline=None)
@given(arrays.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 20)))
def test_the_assignment_is_the_cheapest_of_all(costs: np.ndarray) -> None:
    pairs = assignment(costs)
    assert len(pairs) == min(costs.shape) and len(set(pairs.values())) == len(pairs)
    small = costs if costs.shape[0] <= costs.shape[1] else costs.T
    rows = range(small.shape[0])
    best = min(
        sum(small[row, column] for row, column in zip(rows, columns, strict=True))
        for columns in itertools.permutations(range(small.shape[1]), small.shape[0])
    )
    assert sum(costs[row, column] for row, column in pairs.items()) == pytest.approx(best)
