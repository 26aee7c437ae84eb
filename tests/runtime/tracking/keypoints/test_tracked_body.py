"""Objects of one body share a tracker; each is added, corrected and removed on its own."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.textured_body import SIZE, frame_and_points, motion

from corrflow.errors import InputError
from corrflow.runtime.backends.base import Backend
from corrflow.runtime.tracking.keypoints.keypoint_tracker import KeypointTracker
from corrflow.runtime.tracking.keypoints.tracked_body import TrackedBody, grouped_by_body
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import KeypointsObject, MaskObject

NAMES = ("nose", "ear", "back", "paw", "tail")


def part(identity: int, points: np.ndarray, *columns: int, body: int = 9) -> KeypointsObject:
    names = tuple(NAMES[column] for column in columns)
    return KeypointsObject(identity, points[list(columns)].astype(np.float32), names, body=body)


def body_of(backend: Backend, prompts: list[KeypointsObject], labels=()) -> TrackedBody:
    image, _ = frame_and_points(motion())
    return TrackedBody(backend, backend.artifact.settings, image, prompts, labels)


def test_objects_are_grouped_by_their_body() -> None:
    points = np.zeros((5, 2))
    one, two, other = part(1, points, 0), part(2, points, 1), part(3, points, 2, body=4)
    alone, also = part(9, points, 3, body=0), part(4, points, 3, body=0)
    assert grouped_by_body([one, alone, two, other, also]) == [[one, two], [alone], [other], [also]]


def test_objects_of_a_body_share_one_tracker(fast_backend: Backend) -> None:
    """Together they are what one object with all points is; a single point would not show how the body turns."""
    _, points = frame_and_points(motion())
    shared = body_of(fast_backend, [part(1, points, 4, 1), part(2, points, 0, 2, 3)])
    whole = body_of(fast_backend, [part(1, points, 4, 1, 0, 2, 3)])
    for t in range(1, 7):
        image, truth = frame_and_points(motion(8 * t))
        found, expected = shared.step(image), whole.step(image)
        np.testing.assert_array_equal(np.concatenate([found[1], found[2]]), expected[1])
        assert found[1].dtype == np.float32 and found[1].shape == (2, 3)
        assert np.abs(found[2][:, :2] - truth[[0, 2, 3]]).max() < 2


def test_removal_stops_the_points_of_one_object_alone(fast_backend: Backend) -> None:
    _, points = frame_and_points(motion())
    body = body_of(fast_backend, [part(1, points, 0, 1), part(2, points, 2, 3, 4)])
    body.members[0].removed = True
    body.drop_removed()
    image, truth = frame_and_points(motion(6))
    found = body.step(image)
    assert found.keys() == {2}
    assert np.abs(found[2][:, :2] - truth[2:]).max() < 2
    back = part(5, truth, 0, 1)
    assert body.accepts([back]) and not body.accepts([part(6, truth, 1, 2)])
    body.add(image, [back], [])
    image, truth = frame_and_points(motion(12))
    found = body.step(image)
    assert np.abs(found[5][:, :2] - truth[:2]).max() < 2 and np.abs(found[2][:, :2] - truth[2:]).max() < 2


def test_only_objects_of_the_body_with_its_free_names_are_accepted(fast_backend: Backend) -> None:
    image, points = frame_and_points(motion())
    body = body_of(fast_backend, [part(1, points, 0, 1)], [(image, part(1, points, 0, 1, 2))])
    assert body.accepts([part(2, points, 2)])
    assert not body.accepts([part(2, points, 0)]), "taken"
    assert not body.accepts([part(2, points, 3)]), "unknown"
    assert not body.accepts([part(2, points, 2, body=8)])
    alone = body_of(fast_backend, [part(1, points, 0, body=0)], [(image, part(1, points, 0, 2, body=0))])
    assert not alone.accepts([part(2, points, 2, body=0)])


def test_a_correction_needs_the_names_of_before(fast_backend: Backend) -> None:
    image, points = frame_and_points(motion())
    body = body_of(fast_backend, [part(1, points, 0, 1), part(2, points, 2)])
    assert not body.correct(image, part(1, points, 0))
    assert not body.correct(image, part(1, points, 1, 0)), "in another order"
    assert body.members[0].prompt.point_names == ("nose", "ear")
    assert body.correct(image, part(1, points, 0, 1))


def test_places_are_inside_the_frame(fast_backend: Backend) -> None:
    _, points = frame_and_points(motion(0, 1, (60, 120)))
    image, _ = frame_and_points(motion(0, 1, (60, 120)))
    body = TrackedBody(fast_backend, fast_backend.artifact.settings, image, [part(1, points, 0, 1, 2, 3, 4)], [])
    for t in range(1, 10):
        found = body.step(frame_and_points(motion(0, 1, (60 - 6 * t, 120)))[0])[1]
        assert (found[:, :2] >= 0).all() and (found[:, :2] <= np.array(SIZE[::-1]) - 1).all()
    assert (found[[0, 3], 2] == 0).all()


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the labelled frames of each start and restart."""
    counted, restart = [], KeypointTracker.restart

    def recorded(self, image, points, others=None) -> None:
        restart(self, image, points, others)
        counted.append(len(self._views))

    monkeypatch.setattr(KeypointTracker, "restart", recorded)
    return counted


