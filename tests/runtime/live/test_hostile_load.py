"""Thirty hostile clients do not slow the tracker down: its pace and the age of its results, measured.

Every attempt has its own baseline right before. Frames per second and the 95 % age of the attempt are judged; the 99 %
age is printed alone, because it is the second-worst of about 200 frames, which a pause of the machine decides.

What this test tells: a single attempt within the limits shows that the requests, at their full rate, leave the tracker
its pace, since nothing but luck could hide their price for ten seconds. What it cannot tell: the worst frame, the price
on a machine without a free processor, where every thread takes from the tracker, and faults in what is drawn. Attempts
with less than two free processors right before or after them count for nothing. Without enough others, the test is
skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.live_page import LivePage
from helpers.paths import TESTS

pytest.importorskip("uvicorn")

pytestmark = [pytest.mark.faults, pytest.mark.alone, pytest.mark.long]

SECONDS = 10.0
MIN_FREE = 1.7  # processors that two busy processes get: one for the tracker, and part of one for its page and clients
MIN_PACE = 0.8  # of the frames per second without the clients
MAX_STEPS = 2  # of the model, that the age may grow by
ATTEMPTS, ENOUGH = 5, 3  # how many are made at most, and how many at rest must fail before the test does


class Figures(NamedTuple):
    """Pace in frames per second, and ages of results in seconds."""

    pace: float
    median: float
    below_95: float
    below_99: float

    def __str__(self) -> str:
        ages = ", ".join(f"{1000 * age:.0f}" for age in self[1:])
        return f"{self.pace:.1f} frames/s, age (median, 95 %, 99 %) {ages} ms"


def measured(page: LivePage, seconds: float) -> Figures:
    """Return the figures of the next `seconds`."""
    begin = time.monotonic()
    time.sleep(seconds)
    ages = [age for at, age in list(page.session.latency._rows) if at > begin]
    return Figures(len(ages) / (time.monotonic() - begin), *np.percentile(ages, (50, 95, 99)).tolist())


def measured_under_attack(page: LivePage, frozen: int) -> tuple[Figures, dict[str, int]]:
    """Return the figures with hostile clients, and their answers by request and status."""
    program = [sys.executable, str(TESTS / "helpers" / "hostile_clients.py")]
    with subprocess.Popen(
        [*program, str(page.port), str(SECONDS + 3), str(frozen)], stdout=subprocess.PIPE, text=True
    ) as clients:
        time.sleep(2)  # they have started
        return measured(page, SECONDS), json.loads(clients.communicate(timeout=30)[0])


def free_processors(seconds: float = 0.5) -> float:
    """Return the processors that two busy processes get here, up to 2, while this one waits."""
    program = (
        f"import time\nend = time.monotonic() + {seconds}\nbegin = time.monotonic()\n"
        "while time.monotonic() < end: pass\nprint(time.process_time() / (time.monotonic() - begin))"
    )
    busy = [subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE) for _ in range(2)]
    return sum(min(1.0, float(one.communicate(timeout=30)[0])) for one in busy)


def is_at_rest(tries: int = 1) -> bool:
    return any(free_processors() >= MIN_FREE for _ in range(tries))


def test_hostile_clients_leave_the_tracker_its_pace(tmp_path: Path, moving_square, capsys) -> None:
    if not is_at_rest(10):
        pytest.skip(
            "two processes get less than two processors here; a pace can be compared on a machine at rest alone"
        )
    lines: list[str] = []
    for attempt in range(ATTEMPTS):
        held, was_at_rest, line = attempted(tmp_path / str(attempt), moving_square[0].repeat(4, 1).repeat(4, 2))
        with capsys.disabled():
            print(f"\n{line}")
        if held:
            return
        lines += [line] if was_at_rest else []
        if len(lines) == ENOUGH:
            pytest.fail(
                f"expected {MIN_PACE:.0%} of the pace and {MAX_STEPS} steps more at most, got\n" + "\n".join(lines)
            )
    pytest.skip("this machine was busy in most attempts; a pace can be compared on a machine at rest alone")


def attempted(folder: Path, frames: np.ndarray) -> tuple[bool, bool, str]:
    """Return whether the tracker kept its pace, whether the machine was at rest before and after, and the figures."""
    folder.mkdir()
    was_at_rest = is_at_rest(5)
    page = LivePage(folder, "fast", frames)
    try:
        page.draw(strokes=[{"kind": "box", "points": [[64, 40], [184, 160]]}])
        frozen = page.freeze()
        time.sleep(2)
        plain = measured(page, SECONDS)
        hostile, answers = measured_under_attack(page, frozen)
        assert {name for name in answers if name.startswith("boxes")}, "clients that sent nothing"
        assert not [name for name in answers if ": 500" in name]
        assert page.ask("GET", "/healthz") == (200, b"ok")
    finally:
        page.close()
    held = hostile.pace >= MIN_PACE * plain.pace and hostile.below_95 <= plain.below_95 + MAX_STEPS * plain.median
    return held, was_at_rest and is_at_rest(), f"{plain}; with hostile clients {hostile}; {answers}"
