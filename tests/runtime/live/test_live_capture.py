"""A scripted camera that stalls, breaks, blocks and comes back: every frame is counted and only the newest waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.live.capture import capture as capture_module
from corrflow.runtime.live.capture.capture import Capture, Counts, Timeouts
from corrflow.runtime.live.capture.readers import ReaderFailed, open_reader
from corrflow.runtime.video.source_uri import live_address

QUICK = Timeouts(opening=0.3, reading=0.3, wait=0.05, longest_wait=0.2)
INTERVAL = 0.01

# A script is a list of these: frames at a pace, a pause, an error to raise, a refusal to open; its end is the stream's.
Step = tuple[str, Any]


def frames(count: int, size: tuple[int, int] = (24, 32)) -> Step:
    return "frames", (count, size)


class FakeCamera:
    """Plays one script for each time that it is opened; the last one again and again."""

    def __init__(self, *scripts: list[Step]) -> None:
        self.scripts, self.opened, self.refused, self.closed = scripts, 0, 0, 0
        self.opened_at: list[float] = []
        self.delivered = 0
        self.release = threading.Event()  # lets go of a driver that blocks

    def open(self) -> FakeReader:
        script = self.scripts[min(self.opened, len(self.scripts) - 1)]
        self.opened += 1
        self.opened_at.append(time.monotonic())
        if script and script[0][0] == "refuse":
            self.refused += 1
            raise script[0][1]
        return FakeReader(self, self._play(script))

    def _play(self, script: Iterable[Step]) -> Iterator[np.ndarray]:
        for kind, what in script:
            if kind == "frames":
                for _ in range(what[0]):
                    time.sleep(INTERVAL)
                    self.delivered += 1
                    yield np.full((*what[1], 3), self.delivered % 256, np.uint8)
            elif kind == "stall":
                self.release.wait(what)
            else:
                raise what


class FakeReader:
    def __init__(self, camera: FakeCamera, images: Iterator[np.ndarray]) -> None:
        self._camera, self._pictures = camera, images

    def read(self) -> np.ndarray | None:
        return next(self._pictures, None)

    def close(self) -> None:
        self._camera.closed += 1


def follow(
    capture: Capture, until: Callable[[Counts], bool], model: float = 0.0, limit: float = 10.0
) -> list[tuple[int, int, tuple[int, int], float]]:
    """Take frames until a condition on the counts: (index, connection, size, age when the model is done with it)."""
    taken = []
    end = time.monotonic() + limit
    while not until(capture.counts) and not capture.ended:
        assert time.monotonic() < end, (capture.counts, capture.state)
        frame = capture.take(0.05)
        counts = capture.counts
        assert counts.captured == counts.taken + counts.dropped + counts.waiting
        if frame is not None:
            time.sleep(model)
            taken.append((frame.index, frame.connection, frame.image.shape[:2], time.monotonic() - frame.captured))
    return taken


@pytest.fixture
def run() -> Iterator[Callable[..., Capture]]:
    """Start a capture of a camera; after the test every thread has ended and every reader is closed."""
    started: list[tuple[Capture, FakeCamera]] = []

    def start(camera: FakeCamera, timeouts: Timeouts = QUICK, endless: bool = True) -> Capture:
        capture = Capture(camera.open, timeouts, endless).start()
        started.append((capture, camera))
        return capture

    yield start
    for capture, camera in started:
        capture.close()
        camera.release.set()
        counts = capture.counts
        assert counts.captured == counts.taken + counts.dropped and counts.waiting == 0
        end = time.monotonic() + 3
        while any(thread.name in ("corrflow-capture", "corrflow-source") for thread in threading.enumerate()):
            assert time.monotonic() < end, "a thread stayed behind"
            time.sleep(0.01)
        assert camera.closed == camera.opened - camera.refused


def test_a_model_that_keeps_up_gets_every_frame_in_order(run) -> None:
    camera = FakeCamera([frames(20)])
    capture = run(camera, endless=False)
    taken = follow(capture, lambda counts: False)
    while (frame := capture.take(0.05)) is not None:
        taken.append((frame.index, 1, (24, 32), 0.0))
    counts = capture.counts
    assert counts.captured == camera.delivered == 20
    assert [index for index, *_ in taken] == sorted({index for index, *_ in taken})
    assert len(taken) + counts.dropped == 20


def test_a_slow_model_sees_fresh_frames_and_the_rest_is_counted(run) -> None:
    camera = FakeCamera([frames(10_000)])
    capture = run(camera)
    model = 8 * INTERVAL
    taken = follow(capture, lambda counts: counts.taken >= 20, model)
    counts = capture.counts
    assert counts.dropped >= counts.taken
    recent_offsets = np.array([age for *_, age in taken])
    # One model step and two frame intervals, and what a busy machine adds to its own sleeping.
    assert np.percentile(recent_offsets, 90) <= model + 2 * INTERVAL + 0.05
    assert np.median(recent_offsets[-8:]) <= np.median(recent_offsets[:8]) + 0.03, (
        "frames must not get older as the stream goes on"
    )


def test_a_stalled_camera_is_opened_again(run) -> None:
    camera = FakeCamera([frames(3), ("stall", 60)], [frames(10_000)])
    capture = run(camera)
    taken = follow(capture, lambda counts: counts.connections == 2 and counts.captured > 10)
    assert {connection for _, connection, *_ in taken} == {1, 2}
    assert camera.opened_at[1] - camera.opened_at[0] < 3 * INTERVAL + QUICK.reading + QUICK.wait + 1
    assert capture.counts.failures == 1


def test_a_frame_that_a_stalled_driver_delivers_late_is_not_used(run) -> None:
    camera = FakeCamera([frames(3), ("stall", 60), frames(5, (8, 8))], [frames(10_000)])
    capture = run(camera)
    taken = follow(capture, lambda counts: counts.connections == 2)
    camera.release.set()
    taken += follow(capture, lambda counts: counts.captured > 30)
    assert {size for _, _, size, _ in taken} == {(24, 32)}


def test_a_stream_may_end_or_break_and_return_at_another_size(run) -> None:
    broken = ("error", ReaderFailed("the cable was pulled"))
    camera = FakeCamera([frames(5), broken], [frames(5, (48, 64))], [frames(10_000, (16, 16))])
    capture = run(camera)
    taken = follow(capture, lambda counts: counts.connections == 3 and counts.captured > 15)
    assert [size for _, connection, size, _ in taken if connection == 2][:1] == [(48, 64)]
    assert taken[-1][2] == (16, 16)
    assert [index for index, *_ in taken] == sorted({index for index, *_ in taken})


def test_any_error_of_a_library_is_survived(run) -> None:
    camera = FakeCamera([frames(2), ("error", MemoryError("bad packet"))], [frames(10_000)])
    follow(run(camera), lambda counts: counts.connections == 2 and counts.captured > 5)


def test_the_wait_between_attempts_doubles_up_to_its_longest(run) -> None:
    refused = [("refuse", ReaderFailed("no device"))]
    camera = FakeCamera(*[refused] * 6, [frames(10_000)])
    capture = run(camera)
    follow(capture, lambda counts: counts.captured > 0)
    waits = np.diff(camera.opened_at)
    for wait, least in zip(waits, (0.05, 0.1, 0.2, 0.2, 0.2, 0.2), strict=True):
        assert least <= wait < least + 0.3


def test_no_more_than_three_threads_hang_in_a_driver(run, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = FakeCamera([("stall", 60)])
    capture = run(camera, Timeouts(0.05, 0.05, 0.02, 0.02))
    time.sleep(1.0)
    assert camera.opened == capture_module.MAX_BLOCKED
    assert capture.state[0] == "blocked"


def test_closing_takes_no_longer_than_it_says_while_the_driver_hangs(run) -> None:
    camera = FakeCamera([frames(2), ("stall", 60)])
    capture = run(camera, Timeouts(opening=30, reading=30))
    follow(capture, lambda counts: counts.taken + counts.dropped >= 2)
    begin = time.monotonic()
    capture.close(0.3)
    assert time.monotonic() - begin < 1.0
    assert capture.take(5) is None and time.monotonic() - begin < 1.0


def test_a_source_that_can_never_work_ends_with_its_reason(run) -> None:
    camera = FakeCamera([("refuse", InputError("expected a camera, got a toaster"))])
    capture = run(camera)
    with pytest.raises(InputError, match="toaster"):
        capture.take(5)
    assert capture.ended and camera.opened == 1


def test_a_file_that_breaks_gives_its_good_frames_before_its_error(run) -> None:
    camera = FakeCamera([frames(1), ("error", CorrflowError("cut off"))])
    capture = run(camera, endless=False)
    time.sleep(0.2)
    assert capture.take(5) is not None
    with pytest.raises(CorrflowError, match="cut off"):
        capture.take(5)
    assert camera.opened == 1


def test_a_pipe_may_take_longer_than_a_camera(run) -> None:
    camera = FakeCamera([frames(1), ("stall", 0.6), frames(1)])
    capture = run(camera, Timeouts(0.1, 0.1, 0.05, 0.05), endless=False)
    follow(capture, lambda counts: False)
    assert capture.counts.captured == 2 and camera.opened == 1


@pytest.mark.parametrize("number", [0.0, -1.0, 3600.0, float("nan"), float("inf")])
def test_timeouts_without_sense_are_refused(number: float) -> None:
    with pytest.raises(InputError, match="timeouts"):
        Timeouts(reading=number)


def test_a_camera_that_is_not_there_is_one_sentence_without_opencvs_own(capfd: pytest.CaptureFixture) -> None:
    address = live_address("987")
    assert address is not None
    with pytest.raises(ReaderFailed, match="expected a camera at 987"):
        open_reader(address, 1.0)
    assert capfd.readouterr().err == ""
