"""Windows go along with the objects: where they are aimed, and that what crosses the picture is not lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corrflow.plugins.errors import CorrflowError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.spec import Reference
from corrflow.runtime.artifact import TrackingSettings, load_artifact, settings_from_json
from corrflow.runtime.backend import Backend, open_backend
from corrflow.runtime.follow import MOST_WINDOWS, NEAR, Followed, Follower
from corrflow.runtime.memory import MemoryRing, PackedRing
from corrflow.runtime.presence import PresenceSettings
from corrflow.runtime.tracker import Tracker
from corrflow.runtime.tracks import KeypointsObject, MaskObject, Tracks

SETTINGS = TrackingSettings(anchors=(0,), ages=(1, 2, 3), radius=(8, 12), dilation=(1, 2), follow=True)
ONE_MASK = [Followed(slice(0, 1), False)]


def block(top: int, left: int, size: int = 4) -> np.ndarray:
    """Labels [1, 60, 80] of a square."""
    label = np.zeros((1, 60, 80), np.float32)
    label[0, top : top + size, left : left + size] = 1
    return label


def test_windows_of_the_given_frame_are_both_where_it_was_and_moved_and_those_of_recent_frames_are_moved() -> None:
    follower = Follower(SETTINGS, ONE_MASK, block(10, 10))
    for t in range(1, 5):
        follower.see(block(10 + t, 10 + 5 * t))
    # The object is at (14, 30) now; frame 3 shows it at (13, 25).
    assert follower.aims([0, 3, 2]) == {0: [(0, 0), (-4, -20)], 3: [(-1, -5)], 2: [(-2, -10)]}


def test_windows_that_nearly_coincide_are_searched_once() -> None:
    follower = Follower(SETTINGS, ONE_MASK, block(10, 10))
    follower.see(block(10, 10 + NEAR - 1))
    assert follower.aims([0]) == {0: [(0, 0)]}
    follower.see(block(10, 10 + NEAR))
    assert follower.aims([0]) == {0: [(0, 0), (0, -NEAR)]}


def test_what_is_out_of_sight_stays_where_it_was_last() -> None:
    follower = Follower(SETTINGS, ONE_MASK, block(10, 10))
    follower.see(block(10, 20))
    for _ in range(9):
        follower.see(np.zeros((1, 60, 80), np.float32))
    assert follower.aims([0]) == {0: [(0, 0), (0, -10)]}


def test_objects_that_move_apart_each_have_a_window_up_to_a_number() -> None:
    objects = [Followed(slice(k, k + 1), False) for k in range(6)]
    follower = Follower(SETTINGS, objects, np.concatenate([block(9 * k, 10) for k in range(6)]))
    follower.see(np.concatenate([block(9 * k, 10 + 10 * k) for k in range(6)]))
    aims = follower.aims([0])
    assert aims[0] == [(0, 0), (0, -10), (0, -20), (0, -30)] and len(aims[0]) == MOST_WINDOWS


def test_points_move_a_window_by_their_median() -> None:
    follower = Follower(
        SETTINGS, [Followed(slice(0, 3), True)], np.concatenate([block(10, 10 * k, 1) for k in (1, 2, 3)])
    )
    follower.see(np.concatenate([block(15, 10, 1), block(16, 21, 1), block(40, 70, 1)]))
    assert follower.aims([0, 1]) == {0: [(0, 0), (-6, -1)], 1: [(0, 0)]}
    follower.see(block(16, 10, 1).repeat(3, 0))
    assert follower.aims([1]) == {1: [(0, 0)]}  # recent windows stay
    follower.see(np.concatenate([block(15, 10, 1), block(16, 21, 1), block(40, 70, 1)]))
    follower.see(np.zeros((3, 60, 80), np.float32))
    assert follower.aims([0]) == {0: [(0, 0), (-6, -1)]}


def test_what_is_kept_does_not_grow() -> None:
    follower = Follower(replace(SETTINGS, radius=(8,), dilation=(1,), anchors=(0, 7)), ONE_MASK, block(10, 10))
    for t in range(50):
        follower.see(block(10, 10 + t % 3))
    assert sorted(follower._places) == [0, 7, 48, 49, 50]


@pytest.mark.parametrize("packed", [False, True])
def test_a_memory_names_a_frame_once_for_each_of_its_moves(packed: bool) -> None:
    if packed and cpu.unavailable():
        pytest.skip(cpu.unavailable())
    ring = (
        PackedRing(SETTINGS, 1, (4, 5), 2, 16, lambda f: cpu.pack(f, 16))
        if packed
        else MemoryRing(SETTINGS, 1, (4, 5), 2)
    )
    for _ in range(6):
        ring.remember(np.ones((2, 4, 5), np.float32), np.ones((1, 4, 5), np.float32))
    assert sorted(ring.frames) == [0, 3, 4, 5]
    view = ring.aimed({0: [(0, 0), (-4, 7)], 4: [(1, 2)]})
    _, values, attributes, named = view.named_references()
    frame_in = dict(zip((reference.picture for reference in ring.named_references()[3]), ring.frames, strict=True))
    found = [(frame_in[each.picture], each.down, each.right) for each in named]
    assert sorted(found) == [(0, -4, 7), (0, 0, 0), (3, 0, 0), (4, 1, 2), (5, 0, 0)]
    windows = {place: attributes.window(each.window) for place, each in zip(found, named, strict=True)}
    assert windows[0, 0, 0] == windows[0, -4, 7] == (8, 1) and windows[4, 1, 2] == windows[5, 0, 0] == (12, 2)
    assert len(values) >= len({each.picture for each in named})
    assert ring.named_references()[3] == tuple(
        Reference(slot, slot) for slot in range(4)
    )  # the view's aims are its own


@pytest.fixture(scope="module", params=["onnxruntime", "onnx-function"])
def backend(small_artifact: Path, request: pytest.FixtureRequest):
    opened = open_backend(request.param, load_artifact(small_artifact), threads=1)
    yield opened
    opened.close()


def run(backend: Backend, settings: TrackingSettings, frames: np.ndarray, objects: list) -> list[Tracks]:
    tracker = Tracker(backend, settings)
    return [tracker.start(frames[0], objects), *(tracker.step(frame) for frame in frames[1:])]


def crossing(count: int = 12, step: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A red square that crosses a grey picture of texture, `step` pixels a frame, and its masks."""
    generator = np.random.default_rng(1)
    background = generator.integers(60, 120, (64, 120, 3), np.uint8)
    texture = generator.integers(0, 60, (20, 20, 1), np.uint8)
    frames, masks = np.repeat(background[None], count, 0), np.zeros((count, 64, 120), bool)
    for t in range(count):
        frames[t, 20:40, 8 + step * t : 28 + step * t] = np.array([30, 30, 180], np.uint8) + texture
        masks[t, 20:40, 8 + step * t : 28 + step * t] = True
    return frames, masks


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def test_what_leaves_the_window_of_the_given_frame_is_followed(backend: Backend) -> None:
    """The given frame alone is searched, four cells to each side; the square goes sixteen."""
    frames, masks = crossing()
    alone = replace(backend.artifact.settings, ages=(), radius=(4,))
    backend_takes_it = backend.any_attributes
    if not backend_takes_it:
        alone = replace(alone, radius=backend.artifact.settings.radius)
    at_the_end = [
        overlap(run(backend, replace(alone, follow=follow), frames, [MaskObject(1, masks[0])])[-1].mask == 1, masks[-1])
        for follow in (False, True)
    ]
    assert at_the_end[0] < 0.2
    if backend_takes_it:
        assert at_the_end[1] > 0.6
    else:  # its windows stay where they are
        assert at_the_end[1] == at_the_end[0]


