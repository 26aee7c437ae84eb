"""A long live run: does the age of what is shown, or the memory, creep up? Synthetic camera, real tracker."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.live.capture.capture import Capture
from corrflow.runtime.live.session import Session
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

MOST_GROWTH = 24 * 2**20
"""Bytes that the process may be larger in the last quarter than in the second one."""

MOST_DRIFT = 0.5
"""Steps of the model by which the wait before a step may grow from the second quarter to the last one.

It is the wait that grows where frames pile up; the step itself takes longer when the machine has other things to do.
"""

_HEIGHT, _WIDTH, _SIDE = 240, 320, 60


@dataclass(frozen=True)
class Soak:
    """What was measured: one row for each tracked frame, in order.

    age:    seconds from capture to result; step: seconds of the tracker alone; memory: bytes resident
    """

    age: np.ndarray
    step: np.ndarray
    memory: np.ndarray
    captured: int
    tracked: int
    dropped: int
    interval: float

    @property
    def age_limit(self) -> float:
        """One step of the model (the 99th percentile) and two frame intervals."""
        return float(np.percentile(self.step, 99)) + 2 * self.interval

    @property
    def drift(self) -> float:
        """Seconds by which the median wait before a step grew from the second quarter to the last one."""
        (age, last_age), (step, last_step) = _quarters(self.age), _quarters(self.step)
        return (last_age - last_step) - (age - step)

    def check(self) -> None:
        """Raise CorrflowError for the first claim that does not hold."""
        age = float(np.percentile(self.age, 99))
        drift, most_drift = self.drift, MOST_DRIFT * float(np.median(self.step)) + 2 * self.interval
        growth = _growth(self.memory)
        for holds, claim in (
            (self.captured == self.tracked + self.dropped, "captured = tracked + dropped"),
            (age <= self.age_limit, f"99 % of recent_offsets below {self.age_limit:.3f} s, got {age:.3f} s"),
            (drift <= most_drift, f"recent_offsets that do not grow, got {drift:+.3f} s beyond the step's own time"),
            (growth <= MOST_GROWTH, f"flat memory, got {growth / 2**20:+.1f} MiB"),
        ):
            if not holds:
                raise CorrflowError(f"expected {claim}; the live loop piles something up")


class _Camera:
    """A square that goes round on noise, at its own pace; frames are made beforehand."""

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
        self._next = max(self._next + self._interval, time.monotonic())
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._count += 1
        return self.frames[self._count % len(self.frames)].copy()

    def close(self) -> None:
        pass


class _Timed(Tracker):
    """A tracker that notes how long its steps take."""

    def __init__(self, *arguments, **keywords) -> None:
        self.steps: list[float] = []
        super().__init__(*arguments, **keywords)

    def step(self, frame: np.ndarray):
        begin = time.monotonic()
        tracks = super().step(frame)
        self.steps.append(time.monotonic() - begin)
        return tracks


def soak(tracker: _Timed, seconds: float, rate: float) -> Soak:
    """Track a camera of `rate` frames a second for `seconds`, while an object is drawn and removed again and again."""
    if not (0 < seconds <= 86400 and 0 < rate <= 1000):
        raise InputError("expected 0 to 86400 seconds and 0 to 1000 frames a second, got others; choose among those")
    camera = _Camera(1 / rate)
    session = Session(Capture(lambda: camera), tracker, lambda frame: [MaskObject(1, camera.masks[0])])
    thread, errors = session.in_thread()
    rows: list[tuple[float, int]] = []
    end, shown, changed = time.monotonic() + seconds, None, time.monotonic()
    while time.monotonic() < end and thread.is_alive():
        newer = session.latest.newer(shown, 0.1)
        if newer is None:
            continue
        shown = newer
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
    age, memory = (np.array(column) for column in zip(*rows, strict=True))
    return Soak(age, np.array(tracker.steps), memory, counts.captured, session.processed, counts.dropped, 1 / rate)


def _change(session: Session) -> None:
    """Draw object 2 on a frozen frame, or remove it where it is tracked by now."""
    frozen = session.freeze()
    mask = np.zeros(frozen.result.frame.image.shape[:2], bool)
    mask[10:50, 10:50] = True

    def change() -> None:
        if any(given.id == 2 for given in session.editing.joining):
            return
        if 2 in session.editing.ids:
            session.editing.remove(2)
            session.editing.release(frozen.number)
        else:
            session.editing.submit(frozen.number, MaskObject(2, mask))

    session.call(change, 60)


def resident_bytes() -> int:
    """Memory of this process that is in use now; raises InputError where the system does not say."""
    if sys.platform != "linux":
        raise InputError("expected Linux for the soak, which reads /proc/self/statm; run it there")
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_soak(
    artifact: Path | None, seconds: float, rate: float, short_side: int, threads: int, name: str = "auto"
) -> Soak:
    """corrflow-bench soak: prints what was measured, then checks it. name: of the back end."""
    from corrflow.runtime.artifacts.artifact import load_artifact
    from corrflow.runtime.artifacts.bundled import resolve_model
    from corrflow.runtime.backends.registry import open_backend
    from corrflow.runtime.settings import with_settings
    from corrflow.runtime.tracking.occlusion import occlusion_settings_for

    loaded = load_artifact(resolve_model(artifact))
    backend = open_backend(name, loaded, threads)
    try:
        settings = with_settings(loaded.settings, short_side)
        measured = soak(_Timed(backend, settings, occlusion_settings_for(backend, settings)), seconds, rate)
    finally:
        backend.close()
    console = Console()
    console.print(backend.name, highlight=False)
    growth = _growth(measured.memory) / 2**20
    console.print(
        f"{measured.captured} captured = {measured.tracked} tracked + {measured.dropped} dropped in {seconds:.0f} s\n"
        f"step {1000 * np.median(measured.step):.0f} ms, 99 % below {1000 * np.percentile(measured.step, 99):.0f} ms\n"
        f"age {1000 * np.median(measured.age):.0f} ms, 99 % below {1000 * np.percentile(measured.age, 99):.0f} ms,"
        f" allowed {1000 * measured.age_limit:.0f} ms; drift {1000 * measured.drift:+.1f} ms\n"
        f"memory {measured.memory[-1] / 2**20:.0f} MiB, second to last quarter {growth:+.1f} MiB"
    )
    measured.check()
    return measured


def _quarters(values: np.ndarray) -> tuple[float, float]:
    """Medians of the second and of the last quarter."""
    quarter = max(1, len(values) // 4)
    return float(np.median(values[quarter : 2 * quarter] if len(values) > 1 else values)), float(
        np.median(values[-quarter:])
    )


def _growth(memory: Sequence[float] | np.ndarray) -> float:
    second, last = _quarters(np.asarray(memory, np.float64))
    return last - second
