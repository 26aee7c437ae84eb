"""Prefetching: a thread decodes a fixed number of frames ahead. Decoders release Python's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

from corrflow.runtime.types import Frame
from corrflow.stopping import seconds_left

DEPTH = 2
"""Frames in a queue: enough for frames of uneven cost, few enough for memory."""

_Item = TypeVar("_Item")


class BoundedQueue(Generic[_Item]):
    """Queue of a fixed length that an interrupt cannot leave waiting.

    queue.Queue wakes its readers by a Condition, and loses one for good where Ctrl-C strikes in between. SimpleQueue is
    written in C and has no such moment. A second one holds the free places.
    """

    def __init__(self, length: int) -> None:
        self._items: SimpleQueue[_Item] = SimpleQueue()
        self._places: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        for _ in range(length):
            self._places.put(None)

    def put(self, item: _Item) -> bool:
        """Wait for a place and add an item; return False once the queue is closed."""
        self._places.get()
        if self._closed:
            self._places.put(None)
            return False
        self._items.put(item)
        return True

    def put_last(self, item: _Item) -> None:
        """Add an item without waiting for a place."""
        self._items.put(item)

    def get(self) -> _Item:
        """Wait for an item and return it."""
        item = self._items.get()
        self._places.put(None)
        return item

    def close(self) -> None:
        """Let `put` return False from now on, also where it waits."""
        self._closed = True
        self._places.put(None)


class WorkThread:
    """Daemon thread whose end can be awaited again after a signal has interrupted the wait.

    Thread.join cannot: before Python 3.13, an interrupted join marks a running thread as ended.
    """

    def __init__(self, target: Callable[[], None], name: str) -> None:
        """Prepare the thread."""
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._target = target
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._started = False

    def start(self) -> None:
        """Start the thread."""
        self._started = True
        self._thread.start()

    def wait(self) -> None:
        """Wait until the thread has ended; after a signal, only as long as the process goes on."""
        if not self._started:
            return
        try:
            self._ended.put(self._ended.get(timeout=seconds_left()))
        except Empty:
            return
        self._thread.join()

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._ended.put(None)


@dataclass(frozen=True)
class _End:
    """Last item of a thread: the source's error, or None at its regular end."""

    error: BaseException | None = None


@contextmanager
def read_ahead(frames: Iterator[Frame], depth: int = DEPTH) -> Iterator[Iterator[Frame]]:
    """Yield the frames, decoded by a thread that is `depth` frames ahead and ends with the context.

    An error of the source is raised after its last valid frame.
    """
    queue: BoundedQueue[Frame | _End] = BoundedQueue(depth)

    def read() -> None:
        end = _End()
        try:
            for frame in frames:
                if not queue.put(frame):
                    return
        except BaseException as error:
            end = _End(error)
        queue.put_last(end)

    def ordered() -> Iterator[Frame]:
        while not isinstance(item := queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    thread = WorkThread(read, "corrflow-reader")
    try:
        thread.start()
        yield ordered()
    finally:
        queue.close()
        thread.wait()
