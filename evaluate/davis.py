"""Semi-supervised DAVIS: give the tracker the first frame's objects, score what it makes of the other frames."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress

from corrflow.evaluate.datasets import VOID, DavisSequence, open_davis
from corrflow.evaluate.metrics import ObjectScore, score_object
from corrflow.evaluate.report import DavisReport, MethodReport, SequenceScore, check_output, write_json
from corrflow.plugins.errors import CorrflowError, InputError

IDENTITY = "identity"
"""Label of the baseline that repeats the first mask: what a score is worth without any tracking."""

ALL_CORES = 0
"""As a number of threads, for `open_backend`."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One method on one sequence; the unit of parallel work. artifact_path is None for the identity baseline."""

    method: str
    artifact_path: Path | None
    sequence: DavisSequence
    rows: int | None
    threads: int


def evaluate_davis(
    root: Path | str,
    split: str,
    artifact_paths: Sequence[Path] = (),
    *,
    identity: bool = False,
    rows: int | None = None,
    workers: int = 1,
    sequence_names: Sequence[str] = (),
    year: str | None = None,
    resolution: str = "480p",
    output: Path | None = None,
    show_progress: bool = False,
) -> DavisReport:
    """Track and score every sequence of a split with every artifact, and with the identity baseline if asked for.

    artifact_paths: one method each, labelled by its name; none, or "bundled", means the bundled artifact
    rows: short side in pixels that the tracker shrinks frames to, 0 for the frame's own; None keeps each artifact's own
    workers: processes over sequences and methods; from 2 on each computes on one thread
    sequence_names: only these of the split; none means all
    output: file for the report as JSON, written in one step when everything is scored
    show_progress: draw a progress bar on standard error

    Raises InputError for what is wrong with the data set, an artifact or the options, before anything is tracked
    where that can be known, and CorrflowError when a worker process dies.
    """
    if workers < 1:
        raise InputError(f"expected at least 1 worker, got {workers}")
    if output is not None:
        check_output(output)
    sequences = _select(open_davis(root, split, year, resolution), sequence_names)
    methods: dict[str, tuple[Path | None, MethodReport]] = {**_open_methods(artifact_paths, rows)}
    if identity:
        methods[IDENTITY] = None, MethodReport(label=IDENTITY, artifact=None, settings=None, sequences={})

    threads = 1 if workers > 1 else ALL_CORES
    jobs = [
        Job(label, artifact_path, sequence, rows, threads)
        for sequence in sequences
        for label, (artifact_path, _) in methods.items()
    ]
    scores = {(job.method, job.sequence.name): score for job, score in run_jobs(jobs, workers, show_progress)}
    report = DavisReport(
        root=str(root),
        split=split,
        resolution=resolution,
        # Parallel jobs end in any order; the report has the split's.
        methods=tuple(
            dataclasses.replace(method, sequences={item.name: scores[label, item.name] for item in sequences})
            for label, (_, method) in methods.items()
        ),
    )
    if output is not None:
        write_json(report, output)
    return report


def track_sequence(
    sequence: DavisSequence, artifact_path: Path, rows: int | None, threads: int
) -> tuple[list[np.ndarray], float]:
    """Track the objects of the first frame through a sequence, on so many CPU threads (0: as many as there are cores).

    Returns the T masks, [H, W] uint8 of object ids, the first included, and the seconds that the tracker took for
    the T - 1 others, without reading files or starting the back end.
    """
    from corrflow.runtime.artifact import load_artifact
    from corrflow.runtime.backend import open_backend
    from corrflow.runtime.tracker import Tracker, with_settings

    artifact = load_artifact(artifact_path)
    backend = open_backend("auto", artifact, threads=threads)
    try:
        tracker = Tracker(backend, with_settings(artifact.settings, rows))
        frames = sequence.frames()
        masks = [tracker.start(next(frames).image, sequence.objects()).mask]
        seconds = 0.0
        for frame in frames:
            begin = time.perf_counter()
            tracks = tracker.step(frame.image)
            seconds += time.perf_counter() - begin
            masks.append(tracks.mask)
    finally:
        backend.close()
    return masks, seconds


