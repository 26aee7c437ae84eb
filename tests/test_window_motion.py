"""Windows go along with the objects: where they are aimed, and that what crosses the picture is not lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corrflow.export.propagate_graph import propagate_model
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.spec import SearchWindow
from corrflow.runtime.artifacts.artifact import PROPAGATE, load_artifact
from corrflow.runtime.backends.base import Backend
from corrflow.runtime.backends.memory import MemoryRing, PackedRing
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import MAX_WINDOWS, TrackingSettings, settings_from_json
from corrflow.runtime.tracking.occlusion import OcclusionSettings
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.tracking.window_motion import NEAR, Followed, WindowMotion
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject

SETTINGS = TrackingSettings(
    permanent_frames=(0,), recent_offsets=(1, 2, 3), radius=(8, 12), dilation=(1, 2), move_windows=True
)
ONE_MASK = [Followed(slice(0, 1), False)]


def block(top: int, left: int, size: int = 4) -> np.ndarray:
    """Labels [1, 60, 80] of a square."""
    label = np.zeros((1, 60, 80), np.float32)
    label[0, top : top + size, left : left + size] = 1
    return label


def test_windows_of_the_given_frame_are_both_where_it_was_and_moved_and_those_of_recent_frames_are_moved() -> None:
    follower = WindowMotion(SETTINGS, ONE_MASK, block(10, 10))
    for t in range(1, 5):
        follower.see(block(10 + t, 10 + 5 * t))
    # The object is at (14, 30) now; frame 3 shows it at (13, 25).
    assert follower.aims([0, 3, 2]) == {0: [(0, 0), (-4, -20)], 3: [(-1, -5)], 2: [(-2, -10)]}


def test_windows_that_nearly_coincide_are_searched_once() -> None:
    follower = WindowMotion(SETTINGS, ONE_MASK, block(10, 10))
    follower.see(block(10, 10 + NEAR - 1))
    assert follower.aims([0]) == {0: [(0, 0)]}
    follower.see(block(10, 10 + NEAR))
    assert follower.aims([0]) == {0: [(0, 0), (0, -NEAR)]}


def test_what_is_out_of_sight_stays_where_it_was_last() -> None:
    follower = WindowMotion(SETTINGS, ONE_MASK, block(10, 10))
    follower.see(block(10, 20))
    for _ in range(9):
        follower.see(np.zeros((1, 60, 80), np.float32))
    assert follower.aims([0]) == {0: [(0, 0), (0, -10)]}


def test_objects_that_move_apart_each_have_a_window_up_to_a_number() -> None:
    objects = [Followed(slice(k, k + 1), False) for k in range(6)]
    follower = WindowMotion(SETTINGS, objects, np.concatenate([block(9 * k, 10) for k in range(6)]))
    follower.see(np.concatenate([block(9 * k, 10 + 10 * k) for k in range(6)]))
    aims = follower.aims([0])
    assert aims[0] == [(0, 0), (0, -10), (0, -20), (0, -30)] and len(aims[0]) == MAX_WINDOWS


def test_points_move_a_window_by_their_median() -> None:
    follower = WindowMotion(
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
    follower = WindowMotion(
        replace(SETTINGS, radius=(8,), dilation=(1,), permanent_frames=(0, 7)), ONE_MASK, block(10, 10)
    )
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
        ring.add_frame(np.ones((2, 4, 5), np.float32), np.ones((1, 4, 5), np.float32))
    assert sorted(ring.frames) == [0, 3, 4, 5]
    view = ring.aimed({0: [(0, 0), (-4, 7)], 4: [(1, 2)]})
    _, values, attributes, named = view.named_references()
    frame_in = dict(zip((reference.frame for reference in ring.named_references()[3]), ring.frames, strict=True))
    found = [(frame_in[each.frame], each.dy, each.dx) for each in named]
    assert sorted(found) == [(0, -4, 7), (0, 0, 0), (3, 0, 0), (4, 1, 2), (5, 0, 0)]
    windows = {place: attributes.window(each.window) for place, each in zip(found, named, strict=True)}
    assert windows[0, 0, 0] == windows[0, -4, 7] == (8, 1) and windows[4, 1, 2] == windows[5, 0, 0] == (12, 2)
    assert len(values) >= len({each.frame for each in named})
    assert ring.named_references()[3] == tuple(
        SearchWindow(slot, slot) for slot in range(4)
    )  # the view's aims are its own


@pytest.fixture(scope="module", params=["onnxruntime", "onnx-function"])
def backend(following_artifact: Path, request: pytest.FixtureRequest):
    if request.param == "onnxruntime" and cpu.unavailable():
        pytest.skip(cpu.unavailable())
    opened = open_backend(request.param, load_artifact(following_artifact), threads=1)
    yield opened
    opened.close()


def run(backend: Backend, settings: TrackingSettings, frames: np.ndarray, objects: list) -> list[FrameResult]:
    tracker = Tracker(backend, settings)
    return [tracker.start(frames[0], objects), *(tracker.step(frame) for frame in frames[1:])]


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def test_what_leaves_the_window_of_the_given_frame_is_followed(backend: Backend, crossing) -> None:
    """The given frame alone is searched, four cells to each side; the square goes sixteen."""
    frames, masks = crossing
    alone = replace(backend.artifact.settings, recent_offsets=())
    at_the_end = [
        overlap(
            run(backend, replace(alone, move_windows=follow), frames, [MaskObject(1, masks[0])])[-1].mask == 1,
            masks[-1],
        )
        for follow in (False, True)
    ]
    assert at_the_end[0] < 0.2 and at_the_end[1] > 0.6


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())
@pytest.mark.parametrize(
    "recent_offsets", [(), (1, 2, 3), (1, 3)], ids=["the given frame", "and the last three", "with gaps"]
)
def test_the_onnx_function_follows_as_the_fused_kernel_does(following_artifact: Path, recent_offsets, crossing) -> None:
    """Two objects that move apart, a point, and one that joins late, on almost every pixel of every frame."""
    frames, masks = crossing
    artifact = load_artifact(following_artifact)
    settings = replace(artifact.settings, recent_offsets=recent_offsets, short_side=0)
    found, moved = [], 0
    for backend in (OnnxRuntimeBackend(artifact, 1), OnnxRuntimeBackend(artifact, 1, fused=True, bits=32)):
        tracker = Tracker(backend, settings)
        still = np.roll(masks[0], (22, 62), (0, 1))
        point = KeypointsObject(7, np.array([[12.0, 24.0]], np.float32), ("a",))
        results = [tracker.start(frames[0], [MaskObject(1, masks[0]), point, MaskObject(3, still)])]
        for t, frame in enumerate(frames[1:], 1):
            results.append(tracker.step(frame))
            if t == 4:
                tracker.add([MaskObject(5, np.roll(masks[t], 20, 0))])
        follower = tracker._groups[0].follower
        assert follower is not None
        moved += max(len(moves) for moves in follower.aims([0]).values()) > 1
        found.append(np.stack([one.mask for one in results]))
        backend.close()
    assert moved == 2, "windows were moved on both"
    assert (found[0] == found[1]).mean() >= 0.999


def test_a_propagation_from_before_has_windows_that_stay(
    following_artifact: Path, crossing, caplog: pytest.LogCaptureFixture
) -> None:
    """Artifacts exported earlier say that they follow, and have a graph of three inputs: they track, and it is said."""
    frames, masks = crossing
    artifact = load_artifact(following_artifact)
    attributes = artifact.settings.attributes
    before = propagate_model(attributes, artifact.channels).SerializeToString()
    found = []
    for files, follow in (({PROPAGATE: before}, True), ({PROPAGATE: before}, False), ({}, False), ({}, True)):
        own = replace(artifact, files=artifact.files | files)
        backend = open_backend("onnx-function", own, threads=1)
        assert backend.supports_window_offsets == (not files)
        caplog.clear()
        with caplog.at_level("INFO", logger="corrflow"):
            tracks = run(backend, replace(own.settings, move_windows=follow), frames, [MaskObject(1, masks[0])])
        said = [message for message in caplog.messages if "windows stay where they are" in message]
        assert len(said) == bool(files and follow)
        found.append(np.stack([one.mask for one in tracks]))
        backend.close()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[3]).any()


@pytest.mark.parametrize("hidden", [False, True], ids=["in sight", "hidden"])
@pytest.mark.parametrize("presence", [None, OcclusionSettings()], ids=["unwatched", "redetect"])
def test_adding_correcting_and_removing_changes_no_bit_of_another(backend: Backend, presence, hidden, crossing) -> None:
    """Objects given together share windows; those that come and go later have no part in them."""
    frames, masks = crossing
    still = np.roll(masks[0], (22, 62), (0, 1))
    if hidden:  # from the second frame on: redetect, it is lost, and windows stay where it was
        frames = frames.copy()
        frames[1:, still] = 255 - frames[1:, still]
    points = KeypointsObject(7, np.array([[12.0, 24.0], [20.0, 30.0]], np.float32), ("a", "b"))
    settings = replace(backend.artifact.settings, move_windows=True)
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


def test_settings_from_before_do_not_follow() -> None:
    old = {
        "short_side": 480,
        "permanent_frames": [0],
        "recent_offsets": [1],
        "radius": [8],
        "dilation": [1],
        "top_k": 5,
        "temperature": 0.07,
    }
    assert not settings_from_json(old).move_windows
    assert settings_from_json({**old, "move_windows": True}).move_windows
