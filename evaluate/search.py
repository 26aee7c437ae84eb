"""Choice of tracking settings by measured J&F and time: one setting at a time, or every combination.

Trackers with different settings process a sequence together. Each frame is encoded once per working size, so a further
setting costs its propagation alone, and memory does not grow with the sequence.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from corrflow.atomic_files import write_file
from corrflow.errors import CorrflowError, InputError
from corrflow.evaluate.commands import davis_data
from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.masks import ALL_CORES, DataSet
from corrflow.evaluate.method_selection import model_settings
from corrflow.evaluate.methods.methods import ArtifactEncoder, TrackerMethod
from corrflow.evaluate.metrics.scorer import SequenceScorer
from corrflow.evaluate.options import SearchOptions
from corrflow.evaluate.reports.files import prepare_folder
from corrflow.evaluate.reports.report import SequenceScore, mean_scores, print_table, seconds_per_frame
from corrflow.evaluate.reports.result_store import ResultStore, program, result_key
from corrflow.evaluate.workers import frame_done, run_jobs
from corrflow.runtime.backends.base import Backend, Memory
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings, last_frames
from corrflow.runtime.tracking.occlusion import occlusion_settings_for
from corrflow.runtime.tracking.tracker import Tracker

N = TypeVar("N", int, float)

MAX_ROUNDS = 3
"""Rounds over all settings; most searches converge in the second round."""

NAMES = ("short_side", "radius", "memory_frames", "top_k", "temperature")


@dataclass(frozen=True)
class SearchSpace:
    """Values to try for each of `NAMES`; an empty tuple keeps the model's value."""

    short_side: tuple[int, ...] = ()
    radius: tuple[int, ...] = ()
    memory_frames: tuple[int, ...] = ()
    top_k: tuple[int, ...] = ()
    temperature: tuple[float, ...] = ()

    def values(self, name: str) -> tuple[Any, ...]:
        return getattr(self, name)


@dataclass(frozen=True)
class Trial:
    """Measured settings: J, F and J&F (0..1) as means over objects, and seconds per frame."""

    settings: TrackingSettings
    scores: dict[str, float]
    seconds: float

    @property
    def j_and_f(self) -> float:
        return self.scores["J&F"]


@dataclass(frozen=True)
class SearchJob:
    """Several settings on one sequence."""

    encoder: ArtifactEncoder
    sequence: MaskSequence
    settings: tuple[TrackingSettings, ...]
    threads: int


class SharedEncodings:
    """Backend for several trackers of the same frames: each working size is encoded once per frame.

    computed: the last `encode` computed its features, and did not return cached features
    seconds:  time in which these features were computed
    """

    device_frames = False

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name, self.artifact = backend.name, backend.artifact
        self.supports_runtime_search_params = backend.supports_runtime_search_params
        self.supports_window_offsets = backend.supports_window_offsets
        self._cache: dict[tuple[int, int], tuple[Any, float]] = {}
        self.seconds, self.computed = 0.0, False

    def next_frame(self) -> None:
        """Clear the cache."""
        self._cache.clear()

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> Any:
        size = working or (frame.shape[0], frame.shape[1])
        self.computed = size not in self._cache
        if self.computed:
            begin = time.perf_counter()
            features = self._backend.encode(frame, size)
            self._cache[size] = features, time.perf_counter() - begin
        features, self.seconds = self._cache[size]
        return features

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> Memory:
        return self._backend.new_memory(settings, num_channels, cells)

    def propagate(self, query: Any, memory: Any, plan: SearchPlan) -> np.ndarray:
        return self._backend.propagate(query, memory, plan)

    def close(self) -> None:
        self._backend.close()


def with_value(settings: TrackingSettings, name: str, value: Any) -> TrackingSettings:
    """Return the settings with one of `NAMES` changed. Raises InputError for a value out of range."""
    if name == "memory_frames":
        return replace(settings, recent_offsets=last_frames(value))
    return replace(settings, **{name: (value,) if name == "radius" else value})


