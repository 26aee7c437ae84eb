"""The last line of progress counts every frame that is written, also of an interrupted run."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from corrflow.runtime.commands.track import _with_progress
from corrflow.runtime.types import Frame, FrameResult
from corrflow.runtime.video.demo_clip import DemoSource


def test_the_last_line_of_an_interrupted_run_counts_all_frames() -> None:
    results = (
        FrameResult(np.zeros((8, 8), np.uint8), (), Frame(np.zeros((8, 8, 3), np.uint8), index, index / 24, str(index)))
        for index in range(10)
    )
    text = io.StringIO()
    progress = _with_progress(Console(file=text, width=100), DemoSource(10), results)
    for _ in range(3):
        next(progress)
    progress.close()
    assert "3/10" in text.getvalue().splitlines()[-1]
