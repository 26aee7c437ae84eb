"""corrflow-bench track: from a video file to mask files, each artifact and a plain PyTorch tracker in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.bench import machine
from corrflow.bench.clips import LoopedVideo
from corrflow.bench.timing import Timing
from corrflow.runtime.artifacts.artifact import Artifact
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.formats.background_writer import write_behind
from corrflow.runtime.formats.mask_png import MaskFolderSink
from corrflow.runtime.settings import with_settings
from corrflow.runtime.tracking.occlusion import occlusion_settings_for
from corrflow.runtime.tracking.stream import track_source
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import FrameResult, MaskObject, TrackedObject

PEER = "plain PyTorch"
PEER_FRAMES = 1  # and one round: it takes many seconds for each
SETTLED = 500  # frames of a long stream before which memory may still grow

Report = Callable[[str], None]


@dataclass(frozen=True)
class Clip:
    """What is tracked: a video file, the size (height, width) it is played at, and the first mask [H, W] bool."""

    path: Path
    size: tuple[int, int]
    mask: np.ndarray


@dataclass(frozen=True)
class Tracked:
    """One tracker at one working size; times are of one frame, with every reference at hand.

    agreement: share of the object's pixels (intersection over union) on which it agrees with the first artifact, over
    the frames that both tracked
    """

    name: str
    short_side: int
    timing: Timing
    agreement: float

    @property
    def frames_per_second(self) -> float:
        return 1 / self.timing.median


@dataclass(frozen=True)
class Stream:
    """A long stream: memory in bytes and median seconds of a frame, behind frame SETTLED and at the end."""

    frames: int
    resident_early: int
    resident_late: int
    seconds_early: float
    seconds_late: float

    @property
    def growth(self) -> int:
        return self.resident_late - self.resident_early

    @property
    def slowdown(self) -> float:
        """How much longer a frame takes at the end, as a share."""
        return self.seconds_late / self.seconds_early - 1


def compare(
    clip: Clip,
    artifacts: Sequence[Artifact],
    short_side: Sequence[int],
    memory_frames: int,
    rounds: int,
    frames: int,
    threads: int,
    with_peer: bool,
    report: Report = lambda message: None,
    backend: str = "auto",
) -> list[Tracked]:
    """Every artifact, and the plain tracker with the first one's weights, at every working size, taking turns."""
    found = []
    for own_rows in short_side:
        runs: dict[str, Callable[[], tuple[list[float], list[np.ndarray]]]] = {}
        for artifact in artifacts:
            runs[artifact.name] = _ours(clip, artifact, own_rows, memory_frames, frames, threads, backend)
        if with_peer:
            runs[PEER] = _peer(clip, artifacts[0], own_rows, memory_frames, threads)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        masks: dict[str, list[np.ndarray]] = {}
        for turn in range(rounds):
            for name, run in runs.items():
                if name == PEER and turn:
                    continue
                report(f"{own_rows} short_side, round {turn + 1} of {rounds}: {name}")
                times, masks[name] = run()
                seconds[name] += times
        truth = masks[artifacts[0].name]
        found += [
            Tracked(name, own_rows, Timing.of(times), _agreement(truth, masks[name])) for name, times in seconds.items()
        ]
    return found


def _ours(clip: Clip, artifact: Artifact, short_side: int, memory_frames: int, frames: int, threads: int, name: str):
    """A run as corrflow-track does it: seconds of a frame on average once the memory is full, and all masks."""
    settings = with_settings(artifact.settings, short_side, memory_frames)

    def run() -> tuple[list[float], list[np.ndarray]]:
        backend = open_backend(name, artifact, threads)
        begun = 0.0
        masks: list[np.ndarray] = []

        try:
            with (
                tempfile.TemporaryDirectory() as folder,
                LoopedVideo(clip.path, settings.num_reference_frames + 1 + frames, clip.size) as source,
            ):
                objects: list[TrackedObject] = [MaskObject(1, clip.mask)]
                tracker = Tracker(backend, settings, occlusion_settings_for(backend, settings))
                with write_behind([MaskFolderSink(folder)]) as write:
                    for result in track_source(source, tracker, lambda frame: objects):
                        write(result)
                        masks.append(result.mask)
                        if result.frame.index == settings.num_reference_frames:
                            begun = time.perf_counter()
                seconds = (time.perf_counter() - begun) / frames
        finally:
            backend.close()
        return [seconds], masks

    return run


