"""Results are made behind the tracker, in order and one step late; none is lost or made twice where something fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from corrflow.errors import CorrflowError
from corrflow.runtime.tracking.stream import _made_behind, track_source
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, FrameResult, MaskObject
from corrflow.runtime.video.array_source import ArraySource


def result(number: int) -> FrameResult:
    return FrameResult(np.zeros((2, 2), np.uint8), (), Frame(np.zeros((2, 2, 3), np.uint8), number, 0.0, str(number)))


def numbers(results: Iterator[FrameResult]) -> list[int]:
    return [one.frame.index for one in results]


def test_the_next_step_is_taken_while_a_result_is_made() -> None:
    """The first result can be made only once the second step was taken, and the main thread takes the steps."""
    taken = threading.Event()
    threads = set()

    def first() -> FrameResult:
        threads.add(threading.current_thread())
        assert taken.wait(10), "the second step waits for the first result"
        return result(0)

    def steps() -> Iterator[Callable[[], FrameResult]]:
        yield first
        threads.add(threading.current_thread())
        taken.set()
        yield lambda: result(1)

    assert numbers(_made_behind(steps())) == [0, 1] and len(threads) == 2


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_result_comes_once_and_in_order_and_the_thread_ends(count: int) -> None:
    def step(number: int) -> Callable[[], FrameResult]:
        return lambda: result(number)

    assert numbers(_made_behind(step(number) for number in range(count))) == list(range(count))
    assert not [one for one in threading.enumerate() if one.name == "corrflow-results"]


@pytest.mark.faults
def test_an_error_of_a_step_comes_after_the_results_before_it() -> None:
    def steps() -> Iterator[Callable[[], FrameResult]]:
        yield lambda: result(0)
        yield lambda: result(1)
        raise CorrflowError("the third frame is damaged")

    seen = []
    with pytest.raises(CorrflowError, match="third frame"):
        for one in _made_behind(steps()):
            seen.append(one.frame.index)
    assert seen == [0, 1]


@pytest.mark.faults
def test_an_error_of_a_result_comes_in_its_place_and_nothing_after_it() -> None:
    def fail() -> FrameResult:
        raise CorrflowError("no memory for the second result")

    seen = []
    with pytest.raises(CorrflowError, match="second result"):
        for one in _made_behind(iter([lambda: result(0), fail, lambda: result(2)])):
            seen.append(one.frame.index)
    assert seen == [0]
    assert not [one for one in threading.enumerate() if one.name == "corrflow-results"]


def test_a_consumer_that_stops_early_ends_the_thread() -> None:
    results = _made_behind(iter([lambda: result(0), lambda: result(1), lambda: result(2)]))
    assert next(results).frame.index == 0
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not [one for one in threading.enumerate() if one.name == "corrflow-results"]


def test_results_are_those_of_steps_one_by_one(moving_square) -> None:
    """Also where an object is hidden later: a result shows the state of its own frame."""
    images, masks = moving_square
    hidden = [*images[:5], *(np.full_like(image, 40) for image in images[5:7]), images[7]]
    prompt = MaskObject(id=3, mask=np.asarray(masks[0], bool))
    with Tracker.from_model("fast-int8", "onnxruntime", threads=1) as tracker:
        alone = [tracker.start(hidden[0], [prompt]), *(tracker.step(image) for image in hidden[1:])]
    with Tracker.from_model("fast-int8", "onnxruntime", threads=1) as tracker:
        behind = list(track_source(ArraySource(hidden), tracker, lambda frame: [prompt]))
    assert len(alone) == len(behind) == len(hidden)
    for one, other in zip(alone, behind, strict=True):
        assert np.array_equal(one.mask, other.mask) and one.objects == other.objects
    assert [one.objects[0].visible for one in behind].count(False) >= 2
