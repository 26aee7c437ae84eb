"""Worker processes that take one item after another. One that dies costs its item a second try and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Literal

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.process_item import Job, do_item
from corrflow.runtime.tracking.model_options import ModelOptions

TRIES = 2
"""An item is given up when this many workers died of it: decoders may crash on a damaged file."""

REPORT_SECONDS = 0.3


@dataclass(frozen=True)
class Event:
    """What happened to an item: it began, has so many frames, is done, or failed for a reason."""

    kind: Literal["began", "frames", "done", "failed"]
    item: Item
    frames: int = 0
    announced: int | None = None
    reason: str = ""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    item: Item | None = None


def run_workers(job: Job, options: ModelOptions, items: Sequence[Item], count: int, gpus: int = 0) -> Generator[Event]:
    """Do the items in `count` processes; the events come as they happen, one "done" or "failed" for each item.

    gpus: so many are shared out, and a process sees one of them alone; 0: all see all
    The processes end with the iteration, and when this process is killed. Raises InputError for more GPUs than are
    visible.
    """
    context = multiprocessing.get_context("spawn")  # threads of a forked parent's libraries would be gone in its child
    names = _visible_gpus(gpus)

    def start(number: int) -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, job, options), daemon=True)
        with _environment("CUDA_VISIBLE_DEVICES", names[number % gpus] if gpus else None):
            process.start()
        theirs.close()
        return _Worker(process, ours)

    waiting, tries = list(reversed(items)), dict.fromkeys(items, 0)
    workers = [start(number) for number in range(min(count, len(items)))]
    try:
        while waiting or any(worker.item for worker in workers):
            for worker in workers:
                if worker.item is None and waiting:
                    worker.item = waiting.pop()
                    tries[worker.item] += 1
                    yield Event("began", worker.item)
                    with suppress(OSError):  # a worker that is dead already is met below
                        worker.pipe.send(worker.item)
            busy = {worker.pipe: index for index, worker in enumerate(workers) if worker.item}
            for pipe in wait(list(busy)):
                index = busy[pipe]  # type: ignore[index]
                worker = workers[index]
                assert worker.item is not None
                try:
                    event: Event = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    item, code = worker.item, worker.process.exitcode
                    if tries[item] < TRIES:
                        waiting.append(item)
                    else:
                        yield Event("failed", item, reason=f"its worker process died {TRIES} times (exit code {code})")
                    workers[index] = start(index)
                    continue
                if event.kind in ("done", "failed"):
                    worker.item = None
                yield event
    finally:
        for worker in workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _visible_gpus(count: int) -> list[str]:
    """The first `count` of CUDA_VISIBLE_DEVICES where it is set, else the numbers from 0."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)] if named is None else [name for name in named.split(",") if name]
    if len(names) < count:
        raise InputError(f"expected --gpus up to the {len(names)} of CUDA_VISIBLE_DEVICES={named}, got {count}")
    return names[:count]


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """With that variable for processes that are started meanwhile; None leaves it as it is."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _work(pipe: Connection, job: Job, options: ModelOptions) -> None:
    """A worker's life: items come in, events go out, until the other end closes."""
    import signal

    import cv2

    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    cv2.setNumThreads(options.threads or -1)
    with suppress(EOFError, OSError), options.open() as tracker:
        while True:
            item: Item = pipe.recv()
            said = 0.0

            def report(frames: int, announced: int | None, item: Item = item) -> None:
                nonlocal said
                if time.monotonic() - said > REPORT_SECONDS:
                    said = time.monotonic()
                    pipe.send(Event("frames", item, frames, announced))

            try:
                event = Event("done", item, do_item(job, item, tracker, report))
            except CorrflowError as error:
                event = Event("failed", item, reason=str(error))
            except Exception as error:  # one item's surprise must not stop the night's work
                event = Event("failed", item, reason=f"unexpected {type(error).__name__}: {error}")
            tracker.reset()
            pipe.send(event)


def _die_with_parent() -> None:
    """A killed parent cannot end its workers, and they must not write beside those of the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="corrflow-watch", daemon=True).start()
