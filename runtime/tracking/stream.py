"""Tracking through a source: decoding ahead in a thread, and a result for every frame."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from corrflow.errors import InputError
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, FrameResult, TrackedObject
from corrflow.runtime.video.prefetch import read_ahead
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
        for frame in ahead:
            yield tracker.step(frame)