class Search:
    """Measurement of settings on a data set, each setting once; with a folder, results are cached there."""

    def __init__(
        self, data: DataSet, artifact: Path, workers: int, results: Path | None, show_progress: bool = False
    ) -> None:
        for sequence in data.sequences:
            _ = sequence.scored  # raises for a sequence that cannot be scored
        self._data, self._encoder, self._workers = data, ArtifactEncoder(artifact), workers
        self._store = None if results is None else ResultStore(results)
        self._show = show_progress
        self._scores: dict[tuple[TrackingSettings, str], SequenceScore] = {}
        self.trials: dict[TrackingSettings, Trial] = {}

    @property
    def reused(self) -> int:
        """Number of results from an earlier search."""
        return sum(score.reused for score in self._scores.values())

    def measure(self, candidates: Iterable[TrackingSettings], label: str = "frames") -> list[Trial]:
        """Measure settings, and return a trial for each; the label is for the progress bar."""
        requested = list(dict.fromkeys(candidates))
        new = [settings for settings in requested if settings not in self.trials]
        jobs, keys = [], {}
        for sequence in self._data.sequences:
            missing = []
            for settings in new:
                at = settings, sequence.name
                if self._store is not None:
                    keys[at] = result_key(TrackerMethod(self._encoder, settings, True).describe(), sequence)
                    cached, _ = self._store.load(_label(settings), sequence.name, keys[at])
                    if cached is not None:
                        self._scores[at] = cached
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
            scores = [self._scores[settings, sequence.name] for sequence in self._data.sequences]
            self.trials[settings] = Trial(settings, mean_scores(scores), seconds_per_frame(scores) or 0.0)
        return [self.trials[settings] for settings in requested]

    def coordinate_search(self, start: TrackingSettings, space: SearchSpace, max_seconds: float) -> Trial:
        """Set one setting after another to its best value, from `start`, until a round changes nothing."""
        best = self.measure([start], "initial settings")[0]
        for _ in range(MAX_ROUNDS):
            previous = best
            for name in NAMES:
                candidates = [with_value(best.settings, name, value) for value in space.values(name)]
                best = best_trial(self.measure([best.settings, *candidates], name), max_seconds)
            if best.settings == previous.settings:
                break
        return best

    def grid_search(self, start: TrackingSettings, space: SearchSpace, max_seconds: float) -> Trial:
        """Try every combination of the values, and `start`."""
        candidates = [start]
        for values in itertools.product(
            *([(name, value) for value in space.values(name)] for name in NAMES if space.values(name))
        ):
            settings = start
            for name, value in values:
                settings = with_value(settings, name, value)
            candidates.append(settings)
        return best_trial(self.measure(candidates), max_seconds)


def run_search_job(job: SearchJob) -> list[SequenceScore]:
    """Track and score a sequence with all settings together, frame by frame; runs in a worker process."""
    backend = SharedEncodings(job.encoder.open(job.settings[0], job.threads))
    try:
        trackers = [Tracker(backend, settings, occlusion_settings_for(backend, settings)) for settings in job.settings]
        scorers = [SequenceScorer(job.sequence) for _ in trackers]
        seconds = [0.0] * len(trackers)
        for frame in job.sequence.frames():
            backend.next_frame()
            prompts = job.sequence.prompts(frame.index)
            for number, tracker in enumerate(trackers):
                if frame.index == 0:
                    mask = tracker.start(frame.image, prompts).mask
                else:
                    begin = time.perf_counter()
                    mask = tracker.step(frame.image).mask
                    seconds[number] += time.perf_counter() - begin
                    # The time of the encoding counts for every setting, also where its features were cached.
                    seconds[number] += 0.0 if backend.computed else backend.seconds
                    if prompts:
                        tracker.add(prompts)
                scorers[number].add(mask)
            frame_done()
    finally:
        backend.close()
    frames = len(job.sequence)
    return [
        SequenceScore(scorer.scores(), frames, spent, frames - 1)
        for scorer, spent in zip(scorers, seconds, strict=True)
    ]


def best_trial(trials: Sequence[Trial], max_seconds: float) -> Trial:
    """Return the highest J&F among trials of at most `max_seconds` per frame (0: any); of equal trials the fastest.

    Return the fastest of all trials where none is fast enough.
    """
    fast = [trial for trial in trials if not max_seconds or trial.seconds <= max_seconds]
    if not fast:
        return min(trials, key=lambda trial: trial.seconds)
    return max(fast, key=lambda trial: (trial.j_and_f, -trial.seconds))


