"""Targets: points that are labelled on different frames are tracked apart, and compared with all labels of the body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from corrflow.runtime.batch.targets import Target, targets_of
from corrflow.runtime.formats.annotations import CompressedAnnotation
from corrflow.runtime.tracking.keypoints.keypoint_tracker import MAX_VIEWS
from corrflow.runtime.types import AbsentObject, Annotation, KeypointsObject, MaskObject


def points(*names: str, identity: int = 4) -> KeypointsObject:
    return KeypointsObject(identity, np.full((len(names), 2), 5, np.float32), names)


def targets(annotations: Mapping[int, Sequence[Annotation]]) -> list[Target]:
    return targets_of({frame: [CompressedAnnotation.of(one) for one in own] for frame, own in annotations.items()})


def test_points_labelled_on_different_frames_are_of_one_body() -> None:
    """Each target has its own annotations and number; its labels on other frames are those of the whole body."""
    first, second = targets({0: [points("a", "b")], 6: [points("b")], 9: [points("a", "b")]})
    for target, names, frames in ((first, ("a",), [0, 9]), (second, ("b",), [0, 6, 9])):
        assert list(target.annotations) == frames
        prompt = target.annotation(9)
        assert isinstance(prompt, KeypointsObject)
        assert (prompt.id, prompt.body, prompt.point_names) == (target.number, 4, names)
        labels = target.labels_for(9)
        assert {frame: one.point_names for frame, one in labels.items()} == {0: ("a", "b"), 6: ("b",)}
        assert {(one.id, one.body) for one in labels.values()} == {(target.number, 4)}


def test_masks_and_absence_are_no_labels_of_points() -> None:
    (mask,) = targets({0: [MaskObject(1, np.ones((4, 4), bool))], 3: [MaskObject(1, np.ones((4, 4), bool))]})
    assert mask.labels_for(0) == {}
    (body,) = targets({0: [points("a")], 3: [AbsentObject(4, is_mask=False)], 7: [points("a")]})
    assert list(body.labels_for(7)) == [0] and body.is_absent(3)


@given(st.lists(st.integers(0, 500), min_size=2, max_size=20, unique=True))
def test_the_nearest_labels_in_time_count_in_their_order(frames: list[int]) -> None:
    (target,) = targets({frame: [points("a")] for frame in frames})
    for start in frames:
        labels = list(target.labels_for(start))
        assert labels == sorted(labels) and start not in labels
        assert len(labels) == min(len(frames), MAX_VIEWS) - 1
        others = [abs(frame - start) for frame in frames if frame not in labels and frame != start]
        assert not others or max(abs(frame - start) for frame in labels) <= min(others)
