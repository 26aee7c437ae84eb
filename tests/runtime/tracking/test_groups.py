"""Groups of objects drawn one after the other are merged, at the pace of objects given together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers.recording import RecordingBackend

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.backends.base import Backend, Memory
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking import tracker as tracker_module
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import FrameResult, MaskObject

MIN_PACE = 0.8  # of the frames per second of eight objects that are given together
HEIGHT, WIDTH = 128, 240
PLACES = [(row, column) for row in (16, 80) for column in (16, 72, 128, 184)]


def scene(count: int, height: int = HEIGHT, width: int = WIDTH) -> tuple[np.ndarray, list[np.ndarray]]:
    """Eight squares of one colour each that go to and fro: frames, and the masks [8, H, W] of each frame."""
    generator = np.random.default_rng(5)
    background = generator.integers(60, 120, (height, width, 1), np.uint8).repeat(3, 2)
    colours = np.array([[b, g, r] for b in (40, 230) for g in (40, 230) for r in (40, 230)], np.uint8)
    frames, masks = [], []
    for t in range(count):
        frame, own = background.copy(), np.zeros((8, height, width), bool)
        for k, (row, column) in enumerate(PLACES):
            top, left = row + round(6 * np.sin(t / 4 + k)), column + round(6 * np.cos(t / 5 + k))
            frame[top : top + 32, left : left + 32] = colours[k]
            own[k, top : top + 32, left : left + 32] = True
        frames.append(frame + generator.integers(0, 20, frame.shape, np.uint8))
        masks.append(own)
    return np.stack(frames), masks


FRAMES, MASKS = scene(32)


def together(tracker: Tracker) -> Iterator[FrameResult]:
    """Track eight objects that are given at once."""
    yield tracker.start(FRAMES[0], [MaskObject(k + 1, MASKS[0][k]) for k in range(8)])
    for frame in FRAMES[1:]:
        yield tracker.step(frame)


def one_by_one(tracker: Tracker, count: int = 8) -> Iterator[FrameResult]:
    """Track objects of which one is added on every second frame."""
    yield tracker.start(FRAMES[0], [MaskObject(1, MASKS[0][0])])
    for t, frame in enumerate(FRAMES[1:], 1):
        yield tracker.step(frame)
        if t % 2 == 0 and t // 2 < count:
            tracker.add([MaskObject(t // 2 + 1, MASKS[t][t // 2])])


def overlap(found: np.ndarray, other: np.ndarray) -> float:
    return float((found & other).sum() / max(1, (found | other).sum()))


@pytest.fixture(scope="module")
def backend(following_artifact: Path) -> Iterator[Backend]:
    """The fused kernel, where it was built."""
    name = "onnx-function" if cpu.unavailable() else "onnxruntime"
    opened = open_backend(name, load_artifact(following_artifact), threads=1)
    yield opened
    opened.close()


def settings_of(backend: Backend, moves: bool = False) -> TrackingSettings:
    return replace(backend.artifact.settings, short_side=0, move_windows=moves)


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every group of new trackers apart."""
    monkeypatch.setattr(tracker_module, "can_merge", lambda settings: False)


@pytest.mark.parametrize("hard_labels", [False, True], ids=["soft labels", "hard labels"])
def test_a_merged_object_has_the_labels_of_its_own_group(backend: Backend, hard_labels, monkeypatch) -> None:
    settings = replace(settings_of(backend), hard_labels=hard_labels)
    recorder = RecordingBackend(backend)
    merged = [result.mask for result in one_by_one(Tracker(recorder, settings))]
    propagations = len(recorder.plans)
    apart(monkeypatch)
    separate = [result.mask for result in one_by_one(Tracker(recorder, settings))]
    assert len(recorder.plans) - propagations > 1.5 * propagations
    overlaps = [
        overlap(merged[t] == k, separate[t] == k) for k in range(1, 9) for t in range(len(FRAMES)) if t >= 2 * k
    ]
    assert np.median(overlaps) >= 0.99 and min(overlaps) >= 0.95
    assert np.mean([overlap(merged[-1] == k, MASKS[-1][k - 1]) for k in range(1, 9)]) > 0.75


def test_eight_objects_drawn_one_by_one_cost_one_propagation_in_the_end(backend: Backend) -> None:
    recorder = RecordingBackend(backend)
    counts = []
    for _ in one_by_one(Tracker(recorder, settings_of(backend, moves=backend.supports_window_offsets))):
        counts.append(len(recorder.plans))
    assert np.diff(counts)[-8:].tolist() == [1] * 8
    assert np.diff(counts).max() <= 6


