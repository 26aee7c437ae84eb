"""Worker processes, each for one item at a time. The item of a crashed worker is tried once more."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.process_item import ItemResult, Job, process_item
from corrflow.runtime.tracking.model_options import ModelOptions
from corrflow.stopping import check_stop, end_with_parent, signals_blocked

MAX_ATTEMPTS = 2
"""Attempts per item, because a decoder may crash on a damaged file."""

REPORT_SECONDS = 0.3
"""Seconds between two reports of progress."""

CHECK_SECONDS = 0.5
"""Seconds between two checks whether a signal came."""

END_SECONDS = 0.5
"""Seconds to wait for a killed process, which a disk may hold."""


@dataclass(frozen=True)
class Event:
    """Progress of an item: started, frames done, done, or failed for a reason.

    labels: what was read of a finished item's labels, see `summary_record`
    """

    kind: Literal["started", "frames", "done", "failed"]
    item: Item
    frames: int = 0
    announced: int | None = None
    reason: str = ""
    labels: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def done(cls, item: Item, result: ItemResult) -> Event:
        """Return the event of a finished item."""
        return cls("done", item, result.frames, labels=result.labels)


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    item: Item | None = None


def run_workers(job: Job, options: ModelOptions, items: Sequence[Item], count: int, gpus: int = 0) -> Generator[Event]:
    """Process the items in `count` processes, and yield events; each item ends with "done" or "failed".

    gpus: number of GPUs, of which each process uses one; 0 lets every process use all

    The processes end with the iteration, or if this process is killed. Raises InputError for too many GPUs.
    """
    context = multiprocessing.get_context("spawn")  # a forked child would lack the threads of its parent's libraries
    devices = _visible_gpus(gpus)

    def start(number: int) -> _Worker:
        pipe, worker_pipe = context.Pipe()
        process = context.Process(target=_work, args=(worker_pipe, job, options), daemon=True)
        visible = _environment("CUDA_VISIBLE_DEVICES", devices[number % gpus] if gpus else None)
        with visible, signals_blocked():  # Ctrl-C reaches the whole group; the parent ends its workers
            process.start()
        worker_pipe.close()
        return _Worker(process, pipe)

    waiting, attempts = list(reversed(items)), dict.fromkeys(items, 0)
    workers: list[_Worker] = []
    try:
        for number in range(min(count, len(items))):
            workers.append(start(number))
        while waiting or any(worker.item for worker in workers):
            for worker in workers:
                if worker.item is None and waiting:
                    worker.item = waiting.pop()
                    attempts[worker.item] += 1
                    yield Event("started", worker.item)
                    with suppress(OSError):  # a dead worker is handled below
                        worker.pipe.send(worker.item)
            busy = {worker.pipe: index for index, worker in enumerate(workers) if worker.item}
            check_stop()
            for pipe in wait(list(busy), CHECK_SECONDS):
                index = busy[pipe]  # type: ignore[index]
                worker = workers[index]
                assert worker.item is not None
                try:
                    event: Event = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    check_stop()
                    item, code = worker.item, worker.process.exitcode
                    if attempts[item] < MAX_ATTEMPTS:
                        waiting.append(item)
                    else:
                        yield Event(
                            "failed", item, reason=f"its worker process died {MAX_ATTEMPTS} times (exit code {code})"
                        )
                    workers[index] = start(index)
                    continue
                if event.kind in ("done", "failed"):
                    worker.item = None
                yield event
    finally:
        for worker in workers:
            worker.pipe.close()
            worker.process.kill()  # the incomplete results of an item are in a folder that is removed
        for worker in workers:
            worker.process.join(END_SECONDS)


def _visible_gpus(count: int) -> list[str]:
    """Return the first `count` devices of CUDA_VISIBLE_DEVICES, or the numbers from 0 if unset. Raises InputError."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = list(map(str, range(count))) if visible is None else [name for name in visible.split(",") if name]
    if len(devices) < count:
        raise InputError(f"expected --gpus up to the {len(devices)} of CUDA_VISIBLE_DEVICES={visible}, got {count}")
    return devices[:count]


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable while the context lasts; None leaves the variable as it is."""
    previous = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            if previous is None:
                del os.environ[name]
            else:
                os.environ[name] = previous


def _work(pipe: Connection, job: Job, options: ModelOptions) -> None:
    """Run a worker: receive items and send events until the pipe closes."""
    import cv2

    end_with_parent()
    cv2.setNumThreads(options.threads or -1)
    with suppress(EOFError, OSError), options.open() as tracker:
        while True:
            item: Item = pipe.recv()
            reported = 0.0

            def report(frames: int, announced: int | None, item: Item = item) -> None:
                nonlocal reported
                if time.monotonic() - reported > REPORT_SECONDS:
                    reported = time.monotonic()
                    pipe.send(Event("frames", item, frames, announced))

            try:
                event = Event.done(item, process_item(job, item, tracker, report))
            except CorrflowError as error:
                event = Event("failed", item, reason=str(error))
            except Exception as error:  # an unexpected error of one item must not stop the batch
                event = Event("failed", item, reason=f"unexpected {type(error).__name__}: {error}")
            tracker.reset()
            pipe.send(event)
