"""Jobs in worker processes, or in this process, with a progress bar of frames."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from corrflow.errors import CorrflowError, InputError
from corrflow.stopping import check_stop, end_with_parent, shut_down_workers, signals_blocked

Job = TypeVar("Job")
Result = TypeVar("Result")

_POLL_SECONDS = 0.5
# Moves the progress bar in the main process, and increments a shared counter in a worker process.
_advance: Callable[[], None] = lambda: None  # noqa: E731


def frame_done() -> None:
    """Advance the progress bar by one frame; called by jobs."""
    _advance()


def run_jobs(
    run: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    frames: int,
    show_progress: bool,
    label: str = "frames",
) -> Iterator[tuple[Job, Result]]:
    """Yield every job with its result, in the order of completion.

    run:     module-level function, since worker processes import it; calls `frame_done` for every frame
    workers: processes; 1 runs the jobs in this process
    frames:  number of frames of all jobs
    label:   text beside the progress bar

    Raises InputError for workers below 1, the errors of jobs, and CorrflowError where a process dies.
    """
    if workers < 1:
        raise InputError(f"expected at least 1 worker, got {workers}")
    if not jobs:
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show_progress) as progress:
        task = progress.add_task(label, total=frames)
        if workers > 1:
            yield from _in_processes(run, jobs, workers, lambda done: progress.update(task, completed=done))
        else:
            yield from _in_this_process(run, jobs, lambda: progress.advance(task))


def _in_this_process(
    run: Callable[[Job], Result], jobs: Sequence[Job], advance: Callable[[], None]
) -> Iterator[tuple[Job, Result]]:
    global _advance
    before, _advance = _advance, advance
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # as in worker processes
    try:
        for job in jobs:
            yield job, run(job)
    finally:
        _advance = before
        cv2.setNumThreads(threads)


def _in_processes(
    run: Callable[[Job], Result], jobs: Sequence[Job], workers: int, show: Callable[[int], None]
) -> Iterator[tuple[Job, Result]]:
    # Spawn, not fork: inference libraries start threads, and a fork would copy their locks.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    executor = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker, initargs=(counter,))
    broken = False
    try:
        with signals_blocked():  # the first job starts the processes
            pending = {executor.submit(run, job): job for job in jobs}
            # Python 3.11 watches a new process only from the next submission on: without one, its death goes unseen.
            executor.submit(_nothing)
        waiting = set(pending)
        while waiting:
            check_stop()
            done, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            show(counter.value)
            for future in done:
                yield pending[future], future.result()
    except BrokenProcessPool as error:
        broken = True
        raise CorrflowError("a worker process died, most often for lack of memory; use fewer workers") from error
    finally:
        shut_down_workers(executor, broken)


def _nothing() -> None:
    """Do nothing, as a job."""


def _start_worker(counter: Any) -> None:
    global _advance
    end_with_parent()
    cv2.setNumThreads(1)

    def advance() -> None:
        with counter.get_lock():
            counter.value += 1

    _advance = advance
