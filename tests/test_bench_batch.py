"""The benchmark of batches measures what it says: a long video is as long as asked for, and growth is seen."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from corrflow.bench.batch import Growth, compare, repeat, run_batch_bench
from corrflow.bench.clips import write_demo
from corrflow.errors import InputError
from corrflow.runtime.batch.workers import run_workers
from corrflow.runtime.tracking.factory import Model


def test_a_repeated_video_has_every_frame_at_its_own_time(tmp_path: Path) -> None:
    clip, _ = write_demo(tmp_path, (64, 96), 7)
    repeat(clip, tmp_path / "long.mp4", 50)
    with av.open(str(tmp_path / "long.mp4")) as container:
        times = [float(frame.time or 0) for frame in container.decode(video=0)]
    assert len(times) == 50 and (np.diff(times) > 0).all()


def test_growth_is_seen_and_its_absence_too() -> None:
    frames = np.arange(50, 2050, 50)
    flat = np.full(len(frames), 10**8)
    assert Growth(frames, flat, flat).per_thousand(500) == pytest.approx(0, abs=1)
    leaking = 10**8 + 300 * frames
    grown = Growth(frames, leaking, leaking)
    assert grown.per_thousand(500) == pytest.approx(300_000) and grown.at(2000) - grown.at(500) == 450_000


def test_runs_are_timed_in_turn(small_artifact: Path) -> None:
    said: list[str] = []
    runs = {"a": (run_workers, 1), "b": (run_workers, 2)}
    found = compare(runs, 4, 4, Model(small_artifact, "auto", 1, 64, None, False), 1, said.append)
    assert len(said) == 2 and all(pace.frames_per_second > 0 for paces in found.values() for pace in paces)


def test_an_unknown_part_is_refused(small_artifact: Path) -> None:
    model = Model(small_artifact, "auto", 1, 64, None, False)
    with pytest.raises(InputError, match="--part"):
        run_batch_bench(["gpu"], 4, 4, 1, 2000, 500, 2, model, None)