@pytest.mark.parametrize("presence", [None, PresenceSettings()], ids=["unwatched", "watched"])
def test_adding_correcting_and_removing_changes_no_bit_of_another(backend: Backend, presence) -> None:
    """Objects given together share windows; those that come and go later have no part in them."""
    frames, masks = crossing()
    still = np.roll(masks[0], (20, 60), (0, 1))
    points = KeypointsObject(7, np.array([[12.0, 24.0], [20.0, 30.0]], np.float32), ("a", "b"))
    settings = replace(backend.artifact.settings, follow=True)
    given = [MaskObject(1, masks[0]), points, MaskObject(3, still)]
    left, changed = Tracker(backend, settings, presence), Tracker(backend, settings, presence)
    for tracker in (left, changed):
        tracker.start(frames[0], given)
    for t, frame in enumerate(frames[1:], 1):
        expected, got = ({track.id: track for track in tracker.step(frame).objects} for tracker in (left, changed))
        for own in (1, 7):
            np.testing.assert_array_equal(expected[own].points, got[own].points)  # pyright: ignore[reportArgumentType]
            assert (expected[own].confidence, expected[own].box) == (got[own].confidence, got[own].box)
        if t == 2:
            changed.remove(3)
            changed.add([MaskObject(4, still)])
        if t == 4:
            changed.correct(MaskObject(4, np.roll(still, -5, 1)))


def test_engines_have_no_windows_that_move(monkeypatch: pytest.MonkeyPatch) -> None:
    from corrflow.runtime.device_backend import DeviceMemory

    memory = DeviceMemory.__new__(DeviceMemory)
    with pytest.raises(CorrflowError, match="any attributes, got engines"):
        memory.aimed({})


def test_settings_from_before_do_not_follow() -> None:
    old = {"rows": 480, "anchors": [0], "ages": [1], "radius": [8], "dilation": [1], "top_k": 5, "temperature": 0.07}
    assert not settings_from_json(old).follow
    assert settings_from_json({**old, "follow": True}).follow
