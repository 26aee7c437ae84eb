"""Body of corrflow-track for files: source, tracker, destinations, progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from corrflow.errors import InputError
from corrflow.runtime.formats.background_writer import write_behind
from corrflow.runtime.formats.prompts import Prompts
from corrflow.runtime.live.outputs.destinations import Destinations
from corrflow.runtime.tracking.model_options import ModelOptions
from corrflow.runtime.tracking.stream import track_source
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import FrameResult, MaskObject
from corrflow.runtime.video.demo_clip import DemoSource
from corrflow.runtime.video.open_source import FrameSource, open_source
from corrflow.runtime.video.source_uri import live_address


@dataclass(frozen=True)
class _Summary:
    """Frames written, and the seconds from the first to the last."""

    frames: int
    seconds: float


def run_track(source: str, prompts: Prompts, destinations: Destinations, options: ModelOptions) -> None:
    """Track through a file. Raises InputError before anything is written, CorrflowError later."""
    console = Console(stderr=True)
    destinations.check()
    if live_address(source) is not None and not os.path.exists(source):
        raise InputError(f"expected a video, a folder or a pattern, got {source!r}; put --camera before a live source")
    with open_source(source) as frames:
        if not destinations:
            destinations = replace(destinations, files={"overlay": Path(f"{frames.name}_tracked.mp4")})
        for path in destinations.files.values():
            if path.exists() and os.path.exists(source) and path.samefile(source):
                raise InputError(f"expected results apart from the source, got {path} for both; name another")
        with options.open() as tracker:
            summary = _track(console, frames, tracker, prompts, destinations)
    _print_summary(console, summary, destinations)


def run_demo(options: ModelOptions, folder: Path) -> None:
    """Track a rendered clip with known masks, and print the region similarity J."""
    console = Console(stderr=True)
    names = {"overlay": "demo_tracked.mp4", "davis": "masks", "jsonl": "demo_tracks.jsonl"}
    destinations = Destinations({name: folder / file for name, file in names.items()})
    with DemoSource() as source, options.open() as tracker:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"expected a folder to write to, got {folder} ({error.strerror}); name another") from error
        scores: list[float] = []

        def score(result: FrameResult) -> None:
            if result.frame.index:
                predicted, true = result.mask == 1, source.true_mask(result.frame.index)
                union = np.count_nonzero(predicted | true)
                scores.append(np.count_nonzero(predicted & true) / union if union else 1.0)

        cup = MaskObject(1, source.true_mask(0), "cup")
        summary = _track(console, source, tracker, lambda frame: [cup], destinations, score)
    _print_summary(console, summary, destinations)
    console.print(f"mean J over frames 1 to {len(scores)}: {np.mean(scores):.3f} (lowest {np.min(scores):.3f})")


def _track(
    console: Console,
    source: FrameSource,
    tracker: Tracker,
    prompts: Prompts,
    destinations: Destinations,
    observe: Callable[[FrameResult], None] = lambda result: None,
) -> _Summary:
    """Track a source to its end; after an error the results so far are closed and valid.

    Outputs are opened after the first frame is tracked, so that wrong input leaves no files.
    """
    results = track_source(source, tracker, prompts)
    first = next(results)
    with ExitStack() as stack:
        stack.callback(results.close)
        sinks = destinations.open_sinks(source)
        for sink in sinks:
            stack.callback(sink.close)
        write = stack.enter_context(write_behind(sinks))
        start, count = time.perf_counter(), 0
        for result in _with_progress(console, source, chain([first], results)):
            write(result)
            observe(result)
            count += 1
    return _Summary(count, time.perf_counter() - start)


def _with_progress(console: Console, source: FrameSource, results: Iterator[FrameResult]) -> Iterator[FrameResult]:
    """Yield the results, and show a progress bar."""
    columns = (
        TextColumn("tracking"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} frames/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("", total=source.frame_count, rate="-")
        count = 0
        for result in results:
            yield result
            count += 1
            speed = bars.tasks[0].speed
            bars.update(bar, advance=1, rate=f"{speed:.1f}" if speed else "-")
        bars.update(bar, total=count)


def _print_summary(console: Console, summary: _Summary, destinations: Destinations) -> None:
    rate = summary.frames / max(summary.seconds, 1e-9)
    console.print(f"{summary.frames} frames in {summary.seconds:.1f} s ({rate:.1f} frames/s)")
    for path in destinations.files.values():
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
