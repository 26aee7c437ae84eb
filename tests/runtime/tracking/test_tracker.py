"""The tracker propagates masks as its definition says, object by object, with a memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import oracle
from helpers.recording import RecordingBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.backends.base import Backend
from corrflow.runtime.backends.memory import MemoryRing
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import TrackingSettings, with_settings
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject


@pytest.fixture(scope="module", params=["onnxruntime", "onnx-function"])
def backend(small_artifact: Path, request: pytest.FixtureRequest) -> Iterator[Backend]:
    opened = open_backend(request.param, load_artifact(small_artifact), threads=1)
    yield opened
    opened.close()


def run(backend: Backend, frames: np.ndarray, objects: list) -> list[FrameResult]:
    tracker = Tracker(backend)
    return [tracker.start(frames[0], objects), *(tracker.step(frame) for frame in frames[1:])]


def other_mask() -> np.ndarray:
    mask = np.zeros((66, 98), bool)
    mask[40:60, 60:90] = True
    return mask


def points(names: tuple[str, ...] = ("a", "b")) -> KeypointsObject:
    places = np.array([[25.0, 20.0], [36.0, 30.0], [70.0, 50.0]], np.float32)[: len(names)]
    return KeypointsObject(7, places, names, "dots")


def same(track, other) -> bool:
    """Bit for bit."""
    return all(
        np.array_equal(getattr(track, name), getattr(other, name))
        for name in ("confidence", "visible", "box", "points", "point_confidence")
    )


def test_a_moving_object_is_followed(backend: Backend, moving_square) -> None:
    frames, masks = moving_square
    for tracks, truth in zip(run(backend, frames, [MaskObject(1, masks[0])]), masks, strict=True):
        found = tracks.mask == 1
        assert (found & truth).sum() / (found | truth).sum() > 0.75
        assert tracks.objects[0].visible


def test_labels_match_a_brute_force_tracker(backend: Backend, moving_square) -> None:
    """Write the loop again from its description: encode, propagate from frame 0 and the last three, store."""
    frames, masks = moving_square
    if backend.supports_runtime_search_params:
        backend = OnnxRuntimeBackend(backend.artifact, 1, fused=True, bits=32)
    recorder = RecordingBackend(backend)
    tracker = Tracker(recorder)
    tracker.start(frames[0], [MaskObject(1, masks[0])])
    (memory,) = recorder.memories
    used = tracker.settings
    geometry = Geometry.of((66, 98), used.short_side)
    labels = [geometry.mask_to_cells(masks[0])[None].astype(np.float64)]
    features = [backend.encode(frames[0], geometry.working)]
    for t in range(1, 6):
        got = tracker.step(frames[t])
        features.append(backend.encode(frames[t], geometry.working))
        references = sorted({0, *range(max(0, t - 3), t)})
        labels.append(
            oracle(
                features[t][None],
                np.stack([features[r] for r in references])[None],
                np.stack([labels[r] for r in references])[None],
                used.attributes.windows(len(references)),
                used.top_k,
                used.temperature,
            )[0]
        )
        newest = next(reference for reference in memory.references if reference.age == 1)
        assert np.abs(memory.soft_masks[newest.slot][0] - labels[t][0]).max() < 1e-5
        expected = geometry.upsampler()(labels[t].astype(np.float32))[0]
        decided = np.abs(expected - 0.5) > 1e-4  # away from exact ties
        np.testing.assert_array_equal((got.mask == 1)[decided], (expected > 0.5)[decided])


@pytest.mark.parametrize(("bits", "apart"), [(16, 2e-3), (8, 0.1)])
def test_packed_features_give_nearly_the_same_labels(small_artifact: Path, moving_square, bits, apart: float) -> None:
    if cpu.unavailable():
        pytest.skip(cpu.unavailable())
    frames, masks = moving_square
    artifact = load_artifact(small_artifact)
    trackers = [Tracker(OnnxRuntimeBackend(artifact, 1, fused=True, bits=own)) for own in (32, bits)]
    for tracker in trackers:
        tracker.start(frames[0], [MaskObject(1, masks[0])])
    for frame in frames[1:]:
        exact, got = (tracker.soft_step(frame)[1] for tracker in trackers)
        assert np.abs(exact - got).max() < apart


@pytest.mark.parametrize("count", [2, 7, 8, 9, 20])
def test_objects_given_together_do_not_change_each_other(backend: Backend, moving_square, count: int) -> None:
    frames, masks = moving_square
    others = [MaskObject(k, np.roll(other_mask(), -3 * k, axis=1)) for k in range(2, count + 1)]
    alone = run(backend, frames, [MaskObject(1, masks[0])])
    together = run(backend, frames, [*others[::2], MaskObject(1, masks[0]), *others[1::2]])
    for one, many in zip(alone, together, strict=True):
        assert same(one.objects[0], many.objects[0])


def test_adding_and_removing_changes_no_other_object(backend: Backend, moving_square) -> None:
    frames, masks = moving_square
    alone = run(backend, frames, [MaskObject(1, masks[0]), points()])
    tracker = Tracker(backend)
    tracker.start(frames[0], [MaskObject(1, masks[0]), points(), MaskObject(3, other_mask())])
    for t, frame in enumerate(frames[1:], 1):
        tracks = tracker.step(frame)
        by_id = {track.id: track for track in tracks.objects}
        assert same(by_id[1], alone[t].objects[0])
        assert same(by_id[7], alone[t].objects[1])
        if t == 2:
            tracker.remove(3)
            tracker.add([MaskObject(4, other_mask())])
        if t == 4:
            tracker.correct(MaskObject(4, np.roll(other_mask(), -5, axis=1)))
        if t == 6:
            tracker.remove(4)
    assert tracker.object_ids == (1, 7)


def test_keypoints_do_not_depend_on_other_objects(backend: Backend, moving_square) -> None:
    frames, masks = moving_square
    beside = replace(points(("a", "b", "c")), id=2)
    alone, together = (
        run(backend, frames, [points()]),
        run(backend, frames, [points(), beside, MaskObject(1, masks[0])]),
    )
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.objects[0].points, other.objects[2].points)  # type: ignore[arg-type]
        assert np.array_equal(one.objects[0].point_confidence, other.objects[2].point_confidence)  # type: ignore[arg-type]


def test_points_do_not_fade_in_a_long_stream(backend: Backend, moving_square) -> None:
    there_and_back = np.concatenate([moving_square[0], moving_square[0][-2:0:-1]])
    tracker = Tracker(backend)
    tracker.start(there_and_back[0], [points()])
    for t in range(1, 10 * len(there_and_back) + 1):
        last = tracker.step(there_and_back[t % len(there_and_back)]).objects[0]
    assert last.point_confidence is not None and last.point_confidence.min() > 0.5
    assert np.abs(last.points - points().points).max() < 5


def test_keypoints_follow_what_they_are_on(backend: Backend, moving_square) -> None:
    frames, _ = moving_square
    last = run(backend, frames, [points()])[-1].objects[0]
    expected = points().points + np.array([14, 7])
    assert np.abs(last.points - expected).max() < 5
    assert last.point_names == ("a", "b")


@settings(max_examples=200, deadline=None)
@given(permanent_frames=st.sets(st.integers(0, 12), max_size=4), recent_offsets=st.sets(st.integers(1, 9), max_size=5))
def test_memory_holds_the_frames_that_the_settings_name_and_no_others(
    permanent_frames: set[int], recent_offsets: set[int]
) -> None:
    if 0 not in permanent_frames and 1 not in recent_offsets:
        permanent_frames.add(0)
    named = TrackingSettings(
        permanent_frames=tuple(sorted(permanent_frames)), recent_offsets=tuple(sorted(recent_offsets))
    )
    ring = MemoryRing(named, num_channels=1, cells=(1, 1), channels=2)
    for t in range(25):
        ring.add_frame(np.full((2, 1, 1), t, np.float32), np.full((1, 1, 1), t, np.float32))
        expected = {frame for frame in range(t + 1) if frame in permanent_frames or t + 1 - frame in recent_offsets}
        slots, frames, ages = zip(*ring.references, strict=True)
        assert sorted(frames) == sorted(expected) and list(slots) == sorted(set(slots))
        assert ages == tuple(t + 1 - frame for frame in frames)
        keys, values = ring.stacked(list(slots))
        assert values.ravel().tolist() == keys[:, 0].ravel().tolist() == list(frames)


def test_first_frame_and_last_few_are_stacked_without_a_copy() -> None:
    ring = MemoryRing(TrackingSettings(recent_offsets=(1, 2, 3)), num_channels=1, cells=(1, 1), channels=1)
    for _ in range(9):
        ring.add_frame(np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32))
        keys, values = ring.stacked([reference.slot for reference in ring.references])
        assert np.shares_memory(keys, ring.features) and np.shares_memory(values, ring.soft_masks)


def test_references_past_an_age_are_searched_more_widely() -> None:
    named = TrackingSettings(permanent_frames=(0,), recent_offsets=(1,), dilation=(2,), dilate_past_age=15)
    recent_offsets = [1, 15, 16, 30, 45, 600]
    assert [named.attributes_for([age]).dilation for age in recent_offsets] == [(2,), (2,), (4,), (6,), (8,), (8,)]
    assert named.attributes_for([30, 1]).dilation == (6, 2)
    assert replace(named, dilation=(1, 2)).attributes_for([30, 16]).dilation == (3, 4)


@pytest.mark.parametrize(
    ("frame", "objects", "reason"),
    [
        (np.zeros((66, 98, 3), np.float32), [], "uint8, BGR"),
        (np.zeros((66, 98), np.uint8), [], "uint8, BGR"),
        (np.zeros((0, 98, 3), np.uint8), [], "with pixels"),
        (None, [MaskObject(1, np.ones((65, 98), bool))], "98x66, got 98x65"),
        (None, [MaskObject(1, np.zeros((66, 98), bool))], "empty mask"),
        (None, [MaskObject(0, other_mask())], "from 1 to 255"),
        (None, [MaskObject(2, other_mask()), MaskObject(2, other_mask())], "2 twice"),
        (None, [KeypointsObject(1, np.array([[98.0, 3.0]], np.float32), ("p",))], "'p' inside the frame"),
        (None, [KeypointsObject(1, np.array([[np.nan, 3.0]], np.float32), ("p",))], "'p' inside the frame"),
        (None, [KeypointsObject(1, np.zeros((2, 2), np.float32), ("p",))], "P names"),
    ],
)
def test_what_does_not_fit_is_refused(backend: Backend, frame, objects: list, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Tracker(backend).start(np.zeros((66, 98, 3), np.uint8) if frame is None else frame, objects)


def test_a_step_needs_a_start_and_frames_of_one_size(backend: Backend, moving_square) -> None:
    frames, masks = moving_square
    tracker = Tracker(backend)
    with pytest.raises(InputError, match="start"):
        tracker.step(frames[0])
    tracker.start(frames[0], [MaskObject(1, masks[0])])
    with pytest.raises(CorrflowError, match="98x66 as at the start, got 97x66"):
        tracker.step(np.ascontiguousarray(frames[1][:, 1:]))
    with pytest.raises(InputError, match="to remove, got 5"):
        tracker.remove(5)
    with pytest.raises(InputError, match="to correct, got 5"):
        tracker.correct(MaskObject(5, masks[0]))
    with pytest.raises(InputError, match="1 twice"):
        tracker.add([MaskObject(1, masks[0])])


@pytest.mark.parametrize("change", [{"top_k": 3}, {"radius": (4,)}, {"dilate_past_age": 15}], ids=str)
def test_only_the_fused_kernel_takes_settings_that_are_not_built_in(backend: Backend, change: dict) -> None:
    built_in = backend.artifact.settings
    assert with_settings(built_in, short_side=32, memory_frames=1).num_reference_frames == 2
    if backend.supports_runtime_search_params:
        Tracker(backend, replace(built_in, **change))
    else:
        with pytest.raises(InputError, match="export an artifact with those"):
            Tracker(backend, replace(built_in, **change))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"permanent_frames": (), "recent_offsets": (2,)}, "add one of them"),
        ({"recent_offsets": (3, 1)}, "ascending"),
        ({"recent_offsets": (0, 1)}, "from 1 to 64"),
        ({"permanent_frames": tuple(range(17))}, "at most 16"),
        ({"radius": (3, 4, 5)}, "one radius"),
        ({"dilation": (1, 2), "permanent_frames": (0, 5)}, "one radius"),
        ({"dilate_past_age": -1}, "dilate_past_age"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_that_make_no_tracker_are_refused(change: dict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        TrackingSettings(**change)


def test_bytes_held_do_not_grow_with_the_stream(backend: Backend, moving_square) -> None:
    frames, masks = moving_square
    recorder = RecordingBackend(backend)
    tracker = Tracker(recorder)
    tracker.start(frames[0], [MaskObject(1, masks[0])])

    def bytes_held() -> int:
        (memory,) = recorder.memories  # no second memory is made
        features = getattr(memory.features, "words", memory.features)
        return features.nbytes + memory.soft_masks.nbytes

    before = bytes_held()
    for t in range(30):
        tracker.step(frames[t % len(frames)])
    assert bytes_held() == before > 0
