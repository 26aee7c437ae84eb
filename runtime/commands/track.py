"""Body of corrflow-track for files: source, tracker, destinations, progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from corrflow.errors import InputError
from corrflow.output_paths import check_apart, fitting
from corrflow.runtime.formats.background_writer import write_behind
from corrflow.runtime.formats.prompts import FilePrompts, Prompts, prompted_frame
from corrflow.runtime.live.outputs.destinations import Destinations
from corrflow.runtime.tracking.model_options import ModelOptions
from corrflow.runtime.tracking.stream import track_source
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import FrameResult, MaskObject
from corrflow.runtime.video.demo_clip import DemoSource
from corrflow.runtime.video.open_source import FrameSource, open_source
from corrflow.runtime.video.source_uri import live_address, redacted
from corrflow.special_files import is_special
from corrflow.stopping import check_stop, stop_deferred


@dataclass(frozen=True)
class _Summary:
    """Frames written, and the seconds from the first to the last."""

    frames: int
    seconds: float


def run_track(
    source: str,
    prompts: Callable[[str], Prompts],
    destinations: Callable[[str], Destinations],
    options: ModelOptions,
    inputs: Sequence[Path] = (),
    is_strict: bool = False,
    start: int | None = None,
) -> None:
    """Track through a file. Raises InputError before anything is written, CorrflowError later.

    prompts:      returns the objects of the first frame, by the name of the source
    destinations: returns where results go, by the name of the source
    inputs:       files besides the source that are read, and not to be replaced
    is_strict:    True to end a video at its first damage
    start:        as of `prompted_frame`
    """
    console = Console(stderr=True)
    if live_address(source) is not None and not os.path.exists(source):
        raise InputError(
            f"expected a video, a folder or a pattern, got {redacted(source)!r}; put --camera before a live source"
        )
    with open_source(source, is_strict) as frames, ExitStack() as stack:
        outputs = destinations(frames.name)
        outputs.check()
        check_apart([source, *inputs], *outputs.places())
        outputs.check_places()
        objects = prompts(frames.name)
        with options.open() as tracker:
            outputs = outputs.with_defaults(fitting(frames.name, "_tracked.mp4"), stack)
            try:
                summary = _track(console, frames, tracker, objects, outputs, start=prompted_frame(objects, start))
            finally:
                for note in frames.notes:
                    console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    _print_summary(console, summary, outputs)


def run_demo(options: ModelOptions, folder: Path) -> None:
    """Track a rendered clip with known masks, and print the region similarity J."""
    console = Console(stderr=True)
    names = {"overlay": "demo_tracked.mp4", "davis": "masks", "jsonl": "demo_tracks.jsonl"}
    destinations = Destinations({name: folder / file for name, file in names.items()})
    destinations.check_places()
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
    start: int | None = None,
) -> _Summary:
    """Track a source to its end; after an error the results so far are closed and valid.

    Outputs are opened after the first frame is tracked, so that wrong input leaves no files.
    """
    results = track_source(source, tracker, prompts, start)
    first = next(results)
    schema = prompts.schema if isinstance(prompts, FilePrompts) else None
    with ExitStack() as stack:
        stack.callback(results.close)
        with stop_deferred():
            sinks = destinations.open_sinks(source, schema, lambda: source.notes)
            write = stack.enter_context(write_behind(sinks, close=True))
        begin, count = time.perf_counter(), 0
        for result in _with_progress(console, source, chain([first], results)):
            write(result)
            observe(result)
            count += 1
            check_stop()
    return _Summary(count, time.perf_counter() - begin)


def _with_progress(
    console: Console, source: FrameSource, results: Iterator[FrameResult]
) -> Generator[FrameResult, None, None]:
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
            count += 1
            speed = bars.tasks[0].speed
            # Before the frame is written: an interrupted run writes the frame, and does not come back here.
            bars.update(bar, advance=1, rate=f"{speed:.1f}" if speed else "-")
            yield result
        bars.update(bar, total=count)


def _print_summary(console: Console, summary: _Summary, destinations: Destinations) -> None:
    rate = summary.frames / max(summary.seconds, 1e-9)
    console.print(f"{summary.frames} frames in {summary.seconds:.1f} s ({rate:.1f} frames/s)")
    for path in (path for path in destinations.files.values() if not is_special(path)):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
