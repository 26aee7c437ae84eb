"""Output worker: any sink in a thread of its own behind a short queue, so that it cannot hold up the tracker.

A slow output loses frames, which are counted. A failed output is closed, reported, and opened again after a while.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import Empty, Full, Queue
from threading import Event, Thread

from corrflow.errors import CorrflowError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult

logger = logging.getLogger("corrflow")

DEPTH = 8
"""Frames that may wait for a slow output."""

FIRST_WAIT, LONGEST_WAIT = 2.0, 30.0  # seconds before a failed output is tried again
SAID_AGAIN = 60.0  # seconds before the same failure is said once more
WELL_AGAIN = 8  # frames written in a row that end a failure: of what nobody receives, every second datagram gets out


class SinkWorker:
    """Any sink in a thread of its own."""

    def __init__(self, name: str, open: Callable[[], Sink], first_wait: float = FIRST_WAIT, wait: bool = False) -> None:
        """Start the thread.

        name: shown to people
        open: creates the sink, again after every failure; it is retried like a write
        wait: True for files, where `put` waits for room instead of dropping the frame
        """
        self.name, self._wait = name, wait
        self._open, self._first_wait = open, first_wait
        self._queue: Queue[FrameResult] = Queue(DEPTH)
        self._stop = Event()
        self.written = self.lost = self.failures = 0
        self.error = ""
        self._said, self._said_at = "", 0.0
        self._thread = Thread(target=self._work, name=f"corrflow-output-{name}", daemon=True)
        self._thread.start()

    def put(self, result: FrameResult) -> None:
        """Hand over a result; a full queue drops it, unless the worker waits."""
        if self._wait:
            self._queue.put(result)
            return
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
        sink: Sink | None = None
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

    def _close(self, sink: Sink | None) -> None:
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
