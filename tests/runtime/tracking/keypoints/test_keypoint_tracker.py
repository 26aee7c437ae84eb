"""A body's points are tracked to two pixels however it moves, with further labels, and without growth of memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from helpers.textured_body import POINTS, SIZE, frame_and_points, motion

from corrflow.runtime.backends.base import Backend
from corrflow.runtime.tracking.keypoints.keypoint_tracker import MAX_VIEWS, KeypointTracker
from corrflow.runtime.types import MIN_POINT_CONFIDENCE

MOTIONS: dict[str, Callable[[int], np.ndarray]] = {
    "moves": lambda t: motion(0, 1, (100 + 6 * t, 100 + 2 * t)),
    "turns by 90 degrees": lambda t: motion(4.5 * t),
    "grows": lambda t: motion(0, 1 + 0.025 * t),
    "moves, turns and shrinks": lambda t: motion(4.5 * t, 1 - 0.015 * t, (120 + 3 * t, 110 + t)),
}


def distances(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found - truth, axis=1)


def tracker_at(backend: Backend, transform: np.ndarray, *others) -> KeypointTracker:
    image, points = frame_and_points(transform)
    return KeypointTracker(backend, backend.artifact.settings, image, points, others)


def without(points: np.ndarray, *columns: int) -> np.ndarray:
    """Return points of which some have no label."""
    some = points.copy()
    some[list(columns)] = np.nan
    return some


@pytest.mark.parametrize("transform_at", MOTIONS.values(), ids=MOTIONS.keys())
def test_a_body_is_tracked_to_two_pixels(fast_backend: Backend, transform_at) -> None:
    tracker = tracker_at(fast_backend, transform_at(0))
    for t in range(1, 21):
        image, truth = frame_and_points(transform_at(t))
        points, confidence = tracker.step(image)
        assert distances(points, truth).max() < 2
        assert points.dtype == np.float64 and confidence.dtype == np.float32
        assert (confidence > MIN_POINT_CONFIDENCE).all() and (confidence <= 1).all()


def test_a_large_frame_is_tracked_at_its_own_resolution(fast_backend: Backend) -> None:
    """The crop of a body as large as here is scaled by about a half; its points are exact to a pixel of the video."""
    frames = [
        cv2.resize(frame_and_points(motion(2 * t))[0], None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        for t in range(6)
    ]
    truths = [4 * frame_and_points(motion(2 * t))[1] + 1.5 for t in range(6)]
    tracker = KeypointTracker(fast_backend, fast_backend.artifact.settings, frames[0], truths[0])
    for image, truth in zip(frames[1:], truths[1:], strict=True):
        assert distances(tracker.step(image)[0], truth).max() < 2


def test_points_that_leave_the_picture_have_no_confidence(fast_backend: Backend) -> None:
    tracker = tracker_at(fast_backend, motion(0, 1, (110, 120)))
    for t in range(1, 17):
        image, truth = frame_and_points(motion(0, 1, (110 - 6 * t, 120)))
        points, confidence = tracker.step(image)
        inside = (truth[:, 0] > 3) & (truth[:, 0] < SIZE[1] - 4)
        outside = truth[:, 0] < -6
        assert (confidence[outside] == 0).all()
        assert distances(points, truth)[inside].max() < 3
    assert outside.sum() == 2 and inside.sum() == 3


@pytest.mark.parametrize("grey", [0, 100, 104, 108, 255])
def test_a_covered_body_is_unsure_and_found_again_at_once(fast_backend: Backend, grey: int) -> None:
    """On a flat cover all places are alike, so the crop must not follow the points there."""
    tracker = tracker_at(fast_backend, motion())
    image, truth = frame_and_points(motion(0, 1, (161, 121)))
    seen = tracker.step(image)[1]
    covered = image.copy()
    covered[60:180, 90:230] = grey
    hidden = np.array([tracker.step(covered)[1] for _ in range(3)])
    assert hidden.max() < MIN_POINT_CONFIDENCE < 0.8 < seen.min()
    points, again = tracker.step(image)
    assert distances(points, truth).max() < 2
    assert again.min() > 0.8


def test_points_in_sight_are_tracked_beside_hidden_ones(fast_backend: Backend) -> None:
    tracker = tracker_at(fast_backend, motion())
    for t in range(1, 6):
        image, truth = frame_and_points(motion(0, 1, (160 + 2 * t, 120)))
        image[60:180, 90 + 2 * t : 150 + 2 * t] = 100
        points, confidence = tracker.step(image)
        assert distances(points, truth)[[1, 2, 4]].max() < 2
        assert confidence[[0, 3]].max() < confidence[[1, 2, 4]].min()


def test_a_single_point_is_tracked(fast_backend: Backend) -> None:
    image, truth = frame_and_points(motion())
    tracker = KeypointTracker(fast_backend, fast_backend.artifact.settings, image, truth[2:3])
    for t in range(1, 8):
        image, truth = frame_and_points(motion(0, 1, (160 + 4 * t, 120 - 2 * t)))
        points, _ = tracker.step(image)
        assert distances(points, truth[2:3]).max() < 2


def test_points_without_any_label_are_not_tracked(fast_backend: Backend) -> None:
    image, truth = frame_and_points(motion())
    tracker = KeypointTracker(fast_backend, fast_backend.artifact.settings, image, without(truth, 1, 3))
    points, confidence = tracker.step(image)
    np.testing.assert_array_equal(np.isnan(points).all(1), [False, True, False, True, False])
    assert (confidence[[1, 3]] == 0).all() and (confidence[[0, 2, 4]] > 0.5).all()


def test_labels_of_other_frames_may_have_other_points(fast_backend: Backend) -> None:
    """Each labelled frame lacks one of the points, and a point without a label here is not tracked.

    An empty label would say that the point is elsewhere: its copy was 7 pixels off.
    """
    image, truth = frame_and_points(motion())
    later = [frame_and_points(motion(20 * k, 1, (160 + 8 * k, 120))) for k in (1, 2, 3)]
    others = [(shown, without(places, k)) for k, (shown, places) in enumerate(later)]
    tracker = KeypointTracker(fast_backend, fast_backend.artifact.settings, image, without(truth, 4), others)
    for t in range(1, 13):
        image, truth = frame_and_points(motion(5 * t, 1, (160 + 2 * t, 120)))
        points, confidence = tracker.step(image)
        assert distances(points[:4], truth[:4]).max() < 2
        assert np.isnan(points[4]).all() and confidence[4] == 0


def test_a_label_of_another_time_helps_where_the_body_looks_like_it(fast_backend: Backend) -> None:
    """The body changes its looks at once. Only the label of its later looks says where its points are."""
    other = frame_and_points(motion(0, 1, (170, 125)), seed=20)
    sure = []
    for others in ((), (other,)):
        tracker = tracker_at(fast_backend, motion(), *others)
        points, _ = tracker.step(frame_and_points(motion(0, 1, (163, 121)), seed=20)[0])
        sure.append(distances(points, frame_and_points(motion(0, 1, (163, 121)))[1]).max() < 2)
    assert sure == [False, True]


def test_a_restart_with_some_points_leaves_the_others_where_they_are(fast_backend: Backend) -> None:
    """The second point gets its first label late; with it, the others are no less exact than before."""
    image, truth = frame_and_points(motion())
    tracker = KeypointTracker(fast_backend, fast_backend.artifact.settings, image, without(truth, 1))
    for t in range(1, 9):
        image, truth = frame_and_points(motion(5 * t))
        points, _ = tracker.step(image)
        assert distances(points, truth)[[0, 2, 3, 4]].max() < 2
        assert np.isnan(points[1]).all() if t < 5 else distances(points, truth)[1] < 2
        if t == 4:
            tracker.restart(image, without(truth, 0, 2, 3, 4))


def test_points_of_no_kept_label_go_on(fast_backend: Backend) -> None:
    """Labels of some points push those of the others out of the views that are kept."""
    tracker = tracker_at(fast_backend, motion())
    for t in range(1, MAX_VIEWS + 3):
        image, truth = frame_and_points(motion(3 * t, 1, (160 + 3 * t, 120)))
        points, confidence = tracker.step(image)
        assert distances(points, truth).max() < 2
        assert (confidence > 0.3).all()
        tracker.restart(image, without(truth, 0, 1))


def test_stopped_points_have_no_place_and_change_no_other(fast_backend: Backend) -> None:
    tracker = tracker_at(fast_backend, motion())
    tracker.stop([0, 4])
    for t in range(1, 6):
        image, truth = frame_and_points(motion(4 * t))
        points, confidence = tracker.step(image)
        assert np.isnan(points[[0, 4]]).all() and (confidence[[0, 4]] == 0).all()
        assert distances(points[1:4], truth[1:4]).max() < 2
    tracker.stop([1, 2, 3])
    points, confidence = tracker.step(image)
    assert np.isnan(points).all() and not confidence.any()


def test_equal_frames_give_equal_points(fast_backend: Backend) -> None:
    found = []
    for _ in range(2):
        tracker = tracker_at(fast_backend, motion())
        found.append([tracker.step(frame_and_points(motion(4 * t))[0]) for t in range(1, 5)])
    for (points, confidence), (other, also) in zip(*found, strict=True):
        np.testing.assert_array_equal(points, other)
        np.testing.assert_array_equal(confidence, also)


def test_memory_does_not_grow(fast_backend: Backend) -> None:
    tracker = tracker_at(fast_backend, motion())
    images = [frame_and_points(motion(4 * np.sin(t)))[0] for t in range(10)]
    for t in range(10):
        tracker.step(images[t])
    tracemalloc.start()
    try:
        sizes = []
        for t in range(60):
            tracker.step(images[t % 10])
            if t % 10 == 0:
                tracker.restart(images[t % 10], POINTS + motion()[:, 2], [(images[0], POINTS + motion()[:, 2])] * 12)
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[-1] < sizes[1] + 100_000
    assert len(tracker._views) <= MAX_VIEWS
