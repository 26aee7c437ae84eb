"""Tracking through a source: frames are decoded ahead in one thread, and results are made behind in another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from queue import SimpleQueue

from corrflow.errors import InputError
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, FrameResult, TrackedObject
from corrflow.runtime.video.prefetch import WorkThread, read_ahead
from corrflow.runtime.video.source import FrameSource


def track_source(
    source: FrameSource,
    tracker: Tracker,
    prompts: Callable[[Frame], Sequence[TrackedObject]],
    start: int | None = None,
) -> Generator[FrameResult, None, None]:
    """Yield the result of every frame from the prompted one on, whose result is the prompts as they were given.

    prompts: returns the objects of that frame
    start:   number of the prompted frame, counted from 0; None for the first that can be decoded

    Raises InputError for prompts that do not fit, or whose frame cannot be decoded, and SourceEndedEarly after the last
    good frame of a damaged source.
    """
    frames = iter(source)
    first = next((frame for frame in frames if frame.index >= (start or 0)), None)
    if first is None:
        raise InputError(f"expected {'frames' if not start else f'a frame {start}'} from {source.name}, got none")
    if start is not None and first.index != start:
        raise InputError(
            f"expected the frame {start} of the objects in {source.name}, got {first.index} as the first that can be "
            f"decoded; draw them on that frame, and start there with --start {first.index}"
        )
    yield tracker.start(first, prompts(first))
    with read_ahead(frames) as ahead:
        yield from _made_behind(tracker.advance(frame) for frame in ahead)


def _made_behind(steps: Iterable[Callable[[], FrameResult]]) -> Iterator[FrameResult]:
    """Yield the result of each step in order, made by a thread while the next step is taken.

    Masks are enlarged and refined on one core. Meanwhile the encoder and the search work on the others, or on a GPU.
    An error of a step is raised after the results before it.
    """
    unmade: SimpleQueue[Callable[[], FrameResult] | None] = SimpleQueue()
    made: SimpleQueue[FrameResult | BaseException] = SimpleQueue()

    def make() -> None:
        while (step := unmade.get()) is not None:
            try:
                made.put(step())
            except BaseException as error:
                made.put(error)

    def next_result() -> FrameResult:
        result = made.get()
        if isinstance(result, BaseException):
            raise result
        return result

    thread = WorkThread(make, "corrflow-results")
    try:
        thread.start()
        remaining, waiting, failure = iter(steps), False, None
        while True:
            try:
                step = next(remaining, None)
            except Exception as error:
                step, failure = None, error
            if step is not None:
                unmade.put(step)
            if waiting:
                yield next_result()
            waiting = step is not None
            if not waiting:
                break
        if failure is not None:
            raise failure
    finally:
        unmade.put(None)
        thread.wait()
