"""Scores of many trackers on several data sets: trackers of one encoder process a sequence together.

Each frame is encoded once per working size, so a further setting costs its propagation alone, and memory does not grow
with the sequence. With a folder, the score of each method on each sequence is computed once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.evaluate.data_sets import set_folder
from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.masks import THREADS, DataSet
from corrflow.evaluate.methods.methods import FeatureExtractor, TrackerMethod
from corrflow.evaluate.metrics.scorer import SequenceScorer
from corrflow.evaluate.reports.report import SequenceScore
from corrflow.evaluate.reports.result_store import ResultStore, method_identity, result_key, sequence_hash
from corrflow.evaluate.workers import frame_done, run_jobs
from corrflow.runtime.backends.base import Backend, CpuBackend, Memory
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings

SetScores = Mapping[str, Mapping[str, SequenceScore]]
"""Scores of one method: by the data set's label, then by the sequence's name."""


@dataclass(frozen=True)
class MeasurementJob:
    """Several methods with one encoder on one sequence."""

    methods: tuple[TrackerMethod, ...]
    sequence: MaskSequence
    label: str


class SharedEncodings(CpuBackend):
    """Backend for several trackers of the same frames: each working size is encoded once per frame.

    computed:    the last `encode` computed its features, and did not return cached features
    cpu_seconds: CPU time in which these features were computed
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name, self.artifact = backend.name, backend.artifact
        self.supports_runtime_search_params = backend.supports_runtime_search_params
        self.supports_window_offsets, self.stride = backend.supports_window_offsets, backend.stride
        self._cache: dict[tuple[int, int], tuple[Any, float]] = {}
        self.cpu_seconds, self.computed = 0.0, False

    def next_frame(self) -> None:
        """Clear the cache."""
        self._cache.clear()

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> Any:
        size = working or (frame.shape[0], frame.shape[1])
        self.computed = size not in self._cache
        if self.computed:
            begin = time.process_time()
            features = self._backend.encode(frame, size)
            self._cache[size] = features, time.process_time() - begin
        features, self.cpu_seconds = self._cache[size]
        return features

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> Memory:
        return self._backend.new_memory(settings, num_channels, cells)

    def propagate(self, query: Any, memory: Any, plan: SearchPlan) -> np.ndarray:
        return self._backend.propagate(query, memory, plan)

    def close(self) -> None:
        self._backend.close()


class Measurements:
    """Scores of methods on data sets, each computed once; with a folder, they are cached there.

    methods: all measured methods, in the order of their measurement
    """

    def __init__(
        self, sets: Sequence[DataSet], workers: int = 1, results: Path | None = None, show_progress: bool = False
    ) -> None:
        for data in sets:
            for sequence in data.sequences:
                _ = sequence.scored  # raises for a sequence that cannot be scored
        self.sets = tuple(sets)
        self._workers, self._show = workers, show_progress
        self._stores = {data.label: results and ResultStore(set_folder(results, data)) for data in sets}
        self._hashes: dict[tuple[str, str], str] = {}
        self._scores: dict[TrackerMethod, dict[str, dict[str, SequenceScore]]] = {}

    @property
    def methods(self) -> list[TrackerMethod]:
        return list(self._scores)

    @property
    def reused(self) -> int:
        """Number of scores from an earlier run."""
        return sum(
            score.reused for by_set in self._scores.values() for scores in by_set.values() for score in scores.values()
        )

    def measure(self, methods: Iterable[TrackerMethod], label: str = "frames") -> list[SetScores]:
        """Measure methods, and return the scores of each; the label is for the progress bar."""
        requested = list(dict.fromkeys(methods))
        new = [method for method in requested if method not in self._scores]
        keys: dict[tuple[TrackerMethod, str, str], dict[str, Any]] = {}
        found: dict[tuple[TrackerMethod, str, str], SequenceScore] = {}
        jobs = []
        descriptions = {method: method.describe() for method in new}
        names = {method: _folder_name(descriptions[method]) for method in new}
        for data in self.sets:
            for sequence in data.sequences:
                missing: dict[FeatureExtractor, list[TrackerMethod]] = {}
                for method in new:
                    at = method, data.label, sequence.name
                    if (store := self._stores[data.label]) is not None:
                        keys[at] = result_key(descriptions[method], sequence, self._hash(data, sequence))
                        cached, _ = store.load(names[method], sequence.name, keys[at])
                        if cached is not None:
                            found[at] = cached
                            continue
                    missing.setdefault(method.encoder, []).append(method)
                jobs += [MeasurementJob(tuple(same), sequence, data.label) for same in missing.values()]
        frames = sum(len(job.sequence) for job in jobs)
        for job, scores in run_jobs(run_measurement, jobs, self._workers, frames, self._show, label):
            for method, score in zip(job.methods, scores, strict=True):
                at = method, job.label, job.sequence.name
                found[at] = score
                if (store := self._stores[job.label]) is not None:
                    store.save(names[method], job.sequence.name, keys[at], score)
        for method in new:
            self._scores[method] = {
                data.label: {sequence.name: found[method, data.label, sequence.name] for sequence in data.sequences}
                for data in self.sets
            }
        return [self._scores[method] for method in requested]

    def _hash(self, data: DataSet, sequence: MaskSequence) -> str:
        at = data.label, sequence.name
        if at not in self._hashes:
            self._hashes[at] = sequence_hash(sequence)
        return self._hashes[at]


def run_measurement(job: MeasurementJob) -> list[SequenceScore]:
    """Track and score a sequence with all methods together, frame by frame; runs in a worker process."""
    first = job.methods[0]
    backend = SharedEncodings(first.encoder.open(first.settings, THREADS))
    try:
        trackers = [method.tracker(backend) for method in job.methods]
        scorers = [SequenceScorer(job.sequence) for _ in trackers]
        seconds = [0.0] * len(trackers)
        for frame in job.sequence.frames():
            backend.next_frame()
            prompts = job.sequence.prompts(frame.index)
            for number, tracker in enumerate(trackers):
                if frame.index == 0:
                    mask = tracker.start(frame.image, prompts).mask
                else:
                    begin = time.process_time()
                    mask = tracker.step(frame.image).mask
                    seconds[number] += time.process_time() - begin
                    # The time of the encoding counts for every setting, also where its features were cached.
                    seconds[number] += 0.0 if backend.computed else backend.cpu_seconds
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


def _folder_name(description: dict[str, Any]) -> str:
    """Return a short name of a method, which differs where its description does."""
    text = json.dumps(method_identity(description), sort_keys=True)
    return f"{description.get('name', 'method')}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
