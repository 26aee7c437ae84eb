"""Track and score masks: methods times sequences, in parallel, going on where an earlier run stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.methods.methods import MaskPredictor, Predictions
from corrflow.evaluate.metrics.scorer import score_sequence
from corrflow.evaluate.reports.report import MaskReport, MethodReport, SequenceScore, with_official_decay
from corrflow.evaluate.reports.result_store import ResultFolder, program, result_key
from corrflow.evaluate.workers import frame_done, run_jobs
from corrflow.runtime.formats.mask_png import MaskFolderSink
from corrflow.runtime.types import Frame, FrameResult

logger = logging.getLogger("corrflow")

ALL_CORES = 0
"""As a number of threads, for `open_backend`."""


@dataclass(frozen=True)
class Method:
    """A way of making masks, under the name that reports show.

    protocol: name of the tracking protocol, None for what does not track with the tracker
    notes:    what a reader of the score has to know
    """

    label: str
    maker: MaskPredictor
    protocol: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """Sequences to score, and what to call them in a report."""

    name: str
    root: str
    split: str
    resolution: str
    sequences: tuple[MaskSequence, ...]


@dataclass(frozen=True)
class Job:
    """One method on one sequence; the unit of parallel work. masks: folder to write them to."""

    method: Method
    sequence: MaskSequence
    threads: int
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
    """Make and score the masks of every sequence with every method.

    workers: processes over sequences and methods; from 2 on each computes on one thread
    results: folder that keeps masks and scores; what it holds of an earlier run is used where nothing that a score
        depends on has changed
    fresh:   compute everything again

    Raises InputError for what is wrong with the data set, a method or the options, before anything is tracked where
    that can be known, and CorrflowError when a worker process dies.
    """
    described = {method.label: method.maker.describe() for method in methods}
    for sequence in data.sequences:
        _ = sequence.scored  # which raises for a sequence that cannot be scored
    store = None if results is None else ResultFolder(results)
    threads = 1 if workers > 1 else ALL_CORES
    jobs: list[Job] = []
    keys: dict[tuple[str, str], dict[str, Any]] = {}
    scores: dict[tuple[str, str], SequenceScore] = {}
    for sequence in data.sequences:
        for method in methods:
            at = method.label, sequence.name
            keeps = store if not isinstance(method.maker, Predictions) else None
            if keeps is not None:
                keys[at] = result_key(described[method.label], sequence)
                found, reason = keeps.load(*at, keys[at])
                if found is not None and not fresh:
                    scores[at] = found
                    continue
                if reason:
                    logger.info("%s on %s is computed again: %s", *at, reason)
            jobs.append(Job(method, sequence, threads, None if keeps is None else keeps.mask_folder(*at)))

    frames = sum(len(job.sequence) for job in jobs)
    for job, score in run_jobs(run_job, jobs, workers, frames, show_progress):
        at = job.method.label, job.sequence.name
        scores[at] = score
        if store is not None and at in keys:
            store.save(*at, keys[at], score)

    reported = []
    for method in methods:
        # Parallel jobs end in any order; the report has the split's.
        own = {sequence.name: scores[method.label, sequence.name] for sequence in data.sequences}
        if official_decay:
            own = {name: with_official_decay(score) for name, score in own.items()}
        masks = None if store is None else store.mask_folder(method.label)
        if isinstance(method.maker, Predictions):
            masks = method.maker.folder
        reported.append(MethodReport(method.label, method.protocol, described[method.label], own, masks, method.notes))
    return MaskReport(
        data.name, data.root, data.split, data.resolution, tuple(reported), program(), official_decay=official_decay
    )


def run_job(job: Job) -> SequenceScore:
    """Make masks, keep them where asked to, and score them; runs in a worker process."""
    spent: list[float] = []
    objects = score_sequence(job.sequence, _made(job, spent))
    return SequenceScore(objects, len(job.sequence), sum(spent) if spent else None, len(spent))


def _made(job: Job, spent: list[float]) -> Iterator[np.ndarray]:
    """The masks one by one, written to the job's folder; seconds are added to `spent`."""
    sink = None
    if job.masks is not None:
        sink = MaskFolderSink(job.masks)
        for old in job.masks.glob("*.png"):
            old.unlink()
    made = job.method.maker.masks(job.sequence, job.threads)
    for index, (path, item) in enumerate(zip(job.sequence.image_paths, made, strict=True)):
        if item.seconds is not None:
            spent.append(item.seconds)
        if sink is not None:
            sink.write(FrameResult(item.mask, (), Frame(np.zeros((1, 1, 3), np.uint8), index, 0.0, path.stem)))
        frame_done()
        yield item.mask


def reused_count(report: MaskReport) -> tuple[int, int]:
    """(scores taken from an earlier run, scores in all)."""
    every = [score for method in report.methods for score in method.sequences.values()]
    return sum(score.reused for score in every), len(every)
