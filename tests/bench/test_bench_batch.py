"""Benchmark of batches: length of the long video, detection of growth, alternating runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from corrflow.bench.batch import Growth, compare, repeat
from corrflow.bench.clips import write_demo
from corrflow.bench.options import BatchOptions
from corrflow.errors import InputError
from corrflow.runtime.batch.workers import run_workers
from corrflow.runtime.tracking.model_options import ModelOptions


def test_a_repeated_video_has_every_frame_at_its_own_time(tmp_path: Path) -> None:
    clip, _ = write_demo(tmp_path, (64, 96), 7)
    repeat(clip, tmp_path / "long.mp4", 50)
    with av.open(str(tmp_path / "long.mp4")) as container:
        times = [float(frame.time or 0) for frame in container.decode(video=0)]
    assert len(times) == 50 and (np.diff(times) > 0).all()


def test_growth_and_its_absence_are_detected() -> None:
    frames = np.arange(50, 2050, 50)
    flat = np.full(len(frames), 10**8)
    assert Growth(frames, flat, flat).per_thousand(500) == pytest.approx(0, abs=1)
    leaking = 10**8 + 300 * frames
    grown = Growth(frames, leaking, leaking)
    assert grown.per_thousand(500) == pytest.approx(300_000) and grown.at(2000) - grown.at(500) == 450_000


def test_runs_are_timed_in_turn(small_artifact: Path) -> None:
    reports: list[str] = []
    runs = {"a": (run_workers, 1), "b": (run_workers, 2)}
    model = ModelOptions(str(small_artifact), short_side=64, threads=1)
    speeds = compare(runs, 4, 4, model, 1, reports.append)
    assert len(reports) == 2
    assert all(speed.frames_per_second > 0 for measured in speeds.values() for speed in measured)


@pytest.mark.parametrize(
    ("options", "message"), [({"part": ["gpu"]}, "--part"), ({"long": 900}, "--long above twice --short")]
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchOptions(**options)
