"""Capture of a live source: the newest frame waits, older frames are dropped and counted.

Each connection has a thread of its own, because a driver may block for ever. A supervisor abandons a connection that
delivers nothing within its timeout, and opens another. Late frames of an abandoned thread are discarded; the thread
releases its device once the driver returns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Condition, Thread

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.live.capture.readers import Reader
from corrflow.runtime.video.source_uri import redacted

logger = logging.getLogger("corrflow")

MAX_BLOCKED = 3
"""Threads blocked in a driver, beyond which nothing is opened until one returns."""

_TICK = 0.05  # seconds between checks of the clock


@dataclass(frozen=True)
class Timeouts:
    """Seconds that opening and reading may take, and seconds before the next attempt.

    The wait doubles from `wait` to `longest_wait` with every attempt without a frame.
    """

    opening: float = 10.0
    reading: float = 5.0
    wait: float = 0.5
    longest_wait: float = 8.0

    def __post_init__(self) -> None:
        if not all(0 < number < 3600 for number in (self.opening, self.reading, self.wait, self.longest_wait)):
            raise InputError(f"expected timeouts and waits above 0 and below 3600 seconds, got {self}")


@dataclass(frozen=True)
class CapturedFrame:
    """Frame of a live source.

    image:      [H, W, 3] uint8, BGR
    index:      position among all captured frames, dropped frames included, from 0
    captured:   time of capture by time.monotonic()
    wall:       time of capture in seconds since 1970
    connection: number of the connection, from 1
    """

    image: np.ndarray
    index: int
    captured: float
    wall: float
    connection: int


@dataclass(frozen=True)
class Counts:
    """Frame counts: always captured = taken + dropped + waiting. `waiting` is 0 or 1, and 0 after the end."""

    captured: int = 0
    taken: int = 0
    dropped: int = 0
    waiting: int = 0
    connections: int = 0
    failures: int = 0


class Capture:
    """Open source with its newest frame.

    open_reader: opens the source; called again after every failure, in a new thread each time
    endless:     True for a camera, which is opened again when it ends, fails or times out; False for a file or standard
                 input, which has no timeout and whose end or failure ends the capture

    An InputError before the first frame ends the capture with that error.
    """

    def __init__(
        self, open_reader: Callable[[], Reader], timeouts: Timeouts | None = None, endless: bool = True
    ) -> None:
        self.timeouts = timeouts or Timeouts()
        self._open_reader, self._endless = open_reader, endless
        self._condition = Condition()
        self._counts = Counts()
        self._slot: CapturedFrame | None = None
        self._state, self._reason = "connecting", ""
        self._connection = 0  # connection whose frames count
        self._last_activity = 0.0
        self._open = self._over = False  # the connection is open, has ended
        self._error: CorrflowError | None = None  # error of the last connection
        self._fatal: CorrflowError | None = None  # error that ended the capture
        self._closed = False
        self._threads: list[Thread] = []
        self._supervisor = Thread(target=self._supervise, name="corrflow-capture", daemon=True)

    def start(self) -> Capture:
        """Start capturing."""
        self._supervisor.start()
        return self

    def take(self, timeout: float) -> CapturedFrame | None:
        """Return the newest frame that was not taken yet; None after `timeout` seconds or after the end.

        Raises the error that ended the capture, after the last frame.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._slot is not None or self.ended, timeout)
            frame, self._slot = self._slot, None
            if frame is not None:
                self._counts = replace(self._counts, taken=self._counts.taken + 1, waiting=0)
            elif self._fatal is not None:
                raise self._fatal
            return frame

    @property
    def ended(self) -> bool:
        """True if no further frame will come."""
        return self._state in ("ended", "closed")

    @property
    def counts(self) -> Counts:
        """Frame counts so far."""
        with self._condition:
            return self._counts

    @property
    def state(self) -> tuple[str, str]:
        """State (connecting, running, waiting, blocked, ended or closed) and the reason of the last failure."""
        with self._condition:
            return self._state, self._reason

    def close(self, timeout: float = 1.0) -> None:
        """Stop within `timeout` seconds. A thread that is blocked in a driver ends with the process."""
        with self._condition:
            self._closed = True
            self._connection += 1
            self._finish("closed")
            self._condition.notify_all()
        deadline = time.monotonic() + timeout
        for thread in (self._supervisor, *self._threads):
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _finish(self, state: str) -> None:
        if state == "closed" and self._slot is not None:
            self._slot = None
            self._counts = replace(self._counts, dropped=self._counts.dropped + 1, waiting=0)
        if not self.ended:
            self._state = state

    def _supervise(self) -> None:
        wait = self.timeouts.wait
        while True:
            with self._condition:
                before = self._counts.captured
            self._run_one_connection()
            with self._condition:
                if self._closed:
                    return
                self._connection += 1  # discards late frames of the last connection
                if not self._endless or (isinstance(self._error, InputError) and not self._counts.captured):
                    self._fatal = self._error
                    self._finish("ended")
                    self._condition.notify_all()
                    return
                reason = redacted(str(self._error)) if self._error else "the stream ended" if self._over else None
                self._reason = self._reason if reason is None else reason
                self._counts = replace(self._counts, failures=self._counts.failures + 1)
                wait = self.timeouts.wait if self._counts.captured > before else wait
                self._state = "waiting"
                logger.warning("source: %s; trying again in %.1f s", self._reason, wait)
                self._condition.wait_for(lambda: self._closed, wait)
                wait = min(2 * wait, self.timeouts.longest_wait)
                while not self._closed and self._blocked() >= MAX_BLOCKED:
                    self._state = "blocked"
                    self._condition.wait_for(lambda: self._closed, _TICK)
                if self._closed:
                    return

    def _blocked(self) -> int:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        return len(self._threads)

    def _run_one_connection(self) -> None:
        """Open the source in a thread, and return once that ends or times out."""
        with self._condition:
            if self._closed:
                return
            self._connection += 1
            connection = self._connection
            self._open, self._over, self._error = False, False, None
            self._state, self._last_activity = "connecting", time.monotonic()
            self._counts = replace(self._counts, connections=self._counts.connections + 1)
            thread = Thread(target=self._read, args=(connection, self._counts.connections), name="corrflow-source")
            thread.daemon = True
            self._threads.append(thread)
            thread.start()
            while not self._closed and not self._over:
                limit = self.timeouts.reading if self._open else self.timeouts.opening
                left = self._last_activity + limit - time.monotonic()
                if left <= 0 and self._endless:
                    what = "no frame came" if self._open else "it did not open"
                    self._reason = f"{what} within {limit:g} s"
                    return
                self._condition.wait_for(lambda: self._closed or self._over, min(max(left, _TICK), 10 * _TICK))

    def _read(self, connection: int, number: int) -> None:
        reader: Reader | None = None
        error: CorrflowError | None = None
        try:
            reader = self._open_reader()
            if self._opened(connection):
                while (image := reader.read()) is not None and self._offer(connection, number, image):
                    pass
        except CorrflowError as caught:
            error = caught
        except Exception as caught:  # a library's own error; the camera may work again
            error = CorrflowError(redacted(f"reading failed ({type(caught).__name__}: {caught})"))
        finally:
            if reader is not None:
                try:
                    reader.close()
                except Exception as caught:
                    logger.warning("source: closing failed (%s)", redacted(str(caught)))
            with self._condition:
                if connection == self._connection:
                    self._over, self._error = True, error
                self._condition.notify_all()

    def _opened(self, connection: int) -> bool:
        """Mark the connection as open. Return False if it was abandoned."""
        with self._condition:
            if connection == self._connection:
                self._open, self._last_activity = True, time.monotonic()
            return connection == self._connection

    def _offer(self, connection: int, number: int, image: np.ndarray) -> bool:
        """Replace the waiting frame. Return False if the connection was abandoned."""
        with self._condition:
            if connection != self._connection:
                return False
            self._last_activity = time.monotonic()
            self._state = "running"
            counts = self._counts
            self._counts = replace(
                counts, captured=counts.captured + 1, dropped=counts.dropped + counts.waiting, waiting=1
            )
            self._slot = CapturedFrame(image, counts.captured, self._last_activity, time.time(), number)
            self._condition.notify_all()
            return True