def pareto(trials: Iterable[Trial]) -> list[Trial]:
    """Return the Pareto front of J&F and time, fastest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.seconds, -trial.j_and_f)):
        if not front or trial.j_and_f > front[-1].j_and_f:
            front.append(trial)
    return front


def search_table(trials: Iterable[Trial], chosen: Trial, title: str) -> Table:
    """Build a table with one row per trial, best first; the chosen trial and the Pareto front are marked."""
    table = Table(title=title)
    for name in ("short_side", "references", "radius", "top_k", "temperature", "J", "F", "J&F", "s/frame", ""):
        table.add_column(name, justify="right", no_wrap=True)
    trials = list(trials)
    front = pareto(trials)
    for trial in sorted(trials, key=lambda trial: -trial.j_and_f):
        settings = trial.settings
        marks = [mark for mark, marked in (("chosen", trial is chosen), ("pareto", trial in front)) if marked]
        table.add_row(
            str(settings.short_side or "own"),
            f"{len(settings.permanent_frames)}+{len(settings.recent_offsets)}",
            str(settings.radius[0]),
            str(settings.top_k or "all"),
            f"{settings.temperature:g}",
            *(f"{100 * trial.scores[name]:.1f}" for name in ("J", "F", "J&F")),
            f"{trial.seconds:.3f}",
            ", ".join(marks),
        )
    return table


def search_space(options: SearchOptions) -> SearchSpace:
    """Parse the lists of values. Raises InputError for text that is no number."""

    def values(name: str, kind: Callable[[str], N], expected: str) -> tuple[N, ...]:
        text = getattr(options, name)
        try:
            return tuple(kind(part) for part in text.split(",") if part.strip())
        except ValueError as error:
            option = name.replace("_", "-")
            raise InputError(f"expected --{option} as {expected} with commas, got {text!r}") from error

    short_side, radius, memory_frames, top_k = (values(name, int, "whole numbers") for name in NAMES[:4])
    return SearchSpace(short_side, radius, memory_frames, top_k, values("temperature", float, "numbers"))


def run_search(options: SearchOptions) -> Trial:
    """Run corrflow-eval search: print the trials, write settings.json, search.json and the model of --write."""
    space = search_space(options)
    data = davis_data(options.root, options.split, options.year, options.resolution, options.sequence)
    artifact, start = model_settings(options.model, options.protocol)
    out, write, max_seconds = options.out, options.write, options.max_seconds
    if write is not None and out is None:
        raise InputError("expected --out with --write, for the settings of the new model")
    if write is not None and write.exists():
        raise InputError(f"expected a new folder for the model, got {write}, which exists; name another")
    if out is not None:
        prepare_folder(out)
    for name in NAMES:  # values out of range are reported before tracking starts
        for value in space.values(name):
            with_value(start, name, value)
    search = Search(data, artifact, options.workers, out, show_progress=True)
    chosen = (search.grid_search if options.grid else search.coordinate_search)(start, space, max_seconds)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    print_table(search_table(search.trials.values(), chosen, f"{data.name} {data.split}, {artifact.name}"))
    if max_seconds and chosen.seconds > max_seconds:
        console.print(f"note: no trial takes at most {max_seconds:g} s per frame; the fastest was chosen")
    if search.reused:
        console.print(f"{search.reused} results are from an earlier search with the same code, settings and data")
    if out is not None:
        path = out / "settings.json"
        write_file(path, json.dumps(asdict(chosen.settings), indent=2) + "\n")
        write_file(out / "search.json", json.dumps(_as_json(search, chosen, data), indent=1) + "\n")
        console.print(f"wrote {path} and {out / 'search.json'}", markup=False)
        if write is not None:
            _write_model(artifact, write, path)
            console.print(f"wrote {write}; next: corrflow-track VIDEO --model {write}", markup=False)
    return chosen


def _write_model(source: Path, target: Path, settings: Path) -> None:
    # The export command builds graphs with packages that this package must not import.
    command = [sys.executable, "-m", "corrflow.export.cli", "settings", str(source), str(target), str(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CorrflowError(f"cannot write {target}: {message.removeprefix('error: ')}")


def _as_json(search: Search, chosen: Trial, data: DataSet) -> dict[str, Any]:
    def as_values(trial: Trial) -> dict[str, Any]:
        return {"settings": asdict(trial.settings), **trial.scores, "seconds_per_frame": trial.seconds}

    return {
        "dataset": {"name": data.name, "root": data.root, "split": data.split},
        "sequences": [sequence.name for sequence in data.sequences],
        "program": program(),
        "chosen": as_values(chosen),
        "pareto": [as_values(trial) for trial in pareto(search.trials.values())],
        "tried": [as_values(trial) for trial in search.trials.values()],
    }


def _label(settings: TrackingSettings) -> str:
    """Return the settings as JSON text, from which the store derives a folder's name."""
    return json.dumps(asdict(settings), separators=(",", ":"))