def test_a_tracker_takes_labels_of_further_frames(fast_backend: Backend, views: list[int]) -> None:
    """At the start and when objects are added; each object has its own."""
    image, points = frame_and_points(motion())
    others = [frame_and_points(motion(20 * k)) for k in (1, 2)]
    labels = [(shown, part(1, places, 0, 1, 2)) for shown, places in others]
    tracker = Tracker(fast_backend)
    started = tracker.start(image, [part(1, points, 0, 1, 2), part(2, points, 3, body=0)], labels)
    assert [one.id for one in started.objects] == [1, 2] and views == [3, 1]
    labels = [(shown, part(3, places, 4, body=0)) for shown, places in others[:1]]
    tracker.add([part(3, points, 4, body=0)], labels)
    assert views == [3, 1, 2]
    for t in range(1, 6):
        image, truth = frame_and_points(motion(5 * t))
        first, second, third = tracker.step(image).objects
        found = [one.points for one in (first, second, third)]
        assert all(one is not None for one in found)
        assert np.abs(np.concatenate(found) - truth).max() < 2  # type: ignore[arg-type]
    tracker.correct(part(1, truth, 0, 1, 2))
    assert views == [3, 1, 2, 1], "corrected labels take the place of earlier ones"
    tracker.correct(part(1, truth, 0, 1))
    assert views == [3, 1, 2, 1, 1], "other names begin anew"
    tracker.remove(1)
    assert tracker.object_ids == (2, 3)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ((np.zeros((240, 320), np.uint8), None), r"expected a frame \[H, W, 3\] uint8, BGR, got uint8 \[240, 320\]$"),
        ((np.zeros((0, 320, 3), np.uint8), None), r"expected a frame with pixels, got \[0, 320, 3\]$"),
        ((np.zeros((120, 160, 3), np.uint8), None), r"labelled frames of 320x240 as the first frame, got 160x120"),
        (
            (None, KeypointsObject(1, np.zeros((2, 2)), ("nose",))),
            r"expected points \[P, 2\] with P names, got \[2, 2\]",
        ),
        (
            (None, KeypointsObject(1, np.zeros((1, 3)), ("nose",))),
            r"expected points \[P, 2\] with P names, got \[1, 3\]",
        ),
        ((None, KeypointsObject(1, np.array([[320.0, 3]]), ("nose",))), r"expected point 'nose' inside the frame"),
        (
            (None, MaskObject(1, np.ones((240, 320), bool))),
            r"expected points on further labelled frames, got a MaskObject$",
        ),
    ],
    ids=["grey", "empty", "another size", "too few names", "three columns", "outside", "mask"],
)
def test_labels_that_do_not_fit_are_refused_in_one_sentence(fast_backend: Backend, label, message: str) -> None:
    image, points = frame_and_points(motion())
    own = part(1, points, 0, 1)
    tracker = Tracker(fast_backend)
    labels = [(image if label[0] is None else label[0], own if label[1] is None else label[1])]
    with pytest.raises(InputError, match=message):
        tracker.start(image, [own], labels)
    assert tracker.object_ids == (), "nothing has begun"
    tracker.start(image, [own])
    with pytest.raises(InputError, match=message):
        tracker.add([part(2, points, 2, body=0)], labels)
    assert tracker.object_ids == (1,)


def test_a_corrected_point_does_not_go_back_to_its_wrong_label(fast_backend: Backend) -> None:
    image, points = frame_and_points(motion())
    wrong = points.copy()
    wrong[1] += (9, 6)
    body = body_of(fast_backend, [part(1, wrong, 0, 1, 2, 3, 4, body=0)])
    image, truth = frame_and_points(motion(2))
    body.step(image)
    assert body.correct(image, part(1, truth, 0, 1, 2, 3, 4, body=0))
    for t in range(3, 8):
        image, truth = frame_and_points(motion(2 * t))
        assert np.abs(body.step(image)[1][:, :2] - truth).max() < 2


def test_labels_of_every_object_of_a_body_count(fast_backend: Backend) -> None:
    """A frame with labels for two objects is one labelled frame."""
    other, truth = frame_and_points(motion(40))
    _, points = frame_and_points(motion())
    labels = [(other, part(1, truth, 0, 1)), (other, part(2, truth, 2, 3))]
    body = body_of(fast_backend, [part(1, points, 0, 1), part(2, points, 2, 3)], labels)
    assert len(body._tracker._views) == 2
    assert np.isfinite(body._tracker._views[0].labelled.points).all()
