"""Timing of several calls in turn, so that changes of the machine's speed affect all equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

# Threads of libraries spin for tens of milliseconds after a call, for example in OpenBLAS.
PAUSE = 0.05


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: median, quartiles, fastest, and number of calls."""

    median: float
    lower_quartile: float
    upper_quartile: float
    fastest: float
    calls: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summarise at least one measured call."""
        lower, median, upper = np.percentile(seconds, [25, 50, 75])
        return cls(float(median), float(lower), float(upper), min(seconds), len(seconds))

    @property
    def spread(self) -> float:
        """Half the interquartile range, relative to the median."""
        return (self.upper_quartile - self.lower_quartile) / 2 / self.median


def time_in_turn(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    least_seconds: float = 0.15,
    most_seconds: float = 15.0,
    report: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Time each call, and return the timings by name.

    In each round, every call has a turn of at least `least_seconds`. So fast calls do not run on caches that a slow
    call has emptied. A pause before each turn lets the threads of the previous call stop. The first call of a turn is a
    warm-up and is omitted if there are others. After `most_seconds` in total, a call is left out of later rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # initialisation on first use
    for _ in range(rounds):
        for name, call in calls.items():
            if sum(seconds[name]) >= most_seconds:
                continue
            report(name)
            turn: list[float] = []
            time.sleep(PAUSE)
            while sum(turn) < least_seconds:
                start = time.perf_counter()
                call()
                turn.append(time.perf_counter() - start)
            seconds[name] += turn[1:] or turn
    return {name: Timing.of(measured) for name, measured in seconds.items()}
