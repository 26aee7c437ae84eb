"""Work on images for the page: one job at a time, dropped when its client has gone, and with pauses for the tracker.

The priority is only a little lower than the tracker's. On a busy machine a thread of low priority would keep Python's
interpreter lock for long, and the tracker would wait for it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TypeVar
from weakref import WeakSet

import anyio
from starlette.requests import Request

from corrflow.errors import CorrflowError

JOB_SECONDS = 10.0
"""Limit for one job."""

REST = 4.0
"""Pauses for the tracker, in seconds of work: at most a fifth of one core is taken, however many jobs come."""

_REST_WITHIN = 2.0  # of them between the parts of a job; the remainder comes after it
_SHORTEST_REST, _LONGEST_REST = 0.01, 4.0  # seconds

MAX_WAITING = 6
"""Jobs that wait or run; further ones are refused."""

_EXIT_SECONDS = 2.0  # for a job to end with the process
_NICE = 4  # less than half the share of the tracker's threads
_TICK = 0.05  # seconds between checks of the client

_Result = TypeVar("_Result")
Check = Callable[[], None]
"""Called between the parts of a job; raises CorrflowError where the job is to end."""


_exit = threading.Event()
_threads: WeakSet[threading.Thread] = WeakSet()


@atexit.register
def _end_jobs() -> None:
    """Wait for jobs: OpenCV aborts the process when it returns into an interpreter that is ending."""
    _exit.set()
    for thread in list(_threads):
        thread.join(_EXIT_SECONDS)


def unlimited() -> None:
    """Never end a job."""


class ImageJobs:
    """Queue of jobs, each in a thread of its own. Used by the event loop's thread."""

    def __init__(self) -> None:
        self._free, self._count = threading.Lock(), 0

    async def run(self, request: Request, work: Callable[[Check], _Result]) -> _Result:
        """Run a job and return its result. `work` calls its argument between its parts.

        Raises CorrflowError if too many jobs wait, if the job takes too long, or if its client has gone.
        """
        if self._count >= MAX_WAITING:
            raise CorrflowError("the page is busy with other drawings; try again in a moment")
        self._count += 1
        try:
            while not self._free.acquire(blocking=False):
                await _check_client(request)
                await anyio.sleep(_TICK / 5)
            job = _Job(work, self._free)
            waiting = asyncio.wrap_future(job.future)
            waiting.add_done_callback(_forget_error)
            try:
                while not (await asyncio.wait([waiting], timeout=_TICK))[0]:
                    await _check_client(request)
                return waiting.result()
            finally:
                job.stop.set()
        finally:
            self._count -= 1


async def _check_client(request: Request) -> None:
    if await request.is_disconnected():
        raise CorrflowError("the client has gone")


def _forget_error(waiting: asyncio.Future) -> None:
    """Note that an error is known: asyncio logs those of jobs whose clients have gone, which nobody waits for."""
    if not waiting.cancelled():
        waiting.exception()


class _Job:
    """One job in its thread, which releases `free` after a pause."""

    def __init__(self, work: Callable[[Check], object], free: threading.Lock) -> None:
        self.future: Future = Future()
        self.stop = threading.Event()
        self._work, self._free = work, free
        self._deadline = time.monotonic() + JOB_SECONDS
        self._rested = 0.0
        thread = threading.Thread(target=self._run, name="corrflow-image-job", daemon=True)
        _threads.add(thread)
        thread.start()

    def _check(self) -> None:
        # By the thread's own time here: the tracker's answer to this job is not its work.
        if (rest := _REST_WITHIN * time.thread_time() - self._rested) > _SHORTEST_REST:
            self._rested += rest
            self.stop.wait(rest)
        if self.stop.is_set() or _exit.is_set():
            raise CorrflowError("the client has gone")
        if time.monotonic() > self._deadline:
            raise CorrflowError(f"the drawing takes more than {JOB_SECONDS:g} s to fill; draw less at a time")

    def _run(self) -> None:
        _lower_priority()
        begin = time.monotonic()
        try:
            self._set(self.future.set_result, self._work(self._check))
        except Exception as error:  # `ImageJobs.run` raises this error
            self._set(self.future.set_exception, error)
        finally:
            worked = time.monotonic() - begin - self._rested
            _exit.wait(min(max(0.0, REST * worked - self._rested), _LONGEST_REST))
            self._free.release()

    def _set(self, setter: Callable, value: object) -> None:
        with suppress(InvalidStateError):  # cancelled with its request
            setter(value)


def _lower_priority() -> None:
    """Let other threads of this process go first, where the system has priorities for threads."""
    if sys.platform == "linux":
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)
