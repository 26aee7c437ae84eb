"""The newest result of a live session, and the statistics of its latency."""

from __future__ import annotations

import time
from collections import deque
from threading import Condition

import numpy as np

from corrflow.runtime.types import FrameResult

STATISTICS_FRAMES = 512
"""Frames that latency statistics cover at most."""
LATENCY_SECONDS = 10.0
"""Seconds that a displayed latency covers: what was slow before says nothing about now."""


class LatestResult:
    """Newest result, for readers of any speed."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._result: FrameResult | None = None

    def put(self, result: FrameResult) -> None:
        """Set the newest result, and wake the readers."""
        with self._condition:
            self._result = result
            self._condition.notify_all()

    @property
    def result(self) -> FrameResult | None:
        """Newest result; None before the first."""
        return self._result

    def newer(self, than: FrameResult | None, timeout: float) -> FrameResult | None:
        """Wait for a result other than `than` and return it; None after `timeout` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._result is not than, timeout)
            return None if self._result is than else self._result


class LatencyStats:
    """Latency and frame rate of the last frames, in fixed memory; one thread writes, any thread reads."""

    def __init__(self) -> None:
        self._rows: deque[tuple[float, float]] = deque(maxlen=STATISTICS_FRAMES)  # time and latency of each result

    def add(self, latency: float) -> None:
        """Add the latency of a result in seconds."""
        self._rows.append((time.monotonic(), latency))

    def frames_per_second(self, over: float = 2.0) -> float:
        """Return the frame rate of the last `over` seconds; 0 with fewer than two frames in them."""
        now = time.monotonic()
        recent = [at for at, _ in list(self._rows) if now - at <= over]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 and recent[-1] > recent[0] else 0.0

    def latency(self, percent: float, over: float = LATENCY_SECONDS) -> float:
        """Return a percentile of the latencies of the last `over` seconds, in seconds; 0 before the first frame.

        Where no frame came in that time, the newest one counts.
        """
        rows, now = list(self._rows), time.monotonic()
        latencies = [latency for at, latency in rows if now - at <= over] or [latency for _, latency in rows[-1:]]
        return float(np.percentile(latencies, percent)) if latencies else 0.0
