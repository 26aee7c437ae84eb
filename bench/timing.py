"""Times several things in turn, so that a change of the machine's pace meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

# Threads of libraries wait busily for more work after each call, OpenBLAS's for some tens of milliseconds.
PAUSE = 0.05


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: median, quartiles, fastest, and how many calls that is from."""

    median: float
    lower_quartile: float
    upper_quartile: float
    fastest: float
    calls: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Of at least one measured call."""
        lower, median, upper = np.percentile(seconds, [25, 50, 75])
        return cls(float(median), float(lower), float(upper), min(seconds), len(seconds))

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles as a share of the median."""
        return (self.upper_quartile - self.lower_quartile) / 2 / self.median


def time_in_turn(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    least_seconds: float = 0.15,
    most_seconds: float = 15.0,
    report: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Timing of each call by name.

    In each round every call has its turn and is repeated for `least_seconds`, so that quick ones are not measured on
    caches that a slow one has just emptied; a pause comes before it, for the threads of the one before to lie down. The
    first call of a turn warms up and is left out where there are others.
    A call that has taken `most_seconds` in all sits out the later rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # what is built on first use
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
    return {name: Timing.of(found) for name, found in seconds.items()}
