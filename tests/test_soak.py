"""The live loop holds its promises over time, and the benchmark that says so notices when it does not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corrflow.bench.soak import Soak, run_soak
from corrflow.errors import CorrflowError, InputError


def even(frames: int = 400) -> Soak:
    return Soak(
        age=np.full(frames, 0.05), step=np.full(frames, 0.04), memory=np.full(frames, 10**8),
        captured=500, tracked=400, dropped=100, interval=0.01,
    )  # fmt: skip


def test_an_even_run_passes() -> None:
    even().check()


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"dropped": 99}, "captured ="),
        ({"age": np.full(400, 0.07)}, "99 % of recent_offsets"),
        ({"age": np.repeat([0.005, 0.058], 200)}, "do not grow"),
        ({"memory": 10**8 + 250_000 * np.arange(400)}, "flat memory"),
    ],
    ids=["accounting", "late", "creeping", "leaking"],
)
def test_a_run_that_creeps_fails(change: dict, claim: str) -> None:
    with pytest.raises(CorrflowError, match=claim):
        replace(even(), **change).check()


@pytest.mark.alone
def test_age_and_memory_stay_flat_while_objects_come_and_go(pytestconfig: pytest.Config, small_artifact: Path) -> None:
    """--soak-seconds for longer; the camera is faster than the model, so that frames are dropped."""
    if sys.platform != "linux":
        pytest.skip("memory is read as Linux tells it")
    measured = run_soak(small_artifact, float(pytestconfig.getoption("soak_seconds") or 0), 200.0, 128, 1)
    assert measured.dropped > 0 and measured.tracked > 50


def test_a_run_without_time_is_refused(small_artifact: Path) -> None:
    with pytest.raises(InputError, match="seconds"):
        run_soak(small_artifact, 0, 30, 64, 1)
