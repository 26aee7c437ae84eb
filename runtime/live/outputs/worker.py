"""Output worker: a sink in a thread of its own behind a short queue, so that the sink cannot block the tracker.

A slow output loses frames, which are counted. A failed output is closed, reported, and opened again after a delay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread

from corrflow.errors import CorrflowError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult
from corrflow.stopping import stop_requested

logger = logging.getLogger("corrflow")

DEPTH = 8
"""Frames in the queue of an output."""

FIRST_WAIT, LONGEST_WAIT = 2.0, 30.0  # seconds before a failed output is opened again
_STOP_CHECK_SECONDS = 0.2  # between two checks for a signal, while a frame waits
LOG_INTERVAL = 60.0  # seconds before the same failure is logged again
RECOVERY_WRITES = 8  # consecutive writes that end a failure; without a receiver, UDP fails only every second send


class SinkWorker:
    """Sink in a thread of its own."""

    def __init__(self, name: str, open: Callable[[], Sink], first_wait: float = FIRST_WAIT, wait: bool = False) -> None:
        """Start the thread.

        name:       name for messages
        open:       creates the sink, again after every failure; it may fail like a write
        first_wait: seconds before the first retry
        wait:       True to let `put` wait for a full queue instead of dropping the frame
        """
        self.name, self._wait = name, wait
        self._open, self._first_wait = open, first_wait
        self._queue: Queue[FrameResult] = Queue(DEPTH)
        self._stop = Event()
        self.written = self.lost = self.failures = 0
        self.error = ""
        self._logged, self._logged_at = "", 0.0
        self._thread = Thread(target=self._work, name=f"corrflow-output-{name}", daemon=True)
        self._thread.start()

    def put(self, result: FrameResult) -> None:
        """Queue a result; a full queue drops the result, unless the worker waits."""
        while self._wait and not stop_requested():  # a receiver that hangs must not keep the files from their end
            with suppress(Full):
                self._queue.put(result, timeout=_STOP_CHECK_SECONDS)
                return
        try:
            self._queue.put_nowait(result)
        except Full:
            self.lost += 1

    def close(self, timeout: float = 1.0) -> bool:
        """Write the queued results and finish. Return False where that takes longer than `timeout` seconds."""
        self._stop.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        sink: Sink | None = None
        wait, retry_at, consecutive = self._first_wait, 0.0, 0
        while True:
            try:
                result = self._queue.get(timeout=0.05)
            except Empty:
                if self._stop.is_set():
                    break
                continue
            if sink is None and time.monotonic() < retry_at:
                self.lost += 1
                continue
            try:
                sink = sink or self._open()
                sink.write(result)
            except Exception as error:  # also a library's own error, because no sink may end the session
                self.lost += 1
                self.failures += 1
                self._log(error, f"trying again in {wait:.0f} s")
                self._close(sink)
                sink, retry_at, consecutive = None, time.monotonic() + wait, 0
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                self.written, consecutive, wait = self.written + 1, consecutive + 1, self._first_wait
                if self.error and consecutive >= RECOVERY_WRITES:
                    logger.warning("%s: goes on", self.name)
                    self.error = self._logged = ""
        self._close(sink)

    def _close(self, sink: Sink | None) -> None:
        if sink is not None:
            try:
                sink.close()
            except Exception as error:
                self._log(error, "it may be incomplete")

    def _log(self, error: Exception, consequence: str) -> None:
        text = str(error) if isinstance(error, CorrflowError) else f"{type(error).__name__}: {error}"
        self.error = text.splitlines()[0] if text else type(error).__name__
        if self.error != self._logged or time.monotonic() - self._logged_at > LOG_INTERVAL:
            self._logged, self._logged_at = self.error, time.monotonic()
            logger.warning("%s: %s; %s", self.name, self.error, consequence)
