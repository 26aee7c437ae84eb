"""What corrflow-track does between reading its options and the loop: models, sinks, progress, last words."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from corrflow.errors import InputError
from corrflow.runtime.commands.run import Summary, track_source
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.jsonl import JsonLinesSink
from corrflow.runtime.formats.mask_png import MaskFolderSink
from corrflow.runtime.formats.overlay_video import VideoSink
from corrflow.runtime.formats.points_csv import KeypointCsvSink
from corrflow.runtime.formats.registry import read_objects
from corrflow.runtime.tracking.factory import Model
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, MaskObject, TrackedObject, Tracks
from corrflow.runtime.video.demo_clip import DemoSource
from corrflow.runtime.video.open_source import NOMINAL_FRAMES_PER_SECOND, FrameSource, open_source
from corrflow.runtime.video.source_uri import live_address

logger = logging.getLogger("corrflow")


@dataclass(frozen=True)
class Outputs:
    """Where results go; each may be None."""

    save: Path | None = None
    masks: Path | None = None
    csv: Path | None = None
    jsonl: Path | None = None

    def paths(self) -> list[Path]:
        return [path for path in (self.save, self.masks, self.csv, self.jsonl) if path is not None]

    def open(self, source: FrameSource) -> list[Sink]:
        """A sink for each; raises InputError for one that cannot be written, with the others closed again."""
        pace = source.frames_per_second or NOMINAL_FRAMES_PER_SECOND
        sinks: list[Sink] = []
        try:
            if self.save is not None:
                sinks.append(VideoSink(self.save, pace))
            if self.masks is not None:
                sinks.append(MaskFolderSink(self.masks))
            if self.csv is not None:
                sinks.append(KeypointCsvSink(self.csv))
            if self.jsonl is not None:
                sinks.append(JsonLinesSink(self.jsonl))
        except Exception:
            for sink in sinks:
                sink.close()
            raise
        return sinks


def run_track(source: str, masks: Sequence[Path], keypoints: Path | None, outputs: Outputs, model: Model) -> None:
    """corrflow-track SOURCE: raises InputError before anything is written, CorrflowError midway."""
    console = Console(stderr=True)
    objects = read_objects(masks, keypoints)
    if outputs.csv is not None and keypoints is None:
        raise InputError("expected --keypoints with --csv, which holds points only; leave out --csv or give points")
    if live_address(source) is not None and not os.path.exists(source):
        raise InputError(f"expected a video, a folder or a pattern, got {source!r}; put --camera before a live source")
    with open_source(source) as frames:
        if not outputs.paths():
            outputs = replace(outputs, save=Path(f"{frames.name}_tracked.mp4"))
        for path in outputs.paths():
            if path.exists() and os.path.exists(source) and path.samefile(source):
                raise InputError(f"expected results apart from the source, got {path} for both; name another")
        with model.tracker() as tracker:
            summary = _with_progress(console, frames, tracker, objects, outputs)
    _say(console, summary, outputs)


def run_demo(model: Model, folder: Path) -> None:
    """corrflow-track --demo: track a rendered clip, whose exact masks are known, and print the J reached."""
    console = Console(stderr=True)
    outputs = Outputs(save=folder / "demo_tracked.mp4", masks=folder / "masks", jsonl=folder / "demo_tracks.jsonl")
    with DemoSource() as source, model.tracker() as tracker:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"expected a folder to write to, got {folder} ({error.strerror}); name another") from error
        scores: list[float] = []

        def score(frame: Frame, tracks: Tracks) -> None:
            if frame.index:
                found, true = tracks.mask == 1, source.true_mask(frame.index)
                union = np.count_nonzero(found | true)
                scores.append(np.count_nonzero(found & true) / union if union else 1.0)

        cup = MaskObject(1, source.true_mask(0), "cup")
        summary = _with_progress(console, source, tracker, [cup], outputs, score)
    _say(console, summary, outputs)
    console.print(f"mean J over frames 1 to {len(scores)}: {np.mean(scores):.3f} (lowest {np.min(scores):.3f})")


def _with_progress(
    console: Console,
    source: FrameSource,
    tracker: Tracker,
    objects: Sequence[TrackedObject],
    outputs: Outputs,
    observe: Callable[[Frame, Tracks], None] = lambda frame, tracks: None,
) -> Summary:
    columns = (
        TextColumn("tracking"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]} frames/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=console)
    bar = bars.add_task("", total=source.frame_count, pace="-")

    def report(frame: Frame, tracks: Tracks) -> None:
        bars.start()  # not before the first frame is accepted, so that a refusal is one line alone
        observe(frame, tracks)
        speed = bars.tasks[0].speed
        bars.update(bar, advance=1, pace=f"{speed:.1f}" if speed else "-")

    try:
        summary = track_source(source, tracker, objects, lambda: outputs.open(source), report)
        bars.update(bar, total=summary.frames)
    finally:
        if bars.live.is_started:
            bars.stop()
    return summary


def _say(console: Console, summary: Summary, outputs: Outputs) -> None:
    pace = summary.frames / max(summary.seconds, 1e-9)
    console.print(f"{summary.frames} frames in {summary.seconds:.1f} s ({pace:.1f} frames/s)")
    for path in outputs.paths():
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
