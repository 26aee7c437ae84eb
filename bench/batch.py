"""corrflow-batch at work: what a second worker gains, what Ray costs, and whether memory grows with a video."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from rich.console import Console

from corrflow.bench.clips import write_demo
from corrflow.bench.machine import answer_of
from corrflow.bench.report import check_output, environment, wide_console, write_json
from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.batch.inputs import Item, find_items
from corrflow.runtime.batch.process_item import Job
from corrflow.runtime.batch.ray_workers import run_on_ray
from corrflow.runtime.batch.workers import Event, run_workers
from corrflow.runtime.formats.registry import FORMATS
from corrflow.runtime.tracking.model_options import ModelOptions

PARTS = ("workers", "ray", "memory", "memory-both-ways")
TARGETS = {"workers": 1.7, "ray": 1.1}
"""At least so many times the frames a second with two workers; at most so many times the time with Ray."""

_SIZE = (240, 426)
_DEMO_FRAMES = 60
_FORMATS = ("davis", "jsonl", "report")  # what corrflow-batch writes unless told otherwise

Run = Callable[[Job, ModelOptions, Sequence[Item], int], Iterator[Event]]


@dataclass(frozen=True)
class Pace:
    """frames_per_second: from the time when every worker has done its first item; whole: seconds with all starts."""

    frames_per_second: float
    whole: float


def pace_of(run: Run, job: Job, model: ModelOptions, items: Sequence[Item], workers: int) -> Pace:
    """How fast so many workers do the items, each a number of items that is the same for all but for chance.

    Raises CorrflowError where an item fails, InputError for too few items.
    """
    if len(items) < 2 * workers:
        raise InputError(f"expected at least {2 * workers} clips for {workers} workers, got {len(items)}")
    begin, done = time.perf_counter(), list[tuple[float, int]]()
    for event in run(job, model, items, workers):
        if event.kind == "failed":
            raise CorrflowError(f"expected {event.item.name} to be tracked, got: {event.reason}")
        if event.kind == "done":
            done.append((time.perf_counter(), event.frames))
    warm = done[workers - 1][0]
    frames = sum(count for _, count in done[workers:])
    return Pace(frames / (done[-1][0] - warm), time.perf_counter() - begin)


def compare(
    runs: Mapping[str, tuple[Run, int]],
    clips: int,
    frames: int,
    model: ModelOptions,
    rounds: int,
    report: Callable[[str], None],
) -> dict[str, list[Pace]]:
    """The pace of every run, in turn, so that a change of the machine's pace meets all of them alike."""
    found: dict[str, list[Pace]] = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
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
                found[name].append(pace_of(run, job, model, items, workers))
    return found


@dataclass(frozen=True)
class Growth:
    """Memory of a process that tracks one video: bytes resident, and at their highest so far, after so many frames."""

    frames: np.ndarray
    resident: np.ndarray
    highest: np.ndarray

    def at(self, frame: int) -> int:
        """The highest until that frame."""
        return int(self.highest[np.searchsorted(self.frames, min(frame, self.frames[-1]))])

    def per_thousand(self, settled: int) -> float:
        """Bytes a thousand frames, fitted to all that comes after `settled` frames."""
        late = self.frames >= settled
        return 1000 * float(np.polyfit(self.frames[late], self.resident[late], 1)[0])


def growth(folder: Path, frames: int, both_ways: bool, radius: int, formats: Sequence[str]) -> Growth:
    """Track a mask and points through a video of so many frames, in a process of its own.

    both_ways: with a second label on the last frame, so that frames and soft labels wait on the disk
    radius:    of the search, in cells; small, so that a long video is done in a short time
    """
    clip, mask = write_demo(folder, _SIZE, _DEMO_FRAMES)
    (folder / "labels" / "long").mkdir(parents=True)
    labelled = [0, frames - 1] if both_ways else [0]
    rows, columns = np.nonzero(mask)
    place = f"{columns.mean():.1f},{rows.mean():.1f}"
    for frame in labelled:
        cv2.imwrite(str(folder / "labels" / "long" / f"{frame:05d}.png"), mask.astype(np.uint8) * 255)
    lines = [f"{frame},dot,middle,{place}" for frame in labelled]
    (folder / "labels" / "long.csv").write_text("\n".join(["frame,object,name,x,y", *lines]) + "\n")
    repeat(clip, folder / "long.mp4", frames)
    request = {"folder": str(folder), "formats": list(formats), "short_side": _SIZE[0], "radius": radius}
    short_side = answer_of("corrflow.bench.batch_memory", request, "expected a long video to be tracked, got")
    return Growth(*(np.array(column) for column in zip(*short_side, strict=True)))


