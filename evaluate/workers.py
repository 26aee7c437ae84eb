"""Jobs in several processes, or in this one, with a progress bar that counts frames while they run."""

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

J = TypeVar("J")
R = TypeVar("R")

_SECONDS_BETWEEN_LOOKS = 0.5
# Frames done by this process's jobs: a function in the main process, a shared counter in a worker.
_advance: Callable[[], None] = lambda: None  # noqa: E731


def frame_done() -> None:
    """To be called by a job for each frame, so that the progress bar moves."""
    _advance()


def run_jobs(
    run: Callable[[J], R], jobs: Sequence[J], workers: int, frames: int, show_progress: bool, label: str = "frames"
) -> Iterator[tuple[J, R]]:
    """Every job with its result, in the order they end.

    run:     a function of a module, since it is sent to other processes; calls `frame_done`
    workers: processes; 1 runs the jobs here, one after another
    frames:  how many there are in all jobs
    label:   what the progress bar says

    Raises InputError for no workers, what a job raises, and CorrflowError when a process dies.
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


def _in_this_process(run: Callable[[J], R], jobs: Sequence[J], advance: Callable[[], None]) -> Iterator[tuple[J, R]]:
    global _advance
    before, _advance = _advance, advance
    try:
        for job in jobs:
            yield job, run(job)
    finally:
        _advance = before


def _in_processes(
    run: Callable[[J], R], jobs: Sequence[J], workers: int, show: Callable[[int], None]
) -> Iterator[tuple[J, R]]:
    # Spawned, not forked: inference libraries start threads, and a fork would copy their locks.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    executor = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker, initargs=(counter,))
    try:
        pending = {executor.submit(run, job): job for job in jobs}
        waiting = set(pending)
        while waiting:
            done, waiting = wait(waiting, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            show(counter.value)
            for future in done:
                yield pending[future], future.result()
    except BrokenProcessPool as error:
        raise CorrflowError("a worker process died, most often for lack of memory; use fewer workers") from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker(counter: Any) -> None:
    global _advance
    cv2.setNumThreads(1)

    def advance() -> None:
        with counter.get_lock():
            counter.value += 1

    _advance = advance
