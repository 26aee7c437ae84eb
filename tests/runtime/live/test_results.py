"""Latency and frame rate are those of the last seconds."""

from __future__ import annotations

import pytest

from corrflow.runtime.live import results
from corrflow.runtime.live.results import LATENCY_SECONDS, LatencyStats


def test_a_latency_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(results.time, "monotonic", lambda: now)
    statistics = LatencyStats()
    assert statistics.latency(50) == 0.0
    for _ in range(20):  # eight objects of which each costs a propagation of its own
        now += 0.5
        statistics.add(1.5)
    assert statistics.latency(50) == 1.5
    for _ in range(100):
        now += 0.1
        statistics.add(0.1)
    now += 0.01
    assert statistics.latency(99) == pytest.approx(0.1) and statistics.latency(99, 100.0) == pytest.approx(1.5)
    now += 2 * LATENCY_SECONDS
    assert statistics.latency(50) == pytest.approx(0.1), "the newest result counts where none came"
