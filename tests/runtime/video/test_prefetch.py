"""Threads that read ahead and write behind keep order, errors and memory as one loop does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from corrflow.errors import CorrflowError, SourceEndedEarly
from corrflow.runtime.formats.background_writer import write_behind
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import Frame, FrameResult
from corrflow.runtime.video.prefetch import DEPTH, read_ahead

IMAGE = np.zeros((2, 2, 3), np.uint8)


def frames(count: int, error: Exception | None = None, made: list[int] | None = None) -> Iterator[Frame]:
    for index in range(count):
        if made is not None:
            made.append(index)
        yield Frame(IMAGE, index, 0.0, f"{index:05d}")
    if error is not None:
        raise error


def results(count: int) -> Iterator[FrameResult]:
    for frame in frames(count):
        yield FrameResult(IMAGE[..., 0], (), frame)


class Recorder(Sink):
    """Sink that records the indices of its frames; fails at one index."""

    def __init__(self, fails_at: int = -1, seconds: float = 0.0) -> None:
        self.written: list[int] = []
        self.fails_at, self.seconds = fails_at, seconds

    def write(self, result: FrameResult) -> None:
        time.sleep(self.seconds)
        if result.frame.index == self.fails_at:
            raise CorrflowError("the disk is full")
        self.written.append(result.frame.index)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_frames_come_in_order_and_all() -> None:
    with read_ahead(frames(20)) as ahead:
        assert [frame.index for frame in ahead] == list(range(20))


def test_a_source_that_ends_early_says_so_after_its_last_good_frame() -> None:
    seen = []
    with pytest.raises(SourceEndedEarly), read_ahead(frames(5, SourceEndedEarly("cut off"))) as ahead:
        for frame in ahead:
            seen.append(frame.index)
    assert seen == list(range(5))


def test_no_more_frames_are_decoded_than_may_wait() -> None:
    made: list[int] = []
    with read_ahead(frames(1000, made=made)) as ahead:
        next(ahead)
        time.sleep(0.1)
        assert len(made) <= DEPTH + 2  # those that wait, the one given and the one in the thread's hand


def test_everything_is_written_in_order_to_every_sink() -> None:
    sinks = [Recorder(), Recorder(seconds=0.001)]
    with write_behind(sinks) as write:
        for result in results(20):
            write(result)
    assert [sink.written for sink in sinks] == [list(range(20))] * 2


@pytest.mark.parametrize("fails_at", [0, 7, 19], ids=["first", "midway", "last"])
def test_a_failed_write_is_raised_and_nothing_follows_it(fails_at: int) -> None:
    sink, handed = Recorder(fails_at), 0
    with pytest.raises(CorrflowError, match="full"), write_behind([sink]) as write:
        for result in results(20):
            write(result)
            handed += 1
            time.sleep(0.002)
    assert sink.written == list(range(fails_at))
    assert handed <= fails_at + DEPTH + 2


def test_an_interruption_writes_what_was_handed_over() -> None:
    sink = Recorder(seconds=0.01)
    with pytest.raises(KeyboardInterrupt), write_behind([sink]) as write:
        for result in results(4):
            write(result)
        raise KeyboardInterrupt
    assert sink.written == [0, 1, 2, 3]


def test_an_error_on_its_way_is_not_replaced_by_that_of_a_sink() -> None:
    with pytest.raises(KeyboardInterrupt), write_behind([Recorder(0)]) as write:
        write(next(results(1)))
        raise KeyboardInterrupt