def _peer(clip: Clip, artifact: Artifact, short_side: int, memory_frames: int, threads: int):
    """The same with the plain tracker: frame by frame, one thing after another."""
    import torch

    from corrflow.bench.gather_tracker import GatherTracker

    settings = with_settings(artifact.settings, short_side, memory_frames)

    def run() -> tuple[list[float], list[np.ndarray]]:
        torch.set_num_threads(threads)
        tracker, masks, seconds = GatherTracker(artifact, settings), [], []
        with (
            tempfile.TemporaryDirectory() as folder,
            LoopedVideo(clip.path, settings.num_reference_frames + 1 + PEER_FRAMES, clip.size) as source,
            MaskFolderSink(folder) as sink,
        ):
            begun = time.perf_counter()
            for frame in source:
                masks.append(tracker.step(frame.image) if masks else tracker.start(frame.image, clip.mask))
                sink.write(FrameResult(masks[-1], (), frame))
                now = time.perf_counter()
                if frame.index > settings.num_reference_frames:
                    seconds.append(now - begun)
                begun = now
        return seconds, masks

    return run


def _agreement(truth: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    shared = sum(np.count_nonzero(a & b) for a, b in zip(truth, masks, strict=False))
    either = sum(np.count_nonzero(a | b) for a, b in zip(truth, masks, strict=False))
    return shared / max(either, 1)


def long_stream(
    clip: Clip,
    artifact: Artifact,
    short_side: int,
    memory_frames: int,
    frames: int,
    threads: int,
    report: Callable[[int], None] = lambda done: None,
    name: str = "auto",
) -> Stream:
    """Play the clip over and over for so many frames, more than twice SETTLED, and watch memory and pace."""
    backend = open_backend(name, artifact, threads)
    times = np.zeros(frames)
    resident = {}

    try:
        with tempfile.TemporaryDirectory() as folder, LoopedVideo(clip.path, frames, clip.size) as source:
            settings = with_settings(artifact.settings, short_side, memory_frames)
            tracker = Tracker(backend, settings, occlusion_settings_for(backend, settings))
            objects: list[TrackedObject] = [MaskObject(1, clip.mask)]
            with write_behind([MaskFolderSink(folder)]) as write:
                for result in track_source(source, tracker, lambda frame: objects):
                    write(result)
                    index = result.frame.index
                    times[index] = time.perf_counter()
                    if index in (SETTLED, frames - 1):
                        resident[index] = machine.resident() or 0
                    report(index + 1)
    finally:
        backend.close()
    steps = np.diff(times)
    return Stream(
        frames,
        resident[SETTLED],
        resident[frames - 1],
        float(np.median(steps[SETTLED : 2 * SETTLED])),
        float(np.median(steps[-SETTLED:])),
    )


def description(found: Sequence[Tracked]) -> list[dict[str, Any]]:
    """JSON-ready."""
    return [
        {
            "tracker": tracked.name,
            "short_side": tracked.short_side,
            "frames_per_second": tracked.frames_per_second,
            "seconds": asdict(tracked.timing),
            "agreement_with_the_first": tracked.agreement,
            "times_as_fast_as_plain_pytorch": against_peer(tracked, found),
        }
        for tracked in found
    ]


def against_peer(tracked: Tracked, found: Sequence[Tracked]) -> float | None:
    """How many times as fast as the plain tracker at the same size; None where that was not timed."""
    for other in found:
        if other.name == PEER and other.short_side == tracked.short_side:
            return other.timing.median / tracked.timing.median
    return None
