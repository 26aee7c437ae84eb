"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Queue
from threading import Thread

from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import Frame, Tracks
from corrflow.runtime.video.prefetch import DEPTH


@contextmanager
def write_behind(sinks: Sequence[Sink], depth: int = DEPTH) -> Iterator[Callable[[Frame, Tracks], None]]:
    """A function that hands a frame's tracks to a thread, which writes them to every sink in order.

    The function raises what an earlier write raised. Leaving the context writes what is still waiting, also after an
    interruption, and raises the error of a last write unless another is on its way. Closing is left to the caller.
    """
    queue: Queue[tuple[Frame, Tracks] | None] = Queue(depth)
    failed: list[BaseException] = []

    def work() -> None:
        while (item := queue.get()) is not None:
            if failed:
                continue  # emptied, so that nobody waits for room
            try:
                for sink in sinks:
                    sink.write(*item)
            except BaseException as error:
                failed.append(error)

    def write(frame: Frame, tracks: Tracks) -> None:
        if failed:
            raise failed[0]
        queue.put((frame, tracks))

    thread = Thread(target=work, name="corrflow-writer", daemon=True)
    thread.start()
    try:
        yield write
    except BaseException:
        queue.put(None)
        thread.join()
        raise
    queue.put(None)
    thread.join()
    if failed:
        raise failed[0]
