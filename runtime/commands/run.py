"""A whole source through a tracker into sinks: what corrflow-track does once everything is open."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

from corrflow.errors import InputError
from corrflow.runtime.formats.background_writer import write_behind
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, TrackedObject, Tracks
from corrflow.runtime.video.open_source import FrameSource
from corrflow.runtime.video.prefetch import read_ahead


@dataclass(frozen=True)
class Summary:
    """What was done: frames written and the seconds from the first frame to the last."""

    frames: int
    seconds: float


def track_source(
    source: FrameSource,
    tracker: Tracker,
    objects: Sequence[TrackedObject],
    open_sinks: Callable[[], Sequence[Sink]],
    report: Callable[[Frame, Tracks], None] = lambda frame, tracks: None,
) -> Summary:
    """Track the objects, given on the first frame, through the whole source.

    open_sinks is called once the first frame and the objects have been accepted, so that wrong input leaves nothing
    behind. Whatever happens later, what was written so far is closed and valid. Raises InputError for the objects,
    SourceEndedEarly after the last good frame of a damaged source, CorrflowError from sinks. Frames are decoded ahead
    and written behind in threads of their own; `report` hears of a frame when it is tracked.
    """
    frames = iter(source)
    first = next(frames, None)
    if first is None:
        raise InputError(f"expected frames from {source.name}, got none")
    tracks = tracker.start(first.image, objects)
    begin, count = time.perf_counter(), 0
    with ExitStack() as stack:
        sinks = list(open_sinks())
        for sink in sinks:
            stack.callback(sink.close)
        write = stack.enter_context(write_behind(sinks))
        for frame in chain([first], stack.enter_context(read_ahead(frames))):
            if count:
                tracks = tracker.step(frame.image)
            write(frame, tracks)
            count += 1
            report(frame, tracks)
    return Summary(count, time.perf_counter() - begin)