@pytest.mark.parametrize("name", ["onnxruntime", "onnx-function"])
def test_nothing_changes_by_a_bit_before_the_merge(following_artifact: Path, name: str) -> None:
    if name == "onnxruntime" and cpu.unavailable():
        pytest.skip(cpu.unavailable())
    with closing(open_backend(name, load_artifact(following_artifact), threads=1)) as backend:
        recent = max(backend.artifact.settings.recent_offsets)
        # It is added after frame 2, the merge begins after frame 3, and frames fill its memory after that.
        merged = 4 + recent
        alone, two = (
            list(islice(one_by_one(Tracker(backend, settings_of(backend)), count), merged + 1)) for count in (1, 2)
        )
    for one, other in zip(alone[:merged], two, strict=False):
        np.testing.assert_array_equal(one.mask == 1, other.mask == 1)
        assert one.objects[0].confidence == other.objects[0].confidence
    assert alone[merged].objects[0].confidence != two[merged].objects[0].confidence
    assert overlap(alone[merged].mask == 1, two[merged].mask == 1) >= 0.99


def test_objects_on_the_same_cells_stay_apart(backend: Backend) -> None:
    tracker = Tracker(backend, settings_of(backend))
    tracker.start(FRAMES[0], [MaskObject(1, MASKS[0][0])])
    tracker.step(FRAMES[1])
    tracker.add([MaskObject(2, MASKS[0][0])])
    for t, frame in enumerate(FRAMES[2:12]):
        if t == 1:
            tracker.add([MaskObject(3, MASKS[0][3])])
        tracker.step(frame)
    assert [[member.prompt.id for member in group.tracked] for group in tracker._groups] == [[1, 3], [2]]


def test_removing_and_correcting_end_a_merge_and_leave_nothing_behind(backend: Backend) -> None:
    recorder = RecordingBackend(backend)
    tracker = Tracker(recorder, settings_of(backend))
    tracker.start(FRAMES[0], [MaskObject(1, MASKS[0][0]), MaskObject(2, MASKS[0][1])])
    for _ in range(3):
        for t, frame in enumerate(FRAMES[:14]):
            tracker.step(frame)
            if t in (0, 8):
                tracker.correct(MaskObject(2, MASKS[t][1]))
            if t == 4:
                tracker.add([MaskObject(3, MASKS[t][2])])
            if t == 6:
                tracker.remove(3)
    (group,) = tracker._groups
    assert tracker.object_ids == (1, 2) and len(group.parts) == 2
    assert max(memory.num_channels for memory in recorder.memories) == 8


class _Narrow(RecordingBackend):
    """Backend with room for 16 channels, as engines have it."""

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> Memory:
        if num_channels > 16:
            raise InputError("expected at most 16 mask channels")
        return super().new_memory(settings, num_channels, cells)


def test_groups_beyond_the_channels_of_a_backend_stay_apart(backend: Backend) -> None:
    tracker = Tracker(_Narrow(backend), settings_of(backend))
    tracker.start(FRAMES[0], [MaskObject(1, MASKS[0][0])])
    for t, frame in enumerate(FRAMES[1:28], 1):
        tracker.step(frame)
        if t in (1, 2, 3):
            first = 10 * t
            tracker.add([MaskObject(first + k, np.roll(MASKS[t][t], k, 0)) for k in range(7)])
    assert sorted(len(group.parts) for group in tracker._groups) == [2, 2]


@pytest.mark.alone
@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())
def test_eight_objects_drawn_one_by_one_have_the_pace_of_eight_given_together(capsys) -> None:
    steps: list[list[float]] = [[], []]
    with Tracker.from_model("quarter", "onnxruntime", threads=1) as first:
        second = Tracker(first.backend, first.settings, first.occlusion)
        runs = together(first), one_by_one(second)
        while True:  # in turn, so that both have the same machine
            begin = time.process_time()
            for run, seconds in zip(runs, steps, strict=True):
                if next(run, None) is None:
                    break
                seconds.append(time.process_time() - begin)
                begin = time.process_time()
            else:
                continue
            break
        assert len(second._groups) == 1
    given, drawn = (float(np.median(seconds[-8:])) for seconds in steps)
    with capsys.disabled():
        print(f"\neight given together {1000 * given:.0f} ms a frame, drawn one by one {1000 * drawn:.0f} ms")
    assert given / drawn >= MIN_PACE
