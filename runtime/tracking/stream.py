"""Tracking through a source: decoding ahead in a thread, and a result for every frame."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from corrflow.errors import InputError
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, FrameResult, TrackedObject
from corrflow.runtime.video.prefetch import read_ahead
from corrflow.runtime.video.source import FrameSource


def track_source(
    source: FrameSource, tracker: Tracker, prompts: Callable[[Frame], Sequence[TrackedObject]]
) -> Generator[FrameResult, None, None]:
    """Yield the result of every frame; the first result is the prompts as they were given.

    prompts: returns the objects of the first frame

    Raises InputError for prompts that do not fit, SourceEndedEarly after the last good frame of a damaged source.
    """
    frames = iter(source)
    first = next(frames, None)
    if first is None:
        raise InputError(f"expected frames from {source.name}, got none")
    yield tracker.start(first, prompts(first))
    with read_ahead(frames) as ahead:
        for frame in ahead:
            yield tracker.step(frame)
