"""Reading ahead and writing behind: decoding, tracking and writing side by side, a fixed number of frames apart.

Decoders and encoders work outside Python's lock, so that a thread each is enough. An error in a thread comes out where
the loop meets its place in the stream: a source's after its last good frame, a sink's at a later frame or at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Thread

from corrflow.runtime.types import Frame

DEPTH = 2
"""Frames that may wait on either side: enough to even out slow ones, few enough to hold in memory."""

_WAIT = 0.1  # seconds between looks at whether anybody still wants what a thread has


@dataclass(frozen=True)
class _End:
    """What a reading thread puts last: the source's error, or None at its regular end."""

    error: BaseException | None = None


@contextmanager
def read_ahead(frames: Iterator[Frame], depth: int = DEPTH) -> Iterator[Iterator[Frame]]:
    """The same frames, of which `depth` are decoded in advance by a thread that ends with the context.

    An error of the source is raised after its last good frame.
    """
    queue: Queue[Frame | _End] = Queue(depth)
    unwanted = Event()

    def put(item: Frame | _End) -> bool:
        while not unwanted.is_set():
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
        unwanted.set()
        thread.join()
