"""Background writing: a thread of its own writes results, a few frames behind the tracker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.prefetch import DEPTH, BoundedQueue, WorkThread
from corrflow.stopping import add_finisher, remove_finisher


@contextmanager
def write_behind(
    sinks: Sequence[Sink], depth: int = DEPTH, close: bool = False
) -> Iterator[Callable[[FrameResult], None]]:
    """Yield a function that queues a result; a thread writes the results to every sink in order.

    depth: results that may wait
    close: True to close the sinks at the end in the thread, where no signal interrupts them

    The function raises the error of an earlier write. Leaving the context writes the queued results, also after an
    error or a signal. It raises the error of a write or of closing unless another error is raised.
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
        if close:
            try:
                with ExitStack() as stack:
                    for sink in reversed(sinks):  # a stack ends with its first callback: files come before networks
                        stack.callback(sink.close)
            except BaseException as error:
                failed.append(error)

    def write(result: FrameResult) -> None:
        if failed:
            raise failed[0]
        queue.put(result)

    def finish() -> None:
        queue.close()
        queue.put_last(None)
        thread.wait()

    thread = WorkThread(work, "corrflow-writer")
    add_finisher(finish)
    try:
        thread.start()
        yield write
    finally:
        finish()
        remove_finisher(finish)  # not where a signal interrupts `finish`
    if failed:
        raise failed[0]
