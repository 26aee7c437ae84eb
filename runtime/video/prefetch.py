"""Prefetching: a thread decodes a fixed number of frames ahead. Decoders release Python's lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Thread

from corrflow.runtime.types import Frame

DEPTH = 2
"""Frames in a queue: enough for frames of uneven cost, few enough for memory."""

_WAIT = 0.1  # seconds between checks for the end of the context


@dataclass(frozen=True)
class _End:
    """Last item of a thread: the source's error, or None at its regular end."""

    error: BaseException | None = None


@contextmanager
def read_ahead(frames: Iterator[Frame], depth: int = DEPTH) -> Iterator[Iterator[Frame]]:
    """Yield the frames, decoded by a thread that is `depth` frames ahead and ends with the context.

    An error of the source is raised after its last valid frame.
    """
    queue: Queue[Frame | _End] = Queue(depth)
    stopped = Event()

    def put(item: Frame | _End) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=_WAIT)
            except Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for frame in frames:
                if not put(frame):
                    return
        except BaseException as error:
            put(_End(error))
        else:
            put(_End())

    def ordered() -> Iterator[Frame]:
        while not isinstance(item := queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    thread = Thread(target=read, name="corrflow-reader", daemon=True)
    thread.start()
    try:
        yield ordered()
    finally:
        stopped.set()
        thread.join()
