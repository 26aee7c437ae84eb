"""Latency and memory of a live session do not grow, and the benchmark detects growth."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corrflow.bench.options import SoakOptions
from corrflow.bench.soak import SoakResult, run_soak
from corrflow.errors import CorrflowError, InputError


def constant(frames: int = 400) -> SoakResult:
    return SoakResult(
        latency=np.full(frames, 0.05), step=np.full(frames, 0.04), memory=np.full(frames, 10**8),
        captured=500, tracked=400, dropped=100, interval=0.01,
    )  # fmt: skip


def test_constant_measurements_pass() -> None:
    constant().check()


@pytest.mark.parametrize(
    ("change", "condition"),
    [
        ({"dropped": 99}, "captured ="),
        ({"latency": np.full(400, 0.07)}, "99 % of latencies"),
        ({"latency": np.repeat([0.005, 0.058], 200)}, "do not grow"),
        ({"memory": 10**8 + 250_000 * np.arange(400)}, "flat memory"),
    ],
    ids=["counts", "high latency", "growing delay", "leak"],
)
def test_growth_is_an_error(change: dict, condition: str) -> None:
    with pytest.raises(CorrflowError, match=condition):
        replace(constant(), **change).check()


@pytest.mark.alone
def test_latency_and_memory_do_not_grow_while_objects_are_added_and_removed(
    pytestconfig: pytest.Config, small_artifact: Path
) -> None:
    """The camera is faster than the model, so frames are dropped; --soak-seconds sets the duration."""
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    seconds = float(pytestconfig.getoption("soak_seconds") or 0)
    measured = run_soak(SoakOptions(model=small_artifact, seconds=seconds, rate=200.0, short_side=128, threads=1))
    assert measured.dropped > 0 and measured.tracked > 50


def test_a_duration_of_zero_is_refused() -> None:
    with pytest.raises(InputError, match="seconds"):
        SoakOptions(seconds=0)
