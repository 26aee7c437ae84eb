"""Choose tracking settings by measured J&F and time on a named set: one setting changed at a time, or all together.

Settings that are tried together go through a sequence in step: each frame is encoded once for every working size, so a
further setting costs its propagation alone, and memory does not grow with the sequence.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from corrflow.errors import CorrflowError, InputError
from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.masks import ALL_CORES, DataSet
from corrflow.evaluate.methods.methods import ArtifactEncoder, TrackerMethod
from corrflow.evaluate.metrics.scorer import SequenceScorer
from corrflow.evaluate.reports.files import prepare_folder, write_text
from corrflow.evaluate.reports.report import SequenceScore, mean_scores, print_whole, seconds_per_frame
from corrflow.evaluate.reports.result_store import ResultFolder, program, result_key
from corrflow.evaluate.workers import frame_done, run_jobs
from corrflow.runtime.backends.base import Backend, Memory
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings, last_frames
from corrflow.runtime.tracking.occlusion import occlusion_settings_for
from corrflow.runtime.tracking.tracker import Tracker

MOST_ROUNDS = 3
"""Of changing every setting in turn; most searches settle in the second."""

NAMES = ("short_side", "radius", "memory_frames", "top_k", "temperature")


@dataclass(frozen=True)
class SearchSpace:
    """Values to try for each of `NAMES`; an empty tuple keeps what the artifact has."""

    short_side: tuple[int, ...] = ()
    radius: tuple[int, ...] = ()
    memory_frames: tuple[int, ...] = ()
    top_k: tuple[int, ...] = ()
    temperature: tuple[float, ...] = ()

    def values(self, name: str) -> tuple[Any, ...]:
        return getattr(self, name)


@dataclass(frozen=True)
class Trial:
    """Settings and what they are worth: J, F and J&F (0..1) as means over objects, and seconds a frame."""

    settings: TrackingSettings
    scores: dict[str, float]
    seconds: float

    @property
    def both(self) -> float:
        return self.scores["J&F"]


@dataclass(frozen=True)
class SearchJob:
    """Several settings on one sequence."""

    encoder: ArtifactEncoder
    sequence: MaskSequence
    settings: tuple[TrackingSettings, ...]
    threads: int


class SharedEncodings:
    """A back end for several trackers that see the same frames: each working size is encoded once a frame.

    seconds: what the encoding that the last `encode` returned took, when it was made
    """

    device_frames = False

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name, self.artifact, self.supports_runtime_search_params = (
            backend.name,
            backend.artifact,
            backend.supports_runtime_search_params,
        )
        self.supports_window_offsets = backend.supports_window_offsets
        self._made: dict[tuple[int, int], tuple[Any, float]] = {}
        self.seconds, self.fresh = 0.0, False

    def next_frame(self) -> None:
        self._made.clear()

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> Any:
        size = working or (frame.shape[0], frame.shape[1])
        self.fresh = size not in self._made
        if self.fresh:
            begin = time.perf_counter()
            features = self._backend.encode(frame, size)
            self._made[size] = features, time.perf_counter() - begin
        features, self.seconds = self._made[size]
        return features

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> Memory:
        return self._backend.new_memory(settings, num_channels, cells)

    def propagate(self, query: Any, memory: Any, plan: SearchPlan) -> np.ndarray:
        return self._backend.propagate(query, memory, plan)

    def close(self) -> None:
        self._backend.close()


def changed(settings: TrackingSettings, name: str, value: Any) -> TrackingSettings:
    """Settings with one of `NAMES` at another value; raises InputError for a value out of range."""
    if name == "memory_frames":
        return replace(settings, recent_offsets=last_frames(value))
    return replace(settings, **{name: (value,) if name == "radius" else value})


class Search:
    """Tries settings on a data set, each once; with a folder it goes on where an earlier search stopped."""

    def __init__(
        self, data: DataSet, artifact: Path, workers: int, results: Path | None, show_progress: bool = False
    ) -> None:
        for sequence in data.sequences:
            _ = sequence.scored  # which raises for a sequence that cannot be scored
        self._data, self._encoder, self._workers = data, ArtifactEncoder(artifact), workers
        self._store = None if results is None else ResultFolder(results)
        self._show = show_progress
        self._scores: dict[tuple[TrackingSettings, str], SequenceScore] = {}
        self.tried: dict[TrackingSettings, Trial] = {}

    @property
    def reused(self) -> int:
        """Results of an earlier search that were used."""
        return sum(score.reused for score in self._scores.values())

    def measure(self, several: Iterable[TrackingSettings], label: str = "frames") -> list[Trial]:
        """What these settings are worth; the label is for the progress bar."""
        asked = list(dict.fromkeys(several))
        new = [settings for settings in asked if settings not in self.tried]
        jobs, keys = [], {}
        for sequence in self._data.sequences:
            missing = []
            for settings in new:
                at = settings, sequence.name
                if self._store is not None:
                    keys[at] = result_key(TrackerMethod(self._encoder, settings, True).describe(), sequence)
                    found, _ = self._store.load(_label(settings), sequence.name, keys[at])
                    if found is not None:
                        self._scores[at] = found
                        continue
                missing.append(settings)
            if missing:
                threads = 1 if self._workers > 1 else ALL_CORES
                jobs.append(SearchJob(self._encoder, sequence, tuple(missing), threads))
        frames = sum(len(job.sequence) for job in jobs)
        for job, scores in run_jobs(run_search_job, jobs, self._workers, frames, self._show, label):
            for settings, score in zip(job.settings, scores, strict=True):
                at = settings, job.sequence.name
                self._scores[at] = score
                if self._store is not None:
                    self._store.save(_label(settings), job.sequence.name, keys[at], score)
        for settings in new:
            own = [self._scores[settings, sequence.name] for sequence in self._data.sequences]
            self.tried[settings] = Trial(settings, mean_scores(own), seconds_per_frame(own) or 0.0)
        return [self.tried[settings] for settings in asked]

    def in_turn(self, start: TrackingSettings, space: SearchSpace, slowest: float) -> Trial:
        """From `start`, change one setting at a time to its best value, until a whole round changes nothing."""
        best = self.measure([start], "where it starts")[0]
        for _ in range(MOST_ROUNDS):
            before = best
            for name in NAMES:
                options = [changed(best.settings, name, value) for value in space.values(name)]
                best = better(self.measure([best.settings, *options], name), slowest)
            if best.settings == before.settings:
                break
        return best

    def all_together(self, start: TrackingSettings, space: SearchSpace, slowest: float) -> Trial:
        """Every combination of the values, and `start`."""
        options = [start]
        for values in itertools.product(
            *([(name, value) for value in space.values(name)] for name in NAMES if space.values(name))
        ):
            settings = start
            for name, value in values:
                settings = changed(settings, name, value)
            options.append(settings)
        return better(self.measure(options), slowest)


def run_search_job(job: SearchJob) -> list[SequenceScore]:
    """Track and score a sequence with every setting in step; runs in a worker process."""
    backend = SharedEncodings(job.encoder.open(job.settings[0], job.threads))
    try:
        trackers = [Tracker(backend, settings, occlusion_settings_for(backend, settings)) for settings in job.settings]
        scorers = [SequenceScorer(job.sequence) for _ in trackers]
        seconds = [0.0] * len(trackers)
        for frame in job.sequence.frames():
            backend.next_frame()
            given = job.sequence.objects(frame.index)
            for number, tracker in enumerate(trackers):
                if frame.index == 0:
                    mask = tracker.start(frame.image, given).mask
                else:
                    begin = time.perf_counter()
                    mask = tracker.step(frame.image).mask
                    seconds[number] += time.perf_counter() - begin
                    # Every setting is charged for the encoding, whoever came first.
                    seconds[number] += 0.0 if backend.fresh else backend.seconds
                    if given:
                        tracker.add(given)
                scorers[number].add(mask)
            frame_done()
    finally:
        backend.close()
    frames = len(job.sequence)
    return [
        SequenceScore(scorer.scores(), frames, spent, frames - 1)
        for scorer, spent in zip(scorers, seconds, strict=True)
    ]


def better(tried: Sequence[Trial], slowest: float) -> Trial:
    """The highest J&F among those that take at most `slowest` seconds a frame (0: any time); of equals the quickest.

    The quickest of all where none is quick enough.
    """
    quick = [item for item in tried if not slowest or item.seconds <= slowest]
    if not quick:
        return min(tried, key=lambda item: item.seconds)
    return max(quick, key=lambda item: (item.both, -item.seconds))


def pareto(tried: Iterable[Trial]) -> list[Trial]:
    """Those that no other beats in both J&F and time, the quickest first."""
    front: list[Trial] = []
    for item in sorted(tried, key=lambda item: (item.seconds, -item.both)):
        if not front or item.both > front[-1].both:
            front.append(item)
    return front


def search_table(tried: Iterable[Trial], chosen: Trial, title: str) -> Table:
    """One row per setting, the best first; those that nothing beats in both score and time are marked."""
    table = Table(title=title)
    for name in ("short_side", "references", "radius", "top_k", "temperature", "J", "F", "J&F", "s/frame", ""):
        table.add_column(name, justify="right", no_wrap=True)
    tried = list(tried)
    front = pareto(tried)
    for item in sorted(tried, key=lambda item: -item.both):
        settings = item.settings
        marks = [word for word, true in (("chosen", item is chosen), ("pareto", item in front)) if true]
        table.add_row(
            str(settings.short_side or "own"),
            f"{len(settings.permanent_frames)}+{len(settings.recent_offsets)}",
            str(settings.radius[0]),
            str(settings.top_k or "all"),
            f"{settings.temperature:g}",
            *(f"{100 * item.scores[name]:.1f}" for name in ("J", "F", "J&F")),
            f"{item.seconds:.3f}",
            ", ".join(marks),
        )
    return table


@dataclass(frozen=True)
class SearchRequest:
    """Options of corrflow-eval search. slowest: seconds a frame, 0 for any; write: artifact to make, or None."""

    space: SearchSpace
    grid: bool
    slowest: float
    workers: int
    out: Path | None
    write: Path | None


def run_search(data: DataSet, artifact: Path, start: TrackingSettings, asked: SearchRequest) -> Trial:
    """corrflow-eval search: try, print, write settings.json and search.json, and the artifact if asked for."""
    if asked.write is not None and asked.out is None:
        raise InputError("expected --out with --write, for the settings that the artifact is made from")
    if asked.write is not None and asked.write.exists():
        raise InputError(f"expected a new folder for the artifact, got {asked.write}, which exists; name another")
    if asked.out is not None:
        prepare_folder(asked.out)
    for name in NAMES:  # a value out of range is known before anything is tracked
        for value in asked.space.values(name):
            changed(start, name, value)
    search = Search(data, artifact, asked.workers, asked.out, show_progress=True)
    try_out = search.all_together if asked.grid else search.in_turn
    chosen = try_out(start, asked.space, asked.slowest)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    print_whole(search_table(search.tried.values(), chosen, f"{data.name} {data.split}, {artifact.name}"))
    if asked.slowest and chosen.seconds > asked.slowest:
        console.print(f"note: nothing tried takes at most {asked.slowest:g} s a frame; the quickest was chosen")
    if search.reused:
        console.print(f"{search.reused} results are of an earlier search with the same code, settings and data")
    if asked.out is not None:
        path = asked.out / "settings.json"
        write_text(path, json.dumps(asdict(chosen.settings), indent=2) + "\n")
        write_text(asked.out / "search.json", json.dumps(_as_json(search, chosen, data), indent=1) + "\n")
        console.print(f"wrote {path} and {asked.out / 'search.json'}", markup=False)
        if asked.write is not None:
            _write_artifact(artifact, asked.write, path)
            console.print(f"wrote {asked.write}; next: corrflow-track VIDEO --model {asked.write}", markup=False)
    return chosen


def _write_artifact(source: Path, target: Path, settings: Path) -> None:
    # Graphs are made by the export command, which nothing here imports.
    command = [sys.executable, "-m", "corrflow.export.cli", "settings", str(source), str(target), str(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CorrflowError(f"cannot write {target}: {message.removeprefix('error: ')}")


def _as_json(search: Search, chosen: Trial, data: DataSet) -> dict[str, Any]:
    def one(item: Trial) -> dict[str, Any]:
        return {"settings": asdict(item.settings), **item.scores, "seconds_per_frame": item.seconds}

    return {
        "dataset": {"name": data.name, "root": data.root, "split": data.split},
        "sequences": [sequence.name for sequence in data.sequences],
        "program": program(),
        "chosen": one(chosen),
        "pareto": [one(item) for item in pareto(search.tried.values())],
        "tried": [one(item) for item in search.tried.values()],
    }


def _label(settings: TrackingSettings) -> str:
    """Settings as a folder's name."""
    return json.dumps(asdict(settings), separators=(",", ":"))
