"""corrflow-bench track: tracking from a video file to mask files, with each model and a plain PyTorch tracker."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.bench import machine
from corrflow.bench.clips import LoopedVideo
from corrflow.bench.timing import Timing
from corrflow.errors import InputError
from corrflow.runtime.artifacts.artifact import Artifact, load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.formats.background_writer import write_behind
from corrflow.runtime.formats.mask_png import MaskFolderSink
from corrflow.runtime.settings import with_settings
from corrflow.runtime.tracking.stream import track_source
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import FrameResult, MaskObject, TrackedObject

PEER = "plain PyTorch"
PEER_FRAMES = 1  # and one round, because a frame takes many seconds
SETTLED = 500  # frames of a long stream before which memory may still grow

Report = Callable[[str], None]
Run = Callable[[], tuple[list[float], list[np.ndarray]]]
"""Returns the seconds per frame and all masks."""


@dataclass(frozen=True)
class Clip:
    """Video to track: file, size (height, width) to play it at, and first mask [H, W] bool."""

    path: Path
    size: tuple[int, int]
    mask: np.ndarray


@dataclass(frozen=True)
class Setup:
    """Clip and options that all trackers share."""

    clip: Clip
    memory_frames: int
    backend: str
    threads: int

    @contextmanager
    def results(self, model: str | Path, short_side: int, frames: int) -> Iterator[Iterator[FrameResult]]:
        """Track frames of the looped clip as corrflow-track does; all masks are written after the last result."""
        objects: list[TrackedObject] = [MaskObject(1, self.clip.mask)]
        with (
            tempfile.TemporaryDirectory() as folder,
            Tracker.from_model(
                model, self.backend, short_side=short_side, memory_frames=self.memory_frames, threads=self.threads
            ) as tracker,
            LoopedVideo(self.clip.path, frames, self.clip.size) as source,
        ):

            def written() -> Iterator[FrameResult]:
                with write_behind([MaskFolderSink(folder)]) as write:
                    for result in track_source(source, tracker, lambda frame: objects):
                        write(result)
                        yield result

            yield written()


@dataclass(frozen=True)
class TrackerResult:
    """Speed of one tracker at one working size, with a full memory; times are per frame.

    agreement: intersection over union of the object's pixels with the first model, over the frames of both
    """

    name: str
    short_side: int
    timing: Timing
    agreement: float

    @property
    def frames_per_second(self) -> float:
        """Median speed."""
        return 1 / self.timing.median


@dataclass(frozen=True)
class Stream:
    """Long stream: resident memory in bytes, and median seconds per frame, after frame SETTLED and at the end."""

    frames: int
    resident_early: int
    resident_late: int
    seconds_early: float
    seconds_late: float

    @property
    def growth(self) -> int:
        """Bytes by which memory has grown."""
        return self.resident_late - self.resident_early

    @property
    def slowdown(self) -> float:
        """Relative increase of the time per frame."""
        return self.seconds_late / self.seconds_early - 1


def compare(
    setup: Setup,
    models: Sequence[str | Path],
    short_sides: Sequence[int],
    rounds: int,
    frames: int,
    with_peer: bool,
    report: Report = lambda message: None,
) -> list[TrackerResult]:
    """Time all models, and the plain tracker with the weights of the first, in turn at every working size.

    Raises InputError for two models of one name, and for a peer with the weights of an int8 model.
    """
    loaded = [(model, load_artifact(resolve_model(model))) for model in models]
    artifacts = {artifact.name: (model, artifact) for model, artifact in loaded}
    if len(artifacts) < len(models):
        raise InputError("expected models of different names, got the same name twice; rename a folder")
    first = loaded[0][1]
    if with_peer and "quantised" in first.provenance:
        raise InputError("expected an fp32 model first, whose weights the peer uses, got int8; reorder the models")
    results = []
    for short_side in short_sides:
        runs: dict[str, Run] = {
            name: _ours(setup, model, artifact, short_side, frames) for name, (model, artifact) in artifacts.items()
        }
        if with_peer:
            runs[PEER] = _peer(setup, first, short_side)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        masks: dict[str, list[np.ndarray]] = {}
        for turn in range(rounds):
            for name, run in runs.items():
                if name == PEER and turn:
                    continue
                report(f"short side {short_side}, round {turn + 1} of {rounds}: {name}")
                times, masks[name] = run()
                seconds[name] += times
        results += [
            TrackerResult(name, short_side, Timing.of(times), _agreement(masks[first.name], masks[name]))
            for name, times in seconds.items()
        ]
    return results


def _ours(setup: Setup, model: str | Path, artifact: Artifact, short_side: int, frames: int) -> Run:
    """Return a run of corrflow-track that measures the mean time per frame once the memory is full."""
    references = with_settings(artifact.settings, short_side, setup.memory_frames).num_reference_frames

    def run() -> tuple[list[float], list[np.ndarray]]:
        start, masks = 0.0, []
        with setup.results(model, short_side, references + 1 + frames) as results:
            for result in results:
                masks.append(result.mask)
                if result.frame.index == references:
                    start = time.perf_counter()
            seconds = (time.perf_counter() - start) / frames
        return [seconds], masks

    return run


def _peer(setup: Setup, artifact: Artifact, short_side: int) -> Run:
    """Return a run of the plain tracker, without parallel reading and writing."""
    import torch

    from corrflow.bench.gather_tracker import GatherTracker

    clip, settings = setup.clip, with_settings(artifact.settings, short_side, setup.memory_frames)

    def run() -> tuple[list[float], list[np.ndarray]]:
        torch.set_num_threads(setup.threads)
        tracker, masks, seconds = GatherTracker(artifact, settings), [], []
        with (
            tempfile.TemporaryDirectory() as folder,
            LoopedVideo(clip.path, settings.num_reference_frames + 1 + PEER_FRAMES, clip.size) as source,
            MaskFolderSink(folder) as sink,
        ):
            start = time.perf_counter()
            for frame in source:
                masks.append(tracker.step(frame.image) if masks else tracker.start(frame.image, clip.mask))
                sink.write(FrameResult(masks[-1], (), frame))
                end = time.perf_counter()
                if frame.index > settings.num_reference_frames:
                    seconds.append(end - start)
                start = end
        return seconds, masks

    return run


def _agreement(reference: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """Compute the intersection over union of two sequences of masks."""
    intersection = sum(np.count_nonzero(a & b) for a, b in zip(reference, masks, strict=False))
    union = sum(np.count_nonzero(a | b) for a, b in zip(reference, masks, strict=False))
    return intersection / max(union, 1)


def long_stream(
    setup: Setup, model: str | Path, short_side: int, frames: int, report: Callable[[int], None] = lambda done: None
) -> Stream:
    """Track the looped clip for `frames` frames, more than twice SETTLED, and measure memory and speed."""
    times, resident = np.zeros(frames), {}
    with setup.results(model, short_side, frames) as results:
        for result in results:
            index = result.frame.index
            times[index] = time.perf_counter()
            if index in (SETTLED, frames - 1):
                resident[index] = machine.resident() or 0
            report(index + 1)
    steps = np.diff(times)
    return Stream(
        frames,
        resident[SETTLED],
        resident[frames - 1],
        float(np.median(steps[SETTLED : 2 * SETTLED])),
        float(np.median(steps[-SETTLED:])),
    )


def description(results: Sequence[TrackerResult]) -> list[dict[str, Any]]:
    """Return JSON-ready values."""
    return [
        {
            "tracker": result.name,
            "short_side": result.short_side,
            "frames_per_second": result.frames_per_second,
            "seconds": asdict(result.timing),
            "agreement_with_the_first": result.agreement,
            "times_as_fast_as_plain_pytorch": against_peer(result, results),
        }
        for result in results
    ]


def against_peer(result: TrackerResult, results: Sequence[TrackerResult]) -> float | None:
    """Return the speed relative to the plain tracker at the same size; None if that was not timed."""
    for other in results:
        if other.name == PEER and other.short_side == result.short_side:
            return other.timing.median / result.timing.median
    return None
