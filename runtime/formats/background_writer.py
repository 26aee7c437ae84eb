"""Background writing: a thread of its own writes results, a few frames behind the tracker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread

from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.prefetch import DEPTH, BoundedQueue


@contextmanager
def write_behind(sinks: Sequence[Sink], depth: int = DEPTH) -> Iterator[Callable[[FrameResult], None]]:
    """Yield a function that queues a result; a thread writes the results to every sink in order.

    depth: results that may wait

    The function raises the error of an earlier write. Leaving the context writes the queued results, also after an
    error, and raises the error of a write unless another error is raised. The caller closes the sinks.
    """
    queue: BoundedQueue[FrameResult | None] = BoundedQueue(depth)
    failed: list[BaseException] = []

    def work() -> None:
        while (result := queue.get()) is not None:
            if failed:
                continue  # empties the queue, so that `write` never blocks
            try:
                for sink in sinks:
                    sink.write(result)
            except BaseException as error:
                failed.append(error)

    def write(result: FrameResult) -> None:
        if failed:
            raise failed[0]
        queue.put(result)

    thread = Thread(target=work, name="corrflow-writer", daemon=True)
    thread.start()
    try:
        yield write
    finally:
        queue.put_last(None)
        thread.join()
    if failed:
        raise failed[0]
