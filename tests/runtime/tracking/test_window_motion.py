"""Search windows follow the objects: their offsets, and an object that crosses the frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.recording import RecordingBackend

from corrflow.errors import CorrflowError
from corrflow.export.propagate_graph import propagate_model
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.spec import Attributes, SearchWindow
from corrflow.runtime.artifacts.artifact import PROPAGATE, load_artifact
from corrflow.runtime.backends.base import Backend
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.backends.search_plan import ReferenceFrame, SearchPlan
from corrflow.runtime.settings import MAX_WINDOWS, TrackingSettings, settings_from_json
from corrflow.runtime.tracking.object_motion import FeatureBlocks
from corrflow.runtime.tracking.occlusion import OcclusionSettings
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.tracking.window_motion import MIN_WINDOW_DISTANCE, WindowMotion
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject

SETTINGS = TrackingSettings(
    permanent_frames=(0,), recent_offsets=(1, 2, 3), radius=(8, 12), dilation=(1, 2), move_windows=True
)
ONE_MASK = [0]


def references(*frames: int) -> list[ReferenceFrame]:
    """Reference frames with these numbers."""
    return [ReferenceFrame(slot, frame, 1) for slot, frame in enumerate(frames)]


def block(top: int, left: int, size: int = 4) -> np.ndarray:
    """Return the soft mask [1, 60, 80] of a square."""
    soft_mask = np.zeros((1, 60, 80), np.float32)
    soft_mask[0, top : top + size, left : left + size] = 1
    return soft_mask


def test_the_annotated_frame_is_searched_at_both_positions_and_recent_frames_at_the_shifted_one() -> None:
    motion = WindowMotion(SETTINGS, ONE_MASK, block(10, 10))
    for t in range(1, 5):
        motion.observe(block(10 + t, 10 + 5 * t))
    # The object is at (14, 30) now; frame 3 shows it at (13, 25).
    assert motion.offsets(references(0, 3, 2)) == {0: [(0, 0), (-4, -20)], 3: [(-1, -5)], 2: [(-2, -10)]}


def test_windows_that_nearly_coincide_are_searched_once() -> None:
    motion = WindowMotion(SETTINGS, ONE_MASK, block(10, 10))
    motion.observe(block(10, 10 + MIN_WINDOW_DISTANCE - 1))
    assert motion.offsets(references(0)) == {0: [(0, 0)]}
    motion.observe(block(10, 10 + MIN_WINDOW_DISTANCE))
    assert motion.offsets(references(0)) == {0: [(0, 0), (0, -MIN_WINDOW_DISTANCE)]}


def test_a_hidden_object_stays_at_its_last_position() -> None:
    motion = WindowMotion(SETTINGS, ONE_MASK, block(10, 10))
    motion.observe(block(10, 20))
    for _ in range(9):
        motion.observe(np.zeros((1, 60, 80), np.float32))
    assert motion.offsets(references(0)) == {0: [(0, 0), (0, -10)]}


def test_a_motion_that_resumes_keeps_a_hidden_object_where_it_was() -> None:
    before = WindowMotion(SETTINGS, ONE_MASK, block(10, 10))
    before.observe(block(10, 20))
    motion = WindowMotion(SETTINGS, ONE_MASK, block(10, 10))
    motion.resume(before.current)
    motion.observe(np.zeros((1, 60, 80), np.float32))
    assert motion.offsets(references(0, 1)) == {0: [(0, 0), (0, -10)], 1: [(0, 0)]}


def test_objects_that_move_apart_each_have_a_window_up_to_max_windows() -> None:
    motion = WindowMotion(SETTINGS, range(6), np.concatenate([block(9 * k, 10) for k in range(6)]))
    motion.observe(np.concatenate([block(9 * k, 10 + 10 * k) for k in range(6)]))
    offsets = motion.offsets(references(0))
    assert offsets[0] == [(0, 0), (0, -10), (0, -20), (0, -30)] and len(offsets[0]) == MAX_WINDOWS


def test_recent_frames_are_searched_where_an_object_has_moved_far_as_well() -> None:
    features = np.random.default_rng(0).standard_normal((8, 60, 80)).astype(np.float32)
    moved = features.copy()
    moved[:, 10:14, 40:44], moved[:, 10:14, 10:14] = features[:, 10:14, 10:14], features[:, 30:34, 10:14]
    motion = WindowMotion(SETTINGS, ONE_MASK, block(10, 8))
    motion.observe(block(10, 10))
    motion.measure(FeatureBlocks(features), FeatureBlocks(moved))
    assert motion.offsets(references(0, 1)) == {0: [(0, 0), (0, -32)], 1: [(0, 0), (0, -30)]}
    motion.measure(FeatureBlocks(features), FeatureBlocks(features))
    assert motion.offsets(references(0, 1)) == {0: [(0, 0)], 1: [(0, 0)]}


def test_masks_that_move_apart_each_have_a_window_in_recent_frames() -> None:
    motion = WindowMotion(SETTINGS, range(2), np.concatenate([block(10, 10), block(40, 40)]))
    motion.observe(np.concatenate([block(10, 15), block(40, 30)]))
    motion.observe(np.concatenate([block(10, 20), block(40, 20)]))
    assert motion.offsets(references(1, 2)) == {1: [(0, -5), (0, 10)], 2: [(0, 0)]}


def test_positions_are_stored_for_possible_references_alone() -> None:
    settings = replace(SETTINGS, radius=(8,), dilation=(1,), permanent_frames=(0, 7))
    motion = WindowMotion(settings, ONE_MASK, block(10, 10))
    for t in range(50):
        motion.observe(block(10, 10 + t % 3))
    assert set(motion.offsets(references(0, 7, 48, 49, 50))) == {0, 7, 48, 49, 50}
    for frame in (1, 47):
        with pytest.raises(KeyError):
            motion.offsets(references(frame))


PARAMS = Attributes((8, 12), (1, 2), 10, 0.07)


def test_a_plan_searches_every_frame_once_in_the_order_of_the_tie_rule() -> None:
    stored = [ReferenceFrame(0, 0, 6), ReferenceFrame(1, 4, 2), ReferenceFrame(3, 3, 3)]
    plan = SearchPlan.of(stored, PARAMS)
    assert plan.windows == (SearchWindow(0, 0), SearchWindow(1, 1), SearchWindow(3, 2))
    assert plan.slots == [0, 1, 3] and plan.params is PARAMS and not plan.moves


def test_a_plan_searches_a_frame_once_for_each_of_its_offsets() -> None:
    stored = [ReferenceFrame(0, 0, 6), ReferenceFrame(1, 4, 2), ReferenceFrame(2, 5, 1)]
    plan = SearchPlan.of(stored, PARAMS, {0: [(0, 0), (-4, 7)], 4: [(1, 2)], 9: [(5, 5)]})
    assert plan.windows == (
        SearchWindow(0, 0), SearchWindow(0, 0, -4, 7), SearchWindow(1, 1, 1, 2), SearchWindow(2, 2)
    )  # fmt: skip
    assert plan.slots == [0, 0, 1, 2] and plan.moves
    assert [plan.params.window(window.window) for window in plan.windows] == [(8, 1), (8, 1), (12, 2), (12, 2)]


@pytest.mark.parametrize(
    ("offsets", "moves"),
    [({}, False), ({0: [(0, 0)]}, False), ({0: [(0, 1)]}, True), ({0: [(0, 0), (0, 0)]}, True)],
    ids=["none", "in place", "shifted", "twice"],
)
def test_a_plan_moves_where_a_window_is_shifted_or_searched_twice(offsets: dict, moves: bool) -> None:
    assert SearchPlan.of([ReferenceFrame(0, 0, 1)], PARAMS, offsets).moves is moves


def test_a_moved_plan_is_refused_by_a_backend_without_window_offsets(small_artifact: Path) -> None:
    artifact = load_artifact(small_artifact)
    built_in = propagate_model(artifact.settings.attributes, artifact.channels).SerializeToString()
    backend = OnnxRuntimeBackend(replace(artifact, files=artifact.files | {PROPAGATE: built_in}), 1)
    assert not backend.supports_window_offsets
    features = backend.encode(np.zeros((32, 32, 3), np.uint8))
    memory = backend.new_memory(artifact.settings, 8, (8, 8))
    memory.add_frame(features, np.ones((8, 8, 8), np.float32))
    plan = SearchPlan.of(memory.references, artifact.settings.attributes)
    assert backend.propagate(features, memory, plan).shape == (8, 8, 8)
    moved = SearchPlan.of(memory.references, artifact.settings.attributes, {0: [(0, 0), (2, 2)]})
    with pytest.raises(CorrflowError, match="references by index"):
        backend.propagate(features, memory, moved)
    backend.close()


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
        recorder = RecordingBackend(backend)
        tracker = Tracker(recorder, settings)
        still = np.roll(masks[0], (22, 62), (0, 1))
        point = KeypointsObject(7, np.array([[12.0, 24.0]], np.float32), ("a",))
        results = [tracker.start(frames[0], [MaskObject(1, masks[0]), point, MaskObject(3, still)])]
        for t, frame in enumerate(frames[1:], 1):
            results.append(tracker.step(frame))
            if t == 4:
                tracker.add([MaskObject(5, np.roll(masks[t], 20, 0))])
        moved += any(plan.moves for plan in recorder.plans)
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
        said = [message for message in caplog.messages if "search windows do not follow the objects" in message]
        assert len(said) == bool(files and follow)
        found.append(np.stack([one.mask for one in tracks]))
        backend.close()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[3]).any()


# The object that is corrected after frame 4 begins to merge after frame 5; the memory of three frames is filled then.
MERGED = 5 + 3 + 1


@pytest.mark.parametrize("hidden", [False, True], ids=["in sight", "hidden"])
@pytest.mark.parametrize("occlusion", [None, OcclusionSettings()], ids=["no occlusion handling", "occlusion handling"])
def test_adding_correcting_and_removing_changes_no_bit_of_another_until_groups_are_merged(
    backend: Backend, occlusion, hidden, crossing
) -> None:
    """Objects given together share windows; those that come and go later have no part in them before the merge."""
    frames, masks = crossing
    still = np.roll(masks[0], (22, 62), (0, 1))
    if hidden:  # from the second frame on: redetect, it is lost, and windows stay where it was
        frames = frames.copy()
        frames[1:, still] = 255 - frames[1:, still]
    points = KeypointsObject(7, np.array([[12.0, 24.0], [20.0, 30.0]], np.float32), ("a", "b"))
    settings = replace(backend.artifact.settings, move_windows=True)
    given = [MaskObject(1, masks[0]), points, MaskObject(3, still)]
    left, changed = Tracker(backend, settings, occlusion), Tracker(backend, settings, occlusion)
    for tracker in (left, changed):
        tracker.start(frames[0], given)
    for t, frame in enumerate(frames[1:], 1):
        results = [tracker.step(frame) for tracker in (left, changed)]
        expected, got = ({track.id: track for track in result.objects} for result in results)
        for own in (1, 7):
            if t < MERGED:
                np.testing.assert_array_equal(expected[own].points, got[own].points)  # pyright: ignore[reportArgumentType]
                assert (expected[own].confidence, expected[own].box) == (got[own].confidence, got[own].box)
            assert abs(expected[own].confidence - got[own].confidence) < 0.1
        # Then they share windows, and a square of five cells may differ by a few pixels along its border.
        assert overlap(results[0].mask == 1, results[1].mask == 1) > 0.85
        assert np.abs(expected[7].points - got[7].points).max() < 4  # pyright: ignore[reportOptionalOperand]
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


def test_masks_join_a_tracker_that_had_none(following_artifact: Path, crossing) -> None:
    """A tracker without masks encodes no frame; those that it takes over go on from the other's features."""
    frames, masks = crossing
    backend = open_backend("auto", load_artifact(following_artifact), threads=1)
    settings = replace(backend.artifact.settings, move_windows=True)
    point = KeypointsObject(7, np.array([[12.0, 24.0]], np.float32), ("a",))
    for objects in ([point], []):
        empty, other, alone = (Tracker(backend, settings) for _ in range(3))
        empty.start(frames[0], objects)
        other.start(frames[0], [MaskObject(1, masks[0])])
        alone.start(frames[0], [MaskObject(1, masks[0])])
        for tracker in (empty, other, alone):
            tracker.step(frames[1])
        empty.merge(other)
        for frame in frames[2:5]:
            np.testing.assert_array_equal(empty.step(frame).mask, alone.step(frame).mask)
    backend.close()
