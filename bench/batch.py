"""corrflow-bench batch: speedup of a second worker, overhead of Ray, and memory over a long video."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from rich.console import Console

from corrflow.bench.clips import write_demo
from corrflow.bench.machine import answer_of
from corrflow.bench.options import BatchOptions
from corrflow.bench.report import check_output, environment, wide_console, write_json
from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.batch.inputs import Item, find_items
from corrflow.runtime.batch.process_item import Job
from corrflow.runtime.batch.ray_workers import run_on_ray
from corrflow.runtime.batch.workers import Event, run_workers
from corrflow.runtime.formats.registry import FORMATS
from corrflow.runtime.tracking.model_options import ModelOptions

MIN_SPEEDUP, MAX_RAY_OVERHEAD = 1.7, 0.1
"""Targets: frames per second of two workers relative to one, and extra time of Ray relative to the plain pool."""

_SIZE = (240, 426)
_DEMO_FRAMES = 60
_FORMATS = ("davis", "jsonl", "report")  # defaults of corrflow-batch

Run = Callable[[Job, ModelOptions, Sequence[Item], int], Iterator[Event]]


@dataclass(frozen=True)
class Speed:
    """Speed of a run.

    frames_per_second: from the time when every worker has finished its first item; total: seconds with all starts
    """

    frames_per_second: float
    total: float


def speed_of(run: Run, job: Job, model: ModelOptions, items: Sequence[Item], workers: int) -> Speed:
    """Measure the speed of workers on items of equal length.

    Raises CorrflowError if an item fails, InputError for too few items.
    """
    if len(items) < 2 * workers:
        raise InputError(
            f"expected at least {2 * workers} clips for {workers} workers, got {len(items)}; raise --clips"
        )
    start, done = time.perf_counter(), list[tuple[float, int]]()
    for event in run(job, model, items, workers):
        if event.kind == "failed":
            raise CorrflowError(f"expected {event.item.name} to be tracked, got: {event.reason}")
        if event.kind == "done":
            done.append((time.perf_counter(), event.frames))
    warm = done[workers - 1][0]
    frames = sum(count for _, count in done[workers:])
    return Speed(frames / (done[-1][0] - warm), time.perf_counter() - start)


def compare(
    runs: Mapping[str, tuple[Run, int]],
    clips: int,
    frames: int,
    model: ModelOptions,
    rounds: int,
    report: Callable[[str], None],
) -> dict[str, list[Speed]]:
    """Measure the speed of all runs in turn, so that changes of the machine's speed affect all equally."""
    speeds: dict[str, list[Speed]] = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clip, mask = write_demo(folder, _SIZE, frames)
        for part in ("videos", "labels"):
            (folder / part).mkdir()
        for number in range(clips):
            os.link(clip, folder / "videos" / f"{number}.mp4")
            cv2.imwrite(str(folder / "labels" / f"{number}.png"), mask.astype(np.uint8) * 255)
        items = find_items([str(folder / "videos")])
        for turn in range(rounds):
            for name, (run, workers) in runs.items():
                report(f"round {turn + 1} of {rounds}: {name}")
                out = folder / f"{name} {turn}"
                (out / ".staging").mkdir(parents=True)
                job = Job(folder / "labels", out, out / ".staging", _FORMATS, "benchmark")
                speeds[name].append(speed_of(run, job, model, items, workers))
    return speeds


@dataclass(frozen=True)
class Growth:
    """Memory of a process that tracks one video: resident and peak bytes at numbers of frames."""

    frames: np.ndarray
    resident: np.ndarray
    highest: np.ndarray

    def at(self, frame: int) -> int:
        """Return the peak memory up to a frame."""
        return int(self.highest[np.searchsorted(self.frames, min(frame, self.frames[-1]))])

    def per_thousand(self, settled: int) -> float:
        """Fit the growth in bytes per thousand frames after `settled` frames."""
        late = self.frames >= settled
        return 1000 * float(np.polyfit(self.frames[late], self.resident[late], 1)[0])


def growth(folder: Path, frames: int, both_ways: bool, radius: int, formats: Sequence[str]) -> Growth:
    """Track a mask and points through a long video in a separate process, and return its memory.

    both_ways: annotate the last frame as well, so that frames and soft masks are cached on disk
    radius:    search radius in cells; small, so that a long video takes little time
    """
    clip, mask = write_demo(folder, _SIZE, _DEMO_FRAMES)
    (folder / "labels" / "long").mkdir(parents=True)
    annotated = [0, frames - 1] if both_ways else [0]
    y, x = np.nonzero(mask)
    centre = f"{x.mean():.1f},{y.mean():.1f}"
    for frame in annotated:
        cv2.imwrite(str(folder / "labels" / "long" / f"{frame:05d}.png"), mask.astype(np.uint8) * 255)
    lines = [f"{frame},dot,middle,{centre}" for frame in annotated]
    (folder / "labels" / "long.csv").write_text("\n".join(["frame,object,name,x,y", *lines]) + "\n")
    repeat(clip, folder / "long.mp4", frames)
    request = {"folder": str(folder), "formats": list(formats), "short_side": _SIZE[0], "radius": radius}
    rows = answer_of("corrflow.bench.batch_memory", request, "expected a long video to be tracked, got")
    return Growth(*(np.array(column) for column in zip(*rows, strict=True)))


