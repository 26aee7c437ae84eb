"""corrflow-bench soak: latency and memory over a long live session, with a synthetic camera and a real tracker."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from corrflow.bench.options import SoakOptions
from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.live.capture.capture import Capture
from corrflow.runtime.live.session import Session
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

MAX_GROWTH = 24 * 2**20
"""Maximum growth of memory in bytes, from the second quarter to the last."""

MAX_DRIFT = 0.5
"""Maximum growth of the queueing delay before a step, from the second quarter to the last, in tracking steps.

The delay grows if frames pile up. The step itself takes longer if the machine is busy.
"""

_HEIGHT, _WIDTH, _SIDE = 240, 320, 60


@dataclass(frozen=True)
class SoakResult:
    """Measurements of each tracked frame, in order.

    latency: seconds from capture to result; step: seconds of the tracker; memory: resident bytes
    """

    latency: np.ndarray
    step: np.ndarray
    memory: np.ndarray
    captured: int
    tracked: int
    dropped: int
    interval: float

    @property
    def latency_limit(self) -> float:
        """99th percentile of the step time plus two frame intervals."""
        return float(np.percentile(self.step, 99)) + 2 * self.interval

    @property
    def drift(self) -> float:
        """Growth of the median queueing delay in seconds, from the second quarter to the last."""
        (latency, last_latency), (step, last_step) = _quarters(self.latency), _quarters(self.step)
        return (last_latency - last_step) - (latency - step)

    def check(self) -> None:
        """Raise CorrflowError for the first condition that is violated."""
        latency = float(np.percentile(self.latency, 99))
        drift, max_drift = self.drift, MAX_DRIFT * float(np.median(self.step)) + 2 * self.interval
        growth = _growth(self.memory)
        for holds, condition in (
            (self.captured == self.tracked + self.dropped, "captured = tracked + dropped"),
            (
                latency <= self.latency_limit,
                f"99 % of latencies below {self.latency_limit:.3f} s, got {latency:.3f} s",
            ),
            (drift <= max_drift, f"queueing delays that do not grow, got {drift:+.3f} s"),
            (growth <= MAX_GROWTH, f"flat memory, got {growth / 2**20:+.1f} MiB"),
        ):
            if not holds:
                raise CorrflowError(f"expected {condition}; report it with the output of corrflow-doctor")


class _Camera:
    """Camera of a square that moves in a circle over noise; frames are rendered in advance."""

    def __init__(self, interval: float) -> None:
        generator = np.random.default_rng(0)
        background = generator.integers(40, 140, (_HEIGHT, _WIDTH, 3), np.uint8)
        texture = generator.integers(0, 60, (_SIDE, _SIDE, 1), np.uint8) + np.array([30, 30, 180], np.uint8)
        self.frames, self.masks = [], []
        for angle in np.linspace(0, 2 * np.pi, 60, endpoint=False):
            frame, mask = background.copy(), np.zeros((_HEIGHT, _WIDTH), bool)
            top, left = round(90 + 50 * np.sin(angle)), round(130 + 80 * np.cos(angle))
            frame[top : top + _SIDE, left : left + _SIDE] = texture
            mask[top : top + _SIDE, left : left + _SIDE] = True
            self.frames.append(frame)
            self.masks.append(mask)
        self._interval, self._count, self._next = interval, 0, time.monotonic()

    def read(self) -> np.ndarray:
        """Wait for the next frame and return a copy."""
        self._next = max(self._next + self._interval, time.monotonic())
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._count += 1
        return self.frames[self._count % len(self.frames)].copy()

    def close(self) -> None:
        """Do nothing; frames stay in memory."""


class _TimedTracker(Tracker):
    """Tracker that measures its steps in seconds."""

    def __init__(self, *arguments, **keywords) -> None:
        self.steps: list[float] = []
        super().__init__(*arguments, **keywords)

    def step(self, frame: np.ndarray):
        """Track one frame and measure its time."""
        start = time.monotonic()
        result = super().step(frame)
        self.steps.append(time.monotonic() - start)
        return result


def soak(tracker: _TimedTracker, seconds: float, rate: float) -> SoakResult:
    """Track a camera of `rate` frames per second for `seconds`, while an object is added and removed repeatedly."""
    camera = _Camera(1 / rate)
    session = Session(Capture(lambda: camera), tracker, lambda frame: [MaskObject(1, camera.masks[0])])
    thread, errors = session.in_thread()
    rows: list[tuple[float, int]] = []
    end, latest, changed = time.monotonic() + seconds, None, time.monotonic()
    while time.monotonic() < end and thread.is_alive():
        newer = session.latest.newer(latest, 0.1)
        if newer is None:
            continue
        latest = newer
        assert newer.live is not None
        rows.append((newer.live.latency, resident_bytes()))
        if time.monotonic() - changed > 1 and newer.live.number > 5:
            _change(session)
            changed = time.monotonic()
    session.stop.set()
    thread.join()
    if errors:
        raise errors[0]
    counts = session.capture.counts
    latency, memory = (np.array(column) for column in zip(*rows, strict=True))
    return SoakResult(
        latency, np.array(tracker.steps), memory, counts.captured, session.processed, counts.dropped, 1 / rate
    )


def _change(session: Session) -> None:
    """Add object 2 on a frozen frame, or remove object 2 if it is tracked."""
    frozen = session.freeze()
    mask = np.zeros(frozen.result.frame.image.shape[:2], bool)
    mask[10:50, 10:50] = True

    def change() -> None:
        if any(prompt.id == 2 for prompt in session.editing.joining):
            return
        if 2 in session.editing.ids:
            session.editing.remove(2)
            session.editing.release(frozen.number)
        else:
            session.editing.submit(frozen.number, MaskObject(2, mask))

    session.call(change, 60)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes. Raises InputError on systems other than Linux."""
    if sys.platform != "linux":
        raise InputError("expected Linux for the soak, which reads /proc/self/statm; run it there")
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_soak(options: SoakOptions) -> SoakResult:
    """Run corrflow-bench soak, print the measurements and check them."""
    with _TimedTracker.from_model(
        options.model, options.backend, short_side=options.short_side, threads=options.threads
    ) as tracker:
        assert isinstance(tracker, _TimedTracker), "from_model constructs the class"
        measured = soak(tracker, options.seconds, options.rate)
        name = tracker.backend.name
    console = Console()
    console.print(name, highlight=False)
    growth = _growth(measured.memory) / 2**20
    step, latency = (
        f"{1000 * np.median(seconds):.0f} ms, 99 % below {1000 * np.percentile(seconds, 99):.0f} ms"
        for seconds in (measured.step, measured.latency)
    )
    console.print(
        f"{measured.captured} captured = {measured.tracked} tracked + {measured.dropped} dropped in"
        f" {options.seconds:.0f} s\nstep {step}\n"
        f"latency {latency}, allowed {1000 * measured.latency_limit:.0f} ms; drift {1000 * measured.drift:+.1f} ms\n"
        f"memory {measured.memory[-1] / 2**20:.0f} MiB, second to last quarter {growth:+.1f} MiB"
    )
    measured.check()
    return measured


def _quarters(values: np.ndarray) -> tuple[float, float]:
    """Return the medians of the second and the last quarter."""
    quarter = max(1, len(values) // 4)
    return float(np.median(values[quarter : 2 * quarter] if len(values) > 1 else values)), float(
        np.median(values[-quarter:])
    )


def _growth(memory: Sequence[float] | np.ndarray) -> float:
    """Return the growth of the median from the second quarter to the last."""
    second, last = _quarters(np.asarray(memory, np.float64))
    return last - second