def score_sequence(sequence: DavisSequence, masks: Sequence[np.ndarray]) -> dict[int, ObjectScore]:
    """Score every object of the first frame. Pixels that the annotation leaves void count for no object.

    masks: T of [H, W] uint8 with the object ids of the annotation, the first frame included
    """
    annotations = [sequence.annotation(index) for index in range(len(sequence))]
    # Void pixels belong to no object on either side; the official metrics mask them in the same way.
    counted = [np.where(truth == VOID, 0, mask) for truth, mask in zip(annotations, masks, strict=True)]
    return {
        object_id: score_object(
            (mask == object_id for mask in counted),
            (truth == object_id for truth in annotations),
        )
        for object_id in sequence.object_ids
    }


def run_job(job: Job) -> SequenceScore:
    """Track, then score; runs in a worker process."""
    if job.artifact_path is None:
        masks, seconds = [job.sequence.annotation(0)] * len(job.sequence), None
    else:
        masks, seconds = track_sequence(job.sequence, job.artifact_path, job.rows, job.threads)
    return SequenceScore(objects=score_sequence(job.sequence, masks), frames=len(job.sequence), seconds=seconds)


def run_jobs(jobs: Sequence[Job], workers: int, show_progress: bool = False) -> Iterator[tuple[Job, SequenceScore]]:
    """Every job with its score, in the order they end; the progress bar counts frames."""
    with Progress(console=Console(stderr=True), disable=not show_progress) as progress:
        task = progress.add_task("frames", total=sum(len(job.sequence) for job in jobs))
        for job, score in _in_processes(jobs, workers) if workers > 1 else _in_this_process(jobs):
            progress.advance(task, len(job.sequence))
            yield job, score


def _in_this_process(jobs: Sequence[Job]) -> Iterator[tuple[Job, SequenceScore]]:
    for job in jobs:
        yield job, run_job(job)


def _in_processes(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, SequenceScore]]:
    # Spawned, not forked: inference libraries start threads, and a fork would copy their locks.
    executor = ProcessPoolExecutor(
        max_workers=min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=cv2.setNumThreads,
        initargs=(1,),
    )
    try:
        pending = {executor.submit(run_job, job): job for job in jobs}
        for future in as_completed(pending):
            yield pending[future], future.result()
    except BrokenProcessPool as error:
        raise CorrflowError("a worker process died, most often for lack of memory; use fewer workers") from error
    finally:
        executor.shutdown(cancel_futures=True)


def _select(sequences: Sequence[DavisSequence], names: Sequence[str]) -> list[DavisSequence]:
    """The sequences of these names, or all, that are long enough to be scored."""
    known = [sequence.name for sequence in sequences]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InputError(f"expected sequences of the split ({', '.join(known)}), got {', '.join(unknown)}")
    chosen = [sequence for sequence in sequences if not names or sequence.name in names]
    for sequence in chosen:
        if len(sequence) < 3:
            raise InputError(
                f"expected at least 3 frames, as the first and the last are not scored, found {len(sequence)} in "
                f"sequence {sequence.name}; remove it from the split"
            )
    return chosen


def _open_methods(artifact_paths: Sequence[Path], rows: int | None) -> dict[str, tuple[Path, MethodReport]]:
    """Path and report without scores by label: the artifact's name, or its whole path where two share it.

    Every artifact is read here, so that a wrong one is known before anything is tracked.
    """
    from corrflow.runtime.artifact import artifact_path, load_artifact
    from corrflow.runtime.tracker import with_settings

    paths = [artifact_path(named) for named in artifact_paths or [None]]
    loaded = [(path, load_artifact(path)) for path in paths]
    names = [artifact.name for _, artifact in loaded] + [IDENTITY]
    methods = {}
    for path, artifact in loaded:
        label = artifact.name if names.count(artifact.name) == 1 else str(path.absolute())
        report = MethodReport(
            label=label,
            artifact={"path": str(path), "sha256": artifact.sha256, **artifact.description},
            settings=dataclasses.asdict(with_settings(artifact.settings, rows)),
            sequences={},
        )
        methods[label] = path, report
    return methods
