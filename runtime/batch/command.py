"""Body of corrflow-batch: items, workers, manifest, progress."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from corrflow.errors import CorrflowError, InputError
from corrflow.run_lock import lock_run
from corrflow.runtime.batch.inputs import Item, find_items, shard_numbers, shard_of
from corrflow.runtime.batch.manifest import Entry, Manifest
from corrflow.runtime.batch.process_item import Job, finished_frames
from corrflow.runtime.batch.ray_workers import run_on_ray
from corrflow.runtime.batch.workers import run_workers
from corrflow.runtime.formats.registry import check_formats
from corrflow.runtime.tracking.model_options import ModelOptions

# Each worker has its own engines and memory there; one tracks while the other reads and writes files.
WORKERS_PER_GPU = 2


def run_batch(
    sources: Sequence[str],
    annotations: Path,
    out: Path,
    formats: Sequence[str],
    workers: int,
    shard: str,
    options: ModelOptions,
    keep_passes: bool = True,
    on_ray: bool = False,
    gpus: int = 0,
) -> None:
    """Process a batch. Raises InputError before any tracking, and CorrflowError at the end if items failed."""
    check_formats(formats)
    if not annotations.is_dir():
        raise InputError(f"expected a folder of labels, got {str(annotations)!r}, which is none; check --labels")
    if workers < 0:
        raise InputError(f"expected --workers of 0 or more, got {workers}")
    if gpus < 0:
        raise InputError(f"expected --gpus of 0 or more, got {gpus}")
    items = shard_of(find_items(sources), shard)
    if inside := [item for item in items if item.source.is_relative_to(out.absolute())]:
        raise InputError(f"expected results apart from the sources, got {str(inside[0].source)!r} in --out")
    model_text, default_workers = _check_model(options)
    index, total = shard_numbers(shard)
    suffix = "" if total == 1 else f"-{index}-of-{total}"
    console = Console(stderr=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        staging = out / f".staging{suffix}"
        with lock_run(out / f".lock{suffix}"):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            unique = tuple(dict.fromkeys(formats))
            job = Job(annotations.absolute(), out.absolute(), staging.absolute(), unique, model_text, keep_passes)
            manifest = Manifest(out / f"manifest{suffix}.json", [Entry(item.name, str(item.source)) for item in items])
            try:
                _process_all(job, options, items, workers or gpus or default_workers, on_ray, gpus, manifest, console)
            finally:
                manifest.write()
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise InputError(f"expected to write to {str(out)!r}, got an error ({error.strerror})") from error
    failed = [entry for entry in manifest.entries.values() if entry.state == "failed"]
    for entry in failed:
        print(f"failed {entry.name}: {entry.reason}", file=sys.stderr)
    if failed:
        raise CorrflowError(
            f"{len(failed)} of {len(items)} items failed; {manifest.path} has the reasons; "
            "give the same command again for those alone"
        )


def _process_all(
    job: Job, options: ModelOptions, items: Sequence[Item], workers: int, on_ray: bool, gpus: int, manifest: Manifest,
    console: Console,
) -> None:  # fmt: skip
    """Process the items that are not finished, and show the progress."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if on_ray:
        run, threads = run_on_ray, options.threads or 1
    else:
        run, workers = run_workers, workers or cores
        threads = options.threads or max(1, cores // workers)
    options = replace(options, threads=threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))  # for the workers' numerical libraries
    to_do = []
    for item in items:
        frames = finished_frames(job, item)
        if frames is None:
            to_do.append(item)
        else:
            manifest.set(item.name, "done", frames)
    start = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bars:
        total = bars.add_task("all items", total=len(items), completed=len(items) - len(to_do))
        files: dict[str, TaskID] = {}
        for event in run(job, options, to_do, workers, gpus):
            name = event.item.name
            if event.kind == "started":
                manifest.set(name, "running")
                if name not in files:
                    files[name] = bars.add_task(name, total=None)
            elif event.kind == "frames":
                bars.update(files[name], completed=event.frames, total=event.announced)
            else:
                manifest.set(name, event.kind, event.frames, event.reason)
                bars.remove_task(files.pop(name))
                bars.advance(total)
    done, failed = manifest.count("done"), manifest.count("failed")
    frames = sum(manifest.entries[item.name].frames for item in to_do)
    seconds = time.perf_counter() - start
    console.print(
        f"{done} done ({len(items) - len(to_do)} before), {failed} failed; {frames} frames in {seconds:.1f} s "
        f"with {workers or 'all'} workers",
        highlight=False,
        soft_wrap=True,
    )


def _check_model(options: ModelOptions) -> tuple[str, int]:
    """Return the model and its settings as text, and the number of workers that suits the backend; 0: one a core.

    Raises InputError for options that every worker would refuse.
    """
    with replace(options, threads=options.threads or 1).open() as tracker:
        backend = tracker.backend
        text = f"{backend.artifact.sha256} {tracker.settings} {tracker.occlusion} {backend.name}"
        return text, WORKERS_PER_GPU if backend.device_frames else 0
