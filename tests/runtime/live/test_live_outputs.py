"""Recordings can be read at every moment, no output holds up the tracker, and a reference is what was kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from corrflow.errors import InputError
from corrflow.runtime.formats.rle import coco_rle
from corrflow.runtime.live.outputs import worker as outputs_module
from corrflow.runtime.live.outputs.recorders import LiveJsonLinesSink, LiveVideoSink, unique_path
from corrflow.runtime.live.outputs.worker import Sink, SinkWorker
from corrflow.runtime.live.prompt import Prompt, load_prompt, resized, save_prompt
from corrflow.runtime.types import Frame, FrameResult, KeypointsObject, LiveTiming, MaskObject, ObjectResult


def result(number: int, size: tuple[int, int] = (66, 97), at: float | None = None) -> FrameResult:
    """Return a result with a moving square; every second captured frame is tracked."""
    mask = np.zeros(size, np.uint8)
    mask[10:20, number % 40 : number % 40 + 10] = 3
    track = ObjectResult(3, "cat", 0.9, True, (number % 40, 10, number % 40 + 10, 20))
    time = number / 7 if at is None else at
    frame = Frame(np.full((*size, 3), 90, np.uint8), 2 * number, time, f"{2 * number:05d}")
    return FrameResult(mask, (track,), frame, LiveTiming(number, 1e9 + number, 0.025))


def times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.time or 0) for frame in container.decode(video=0)]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_a_recording_keeps_the_times_of_its_frames(tmp_path: Path, suffix: str) -> None:
    moments = [0.0, 0.04, 0.05, 0.9, 0.9, 7.25]
    with LiveVideoSink(tmp_path / f"out{suffix}") as sink:
        for number, moment in enumerate(moments):
            sink.write(result(number, at=moment))
    found = times(tmp_path / f"out{suffix}")
    assert found == pytest.approx([0.0, 0.04, 0.05, 0.9, 0.901, 7.25], abs=2e-3)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_recording_plays_as_it_lies_on_the_disk_while_it_is_written(tmp_path: Path, suffix: str) -> None:
    sink = LiveVideoSink(tmp_path / f"out{suffix}")
    for number in range(50):
        sink.write(result(number, at=number / 10))
    killed = tmp_path / f"killed{suffix}"
    shutil.copy(tmp_path / f"out{suffix}", killed)
    sink.close()
    found = times(killed)
    assert found[-1] >= 4.9 - 1.1  # a second at most is lost, and one frame
    assert found == pytest.approx([number / 10 for number in range(len(found))], abs=2e-3)
    assert len(times(tmp_path / f"out{suffix}")) == 50


def test_frames_of_another_size_begin_another_file(tmp_path: Path) -> None:
    with LiveVideoSink(tmp_path / "out.mkv") as sink:
        for number in range(6):
            sink.write(result(number, (66, 97) if number < 4 else (48, 64)))
    assert len(times(tmp_path / "out.mkv")) == 4
    assert times(tmp_path / "out-2.mkv") == pytest.approx([0.0, 1 / 7], abs=2e-3)


def test_an_earlier_recording_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("precious")
    for _ in range(2):
        with LiveJsonLinesSink(tmp_path / "out.jsonl") as sink:
            sink.write(result(0))
    assert (tmp_path / "out.jsonl").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-2.jsonl", "out-3.jsonl", "out.jsonl"]
    assert unique_path(tmp_path / "new.mkv") == tmp_path / "new.mkv"


def test_a_line_has_everything_about_its_frame_and_is_there_at_once(tmp_path: Path) -> None:
    sink = LiveJsonLinesSink(tmp_path / "out.jsonl")
    sink.write(result(5))
    line = json.loads((tmp_path / "out.jsonl").read_text())
    sink.close()
    assert {key: line[key] for key in ("frame", "number", "captured", "latency_ms", "size")} == {
        "frame": 10, "number": 5, "captured": 1e9 + 5, "latency_ms": 25.0, "size": [97, 66],
    }  # fmt: skip
    (cat,) = line["objects"]
    assert (cat["id"], cat["name"], cat["confidence"], cat["box"]) == (3, "cat", 0.9, [5, 10, 15, 20])
    assert np.array_equal(unpacked(cat["mask"]), result(5).mask == 3)


def unpacked(runs: dict[str, list[int]]) -> np.ndarray:
    """Decode run lengths as COCO defines them: down the columns, background first."""
    flat = np.concatenate([np.full(count, turn % 2 == 1) for turn, count in enumerate(runs["counts"])])
    return flat.reshape(runs["size"], order="F")


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_run_lengths_say_the_mask_and_nothing_twice(mask: np.ndarray) -> None:
    runs = coco_rle(mask)
    assert np.array_equal(unpacked(runs), mask)
    assert all(count > 0 for count in runs["counts"][1:])


class ScriptedSink(Sink):
    """Counts what it gets; waits before each write and fails at the writes it is told to."""

    def __init__(self, written: list[int], fail_at: set[int], gate: threading.Event | None = None) -> None:
        self._written, self._fail_at, self._gate = written, fail_at, gate

    def write(self, result: FrameResult) -> None:
        if self._gate is not None:
            self._gate.wait(10)
        assert result.live is not None
        if result.live.number in self._fail_at:
            raise OSError("no space left")
        self._written.append(result.live.number)

    def close(self) -> None:
        pass


def test_an_output_that_keeps_up_gets_everything_before_it_closes() -> None:
    written: list[int] = []
    output = SinkWorker("fast", lambda: ScriptedSink(written, set()))
    for number in range(outputs_module.DEPTH):
        output.put(result(number))
    assert output.close(5) and written == list(range(outputs_module.DEPTH))


def test_a_slow_output_loses_frames_that_are_counted_and_holds_up_nobody() -> None:
    written: list[int] = []
    gate = threading.Event()
    output = SinkWorker("slow", lambda: ScriptedSink(written, set(), gate))
    begin = time.monotonic()
    for number in range(100):
        output.put(result(number))
    assert time.monotonic() - begin < 1
    assert not output.close(0.1), "it hangs"
    gate.set()
    assert output.close(5)
    assert len(written) <= outputs_module.DEPTH + 1
    assert output.written == len(written) and output.written + output.lost == 100


def test_an_output_that_fails_is_opened_again_and_the_loss_is_counted() -> None:
    written: list[int] = []
    opened: list[int] = []

    def open_sink() -> ScriptedSink:
        opened.append(1)
        return ScriptedSink(written, {3})

    output = SinkWorker("card", open_sink, first_wait=0.1)
    for number in range(30):
        output.put(result(number))
        time.sleep(0.02)
    assert output.close(5)
    assert len(opened) == 2 and output.failures == 1 and output.error == ""
    assert written[:3] == [0, 1, 2] and written[-1] == 29
    assert output.written + output.lost == 30


@pytest.fixture
def reference() -> Prompt:
    generator = np.random.default_rng(1)
    mask = np.zeros((31, 47), bool)
    mask[5:20, 9:30] = True
    points = np.array([[3.25, 4.5], [46.0, 30.0]], np.float32)
    objects = (MaskObject(2, mask, "cat"), KeypointsObject(7, points, ("nose", "tail"), "dog"))
    return Prompt(generator.integers(0, 256, (31, 47, 3), np.uint8), objects)


def test_a_reference_reads_back_as_it_was(reference: Prompt, tmp_path: Path) -> None:
    save_prompt(reference, tmp_path / "deep" / "cat.npz")
    again = load_prompt(tmp_path / "deep" / "cat.npz")
    assert np.array_equal(again.frame, reference.frame)
    (mask, points), (mask_given, points_given) = again.objects, reference.objects
    assert isinstance(mask, MaskObject) and isinstance(mask_given, MaskObject)
    assert isinstance(points, KeypointsObject) and isinstance(points_given, KeypointsObject)
    assert (mask.id, mask.name, points.id, points.point_names) == (2, "cat", 7, ("nose", "tail"))
    assert np.array_equal(mask.mask, mask_given.mask) and np.array_equal(points.points, points_given.points)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cat.npz"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), value=st.binary(min_size=1, max_size=4), cut=st.booleans())
def test_a_damaged_reference_is_refused_or_still_whole(
    reference: Prompt, tmp_path: Path, place: float, value: bytes, cut: bool
) -> None:
    save_prompt(reference, tmp_path / "whole.npz")
    data = bytearray((tmp_path / "whole.npz").read_bytes())
    at = int(place * len(data))
    data[at : len(data) if cut else at + len(value)] = value
    (tmp_path / "damaged.npz").write_bytes(data)
    try:
        again = load_prompt(tmp_path / "damaged.npz")
    except InputError as error:
        assert "damaged.npz" in str(error)
    else:
        assert again.frame.shape == (31, 47, 3) and len(again.objects) == 2


@pytest.mark.parametrize("size", [(62, 94), (17, 23), (31, 47), (5, 200)])
def test_objects_keep_their_place_at_another_size(reference: Prompt, size: tuple[int, int]) -> None:
    frame, (mask, points) = resized(reference.frame, reference.objects, size)
    assert frame.shape == (*size, 3)
    assert isinstance(mask, MaskObject) and isinstance(points, KeypointsObject)
    centre = np.argwhere(mask.mask).mean(0) + 0.5
    assert centre / size == pytest.approx(np.array([12.5 / 31, 19.5 / 47]), abs=0.6 / min(size))
    assert (points.points[0] + 0.5) / size[::-1] == pytest.approx(np.array([3.75, 5.0]) / [47, 31])


def test_an_object_of_one_pixel_is_not_lost_in_a_smaller_picture() -> None:
    mask = np.zeros((40, 40), bool)
    mask[21, 9] = True
    _, (small,) = resized(np.zeros((40, 40, 3), np.uint8), [MaskObject(1, mask)], (10, 10))
    assert isinstance(small, MaskObject)
    assert np.argwhere(small.mask).tolist() == [[5, 2]]


def test_a_failure_that_lasts_is_said_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody receives: every second frame is refused, until somebody does."""
    written: list[int] = []
    refused = set(range(1, 40, 2))
    output = SinkWorker("udp", lambda: ScriptedSink(written, refused), first_wait=0.01)
    for number in range(80):
        output.put(result(number))
        time.sleep(0.02)
    assert output.close(5)
    said = [record.message for record in caplog.records]
    assert output.failures > 3 and output.error == ""
    assert len(said) == 2 and "no space left" in said[0] and said[1] == "udp: goes on"


FULL_DISK = """
import resource, sys
import numpy as np
from corrflow.errors import CorrflowError
from corrflow.runtime.live.outputs.destinations import LiveSource, open_recorder
from corrflow.runtime.types import Frame, FrameResult
from pathlib import Path
frame = Frame(np.zeros((64, 96, 3), np.uint8), 0, 0.0, "00000")
result = FrameResult(np.zeros((64, 96), np.uint8), (), frame)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
for name, file in (("overlay", "a.mkv"), ("overlay", "a.mp4"), ("jsonl", "a.jsonl"), ("coco", "a.json")) * 3:
    sink = None
    try:
        sink = open_recorder(name, Path(file), LiveSource("a"))
        sink.write(result)
        sink.close()
        sys.exit(f"{file} was written")
    except CorrflowError:
        try:
            if sink is not None:
                sink.close()
        except CorrflowError:
            pass
"""


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process")
def test_a_full_disk_gets_no_trail_of_empty_files(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []
