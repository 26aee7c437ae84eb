"""Outputs while live: each in a thread of its own behind a short queue, so that none can hold up the tracker.

A slow output loses frames, which are counted; one that fails is closed, said so, and opened again after a while.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Protocol, TypeVar

from corrflow.errors import CorrflowError
from corrflow.runtime.live.results import LiveResult

logger = logging.getLogger("corrflow")

DEPTH = 8
"""Frames that may wait for a slow output."""

FIRST_WAIT, LONGEST_WAIT = 2.0, 30.0  # seconds before a failed output is tried again
SAID_AGAIN = 60.0  # seconds before the same failure is said once more
WELL_AGAIN = 8  # frames written in a row that end a failure: of what nobody receives, every second datagram gets out


_LiveSink = TypeVar("_LiveSink", bound="LiveSink")


class LiveSink(Protocol):
    """Where live results go: the one interface of files, networks and other programs.

    Made by a function without arguments, again after every failure; called by one thread.
    """

    def write(self, result: LiveResult) -> None:
        """Take one frame's result. Raises CorrflowError (or whatever its library raises) where that fails."""
        ...

    def close(self) -> None:
        """Finish; what was written stays valid."""
        ...

    def __enter__(self: _LiveSink) -> _LiveSink:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class SinkWorker:
    """A sink in its own thread.

    name:  for people
    open:  makes the sink; failures are waited out like those of writing
    """

    def __init__(self, name: str, open: Callable[[], LiveSink], first_wait: float = FIRST_WAIT) -> None:
        self.name = name
        self._open, self._first_wait = open, first_wait
        self._queue: Queue[LiveResult] = Queue(DEPTH)
        self._stop = Event()
        self.written = self.lost = self.failures = 0
        self.error = ""
        self._said, self._said_at = "", 0.0
        self._thread = Thread(target=self._work, name=f"corrflow-output-{name}", daemon=True)
        self._thread.start()

    def put(self, result: LiveResult) -> None:
        """Hand over a result; never waits."""
        try:
            self._queue.put_nowait(result)
        except Full:
            self.lost += 1

    def close(self, timeout: float = 1.0) -> bool:
        """Write what waits and finish, within `timeout` seconds; False where the sink takes longer."""
        self._stop.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        sink: LiveSink | None = None
        wait, again, in_a_row = self._first_wait, 0.0, 0
        while True:
            try:
                result = self._queue.get(timeout=0.05)
            except Empty:
                if self._stop.is_set():
                    break
                continue
            if sink is None and (time.monotonic() < again):
                self.lost += 1
                continue
            try:
                sink = sink or self._open()
                sink.write(result)
            except Exception as error:  # a library's own as well: no sink may end the session
                self.lost += 1
                self.failures += 1
                self._say(error, f"trying again in {wait:.0f} s")
                self._close(sink)
                sink, again, wait, in_a_row = None, time.monotonic() + wait, min(2 * wait, LONGEST_WAIT), 0
            else:
                self.written, in_a_row, wait = self.written + 1, in_a_row + 1, self._first_wait
                if self.error and in_a_row >= WELL_AGAIN:
                    logger.warning("%s: goes on", self.name)
                    self.error = self._said = ""
        self._close(sink)

    def _close(self, sink: LiveSink | None) -> None:
        if sink is not None:
            try:
                sink.close()
            except Exception as error:
                self._say(error, "it may be incomplete")

    def _say(self, error: Exception, consequence: str) -> None:
        text = str(error) if isinstance(error, CorrflowError) else f"{type(error).__name__}: {error}"
        self.error = text.splitlines()[0] if text else type(error).__name__
        if self.error != self._said or time.monotonic() - self._said_at > SAID_AGAIN:
            self._said, self._said_at = self.error, time.monotonic()
            logger.warning("%s: %s; %s", self.name, self.error, consequence)