def repeat(clip: Path, into: Path, frames: int) -> None:
    """Write a video of `frames` frames by repeating the packets of a short video, without re-encoding."""
    with av.open(str(clip)) as short, av.open(str(into), "w") as long:
        packets = [packet for packet in short.demux(video=0) if packet.dts is not None]
        stream = long.add_stream_from_template(short.streams.video[0])
        step = Fraction(max(packet.pts or 0 for packet in packets), len(packets) - 1)
        times = [(packet.pts or 0, packet.dts or 0) for packet in packets]
        for number in range(frames):
            turn, index = divmod(number, len(packets))
            packet, shift = packets[index], round(turn * len(packets) * step)
            packet.pts, packet.dts = times[index][0] + shift, times[index][1] + shift
            packet.stream = stream
            long.mux(packet)


def run_batch(options: BatchOptions) -> None:
    """Run corrflow-bench batch and print the measurements beside their targets."""
    check_output(options.json)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers
    model = ModelOptions(
        None if options.model is None else str(options.model), short_side=options.short_side, threads=1
    )
    machine, console = environment(1), wide_console()
    content: dict[str, Any] = {"environment": machine}
    console.print(f"{machine['processor']}, {machine['cores']} cores, one thread per worker", highlight=False)
    comparisons: dict[str, dict[str, tuple[Run, int]]] = {
        "workers": {"1 worker": (run_workers, 1), "2 workers": (run_workers, 2)},
        "ray": {"plain pool": (run_workers, 2), "Ray": (run_on_ray, 2)},
    }
    with Console(stderr=True).status("") as status:
        for part in options.parts:
            if part in comparisons:
                speeds = compare(comparisons[part], options.clips, options.frames, model, options.rounds, status.update)
                content[part] = _print_speeds(console, speeds, part)
                continue
            status.update(f"{part}: {options.long} frames")
            with tempfile.TemporaryDirectory() as folder:
                measured = growth(
                    Path(folder), options.long, part == "memory-both-ways", options.radius, tuple(FORMATS)
                )
            slope = measured.per_thousand(options.short)
            console.print(
                f"{part}: at most {measured.at(options.short) / 2**20:.1f} MiB over the first {options.short} frames"
                f" and {measured.at(options.long) / 2**20:.1f} MiB over all {options.long}; {slope / 2**20:+.2f} MiB"
                f" per thousand frames after the first {options.short} (short side {_SIZE[0]}, all {len(FORMATS)}"
                f" formats, radius {options.radius})",
                highlight=False,
            )
            content[part] = {
                "frames": measured.frames.tolist(), "resident": measured.resident.tolist(),
                "highest": measured.highest.tolist(), "bytes_per_thousand_frames": slope,
            }  # fmt: skip
    if options.json is not None:
        write_json(options.json, content)


def _print_speeds(console: Console, speeds: dict[str, list[Speed]], part: str) -> dict[str, Any]:
    """Print both speeds and the median over rounds of their ratio."""
    (first, one), (second, other) = speeds.items()
    for name, measured in speeds.items():
        rate, total = (
            float(np.median([getattr(speed, field) for speed in measured])) for field in ("frames_per_second", "total")
        )
        console.print(f"{name}: {rate:.2f} frames/s; {total:.1f} s with all starts", highlight=False)
    ratios = [b.frames_per_second / a.frames_per_second for a, b in zip(one, other, strict=True)]
    ratio = float(np.median(ratios))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    if part == "workers":
        console.print(f"{second} / {first}: {ratio:.2f} times the frames ({spread}; target >= {MIN_SPEEDUP})")
    else:
        overhead = f"{100 * (1 / ratio - 1):+.1f} % time"
        target = f"target <= +{100 * MAX_RAY_OVERHEAD:.0f} %"
        console.print(f"{second} relative to {first}: {overhead} (ratios {spread}; {target})", highlight=False)
    return {
        "speeds": {name: [asdict(speed) for speed in measured] for name, measured in speeds.items()},
        "ratio": ratio,
    }
