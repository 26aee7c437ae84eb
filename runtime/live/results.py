"""What a session publishes for each frame, and the numbers that say how it is doing."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from threading import Condition

import numpy as np

from corrflow.runtime.live.capture.capture import LiveFrame
from corrflow.runtime.types import Tracks

KEPT = 512
"""Frames over which latencies are summed up."""


@dataclass(frozen=True)
class LiveResult:
    """The tracks of one frame.

    number:   position among the tracked frames, from 0; frame.index counts the dropped ones too
    time:     seconds from the first tracked frame to this one, by the clock that never jumps
    latency:  seconds from the frame's capture to its result
    """

    frame: LiveFrame
    tracks: Tracks
    number: int
    time: float
    latency: float


class LatestResult:
    """The newest result, for a reader that is as slow as it likes."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._result: LiveResult | None = None

    def put(self, result: LiveResult) -> None:
        with self._condition:
            self._result = result
            self._condition.notify_all()

    @property
    def result(self) -> LiveResult | None:
        """The newest, None before the first."""
        return self._result

    def newer(self, than: LiveResult | None, timeout: float) -> LiveResult | None:
        """The newest result once it is another one than given; None where none comes in time."""
        with self._condition:
            self._condition.wait_for(lambda: self._result is not than, timeout)
            return None if self._result is than else self._result


class LatencyStats:
    """Latencies and the pace of the last frames, in fixed memory; written by one thread, read by any."""

    def __init__(self) -> None:
        self._rows: deque[tuple[float, float]] = deque(maxlen=KEPT)  # when a result was there, and its latency

    def add(self, latency: float) -> None:
        self._rows.append((time.monotonic(), latency))

    def frames_per_second(self, over: float = 2.0) -> float:
        """Over the last `over` seconds; 0 with fewer than two frames in them."""
        now = time.monotonic()
        recent = [at for at, _ in list(self._rows) if now - at <= over]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 and recent[-1] > recent[0] else 0.0

    def latency(self, percent: float) -> float:
        """A percentile of the latencies of the last frames, in seconds; 0 before the first."""
        latencies = [latency for _, latency in list(self._rows)]
        return float(np.percentile(latencies, percent)) if latencies else 0.0