def repeat(clip: Path, into: Path, frames: int) -> None:
    """A video of so many frames out of the packets of a short one, over and over, without coding them again."""
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


def run_batch_bench(
    parts: Sequence[str], clips: int, frames: int, rounds: int, long: int, short: int, radius: int,
    model: ModelOptions, json_path: Path | None,
) -> None:  # fmt: skip
    """corrflow-bench batch: prints what was measured beside its target; raises InputError for wrong options."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"expected --part among {', '.join(PARTS)}, got {unknown[0]!r}")
    if not short < long // 2:
        raise InputError(f"expected --long above twice --short, got {long} and {short}")
    check_output(json_path)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers
    about, console = environment(1), wide_console()
    content: dict[str, Any] = {"environment": about}
    console.print(f"{about['processor']}, {about['cores']} cores, one thread a worker", highlight=False)
    with Console(stderr=True).status("") as status:
        if "workers" in parts:
            runs: dict[str, tuple[Run, int]] = {"1 worker": (run_workers, 1), "2 workers": (run_workers, 2)}
            content["workers"] = _say_paces(console, compare(runs, clips, frames, model, rounds, status.update), True)
        if "ray" in parts:
            runs = {"plain pool": (run_workers, 2), "Ray": (run_on_ray, 2)}
            content["ray"] = _say_paces(console, compare(runs, clips, frames, model, rounds, status.update), False)
        for part in [part for part in parts if part.startswith("memory")]:
            status.update(f"{part}: {long} frames")
            with tempfile.TemporaryDirectory() as folder:
                measured = growth(Path(folder), long, part == "memory-both-ways", radius, tuple(FORMATS))
            slope = measured.per_thousand(short)
            console.print(
                f"{part}: at most {measured.at(short) / 2**20:.1f} MiB over the first {short} frames and "
                f"{measured.at(long) / 2**20:.1f} MiB over all {long}; {slope / 2**20:+.2f} MiB a thousand frames "
                f"after the first {short} (240 short_side, all {len(FORMATS)} formats, radius {radius})",
                highlight=False,
            )
            content[part] = {
                "frames": measured.frames.tolist(), "resident": measured.resident.tolist(),
                "highest": measured.highest.tolist(), "bytes_a_thousand_frames": slope,
            }  # fmt: skip
    if json_path is not None:
        write_json(json_path, content)


def _say_paces(console: Console, found: dict[str, list[Pace]], more_is_meant: bool) -> dict[str, Any]:
    """Print both paces and their ratio, the median of the rounds' ratios."""
    (first, one), (second, other) = found.items()
    for name, paces in found.items():
        rate, whole = (
            float(np.median([getattr(pace, field) for pace in paces])) for field in ("frames_per_second", "whole")
        )
        console.print(f"{name}: {rate:.2f} frames/s; {whole:.1f} s with all starts", highlight=False)
    ratios = [b.frames_per_second / a.frames_per_second for a, b in zip(one, other, strict=True)]
    ratio = float(np.median(ratios))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    if more_is_meant:
        console.print(f"{second} / {first}: {ratio:.2f} times the frames ({spread}; target >= {TARGETS['workers']})")
    else:
        share = f"{100 * (1 / ratio - 1):+.1f} % time"
        console.print(f"{second} against {first}: {share} (ratios {spread}; target <= +10 %)", highlight=False)
    paces = {name: [asdict(pace) for pace in chain(own)] for name, own in found.items()}
    return {"paces": paces, "ratio": ratio}
