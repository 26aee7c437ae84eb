"""Prediction and scores of masks: every method on every sequence, in parallel, with cached results."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.methods.methods import MaskPredictor, Predictions
from corrflow.evaluate.metrics.scorer import score_sequence
from corrflow.evaluate.reports.report import MaskReport, MethodReport, SequenceScore, with_official_decay
from corrflow.evaluate.reports.result_store import ResultStore, program, result_key
from corrflow.evaluate.workers import frame_done, run_jobs
from corrflow.runtime.formats.mask_png import MaskFolderSink
from corrflow.runtime.types import Frame, FrameResult

logger = logging.getLogger("corrflow")

THREADS = 1
"""CPU threads of a job: the CPU time of one thread is the same on any machine's number of cores."""


@dataclass(frozen=True)
class Method:
    """Predictor of masks under the label of reports.

    protocol: name of the tracking protocol; None for a method without the tracker
    notes:    remarks for readers of the score
    """

    label: str
    predictor: MaskPredictor
    protocol: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """Sequences to score, and their names in reports.

    label:      name among several data sets; "" for a single one
    attributes: attributes by the recording's name
    """

    name: str
    root: str
    split: str
    resolution: str
    sequences: tuple[MaskSequence, ...]
    label: str = ""
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One method on one sequence: the unit of parallel work. masks: folder for the predicted masks, or None."""

    method: Method
    sequence: MaskSequence
    masks: Path | None


def evaluate_masks(
    data: DataSet,
    methods: Sequence[Method],
    *,
    workers: int = 1,
    results: Path | None = None,
    fresh: bool = False,
    official_decay: bool = False,
    show_progress: bool = False,
) -> MaskReport:
    """Predict and score the masks of every sequence with every method.

    workers:  processes over sequences and methods; from 2 on every process computes on one thread
    results:  folder that caches masks and scores; a cached score is valid until something that it depends on changes
    fresh:    ignore cached scores

    Raises InputError for invalid sequences, methods or options, as far as possible before tracking starts.
    Raises CorrflowError where a worker process dies.
    """
    descriptions = {method.label: method.predictor.describe() for method in methods}
    for sequence in data.sequences:
        _ = sequence.scored  # raises for a sequence that cannot be scored
    store = None if results is None else ResultStore(results)
    jobs: list[Job] = []
    keys: dict[tuple[str, str], dict[str, Any]] = {}
    scores: dict[tuple[str, str], SequenceScore] = {}
    for sequence in data.sequences:
        for method in methods:
            name = method.label, sequence.name
            masks = None
            if store is not None and not isinstance(method.predictor, Predictions):
                masks = store.mask_folder(*name)
                keys[name] = result_key(descriptions[method.label], sequence)
                cached, reason = store.load(*name, keys[name])
                if cached is not None and not fresh:
                    scores[name] = cached
                    continue
                if reason:
                    logger.info("%s on %s is computed again: %s", *name, reason)
            jobs.append(Job(method, sequence, masks))

    frames = sum(len(job.sequence) for job in jobs)
    for job, score in run_jobs(run_job, jobs, workers, frames, show_progress):
        name = job.method.label, job.sequence.name
        scores[name] = score
        if store is not None and name in keys:
            store.save(*name, keys[name], score)

    reports = []
    for method in methods:
        # Parallel jobs end in any order; reports have the split's order.
        sequences = {sequence.name: scores[method.label, sequence.name] for sequence in data.sequences}
        if official_decay:
            sequences = {name: with_official_decay(score) for name, score in sequences.items()}
        masks = None if store is None else store.mask_folder(method.label)
        if isinstance(method.predictor, Predictions):
            masks = method.predictor.folder
        description = descriptions[method.label]
        reports.append(MethodReport(method.label, method.protocol, description, sequences, masks, method.notes))
    return MaskReport(
        data.name, data.root, data.split, data.resolution, tuple(reports), program(), official_decay=official_decay
    )


def run_job(job: Job) -> SequenceScore:
    """Predict, write and score the masks of a job; runs in a worker process."""
    seconds: list[float] = []
    objects = score_sequence(job.sequence, _predicted_masks(job, seconds))
    return SequenceScore(objects, len(job.sequence), sum(seconds) if seconds else None, len(seconds))


def _predicted_masks(job: Job, seconds: list[float]) -> Iterator[np.ndarray]:
    """Yield the masks, write them to the job's folder, and append the CPU time of computed masks to `seconds`."""
    sink = None
    if job.masks is not None:
        sink = MaskFolderSink(job.masks)
        for old in job.masks.glob("*.png"):
            old.unlink()
    predictions = job.method.predictor.masks(job.sequence, THREADS)
    for index, (path, prediction) in enumerate(zip(job.sequence.image_paths, predictions, strict=True)):
        if prediction.cpu_seconds is not None:
            seconds.append(prediction.cpu_seconds)
        if sink is not None:
            frame = Frame(np.zeros((1, 1, 3), np.uint8), index, 0.0, path.stem)
            sink.write(FrameResult(prediction.mask, (), frame))
        frame_done()
        yield prediction.mask


def reused_count(report: MaskReport) -> tuple[int, int]:
    """Return the number of cached scores and the number of all scores."""
    scores = [score for method in report.methods for score in method.sequences.values()]
    return sum(score.reused for score in scores), len(scores)
