"""Body of corrflow-batch: items, workers, manifest, progress."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
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
from corrflow.output_paths import is_within
from corrflow.run_lock import lock_run
from corrflow.runtime.batch.inputs import Item, find_items, shard_numbers, shard_of
from corrflow.runtime.batch.label_report import check_labels, print_lines, print_unused
from corrflow.runtime.batch.manifest import Entry, Manifest
from corrflow.runtime.batch.process_item import Job, clean_staging, finished_result, labels_of
from corrflow.runtime.batch.projects import Project, find_project
from corrflow.runtime.batch.ray_workers import run_on_ray
from corrflow.runtime.batch.workers import run_workers
from corrflow.runtime.formats.frame_images import WITH_FRAMES
from corrflow.runtime.formats.label_summary import summary_lines
from corrflow.runtime.formats.registry import check_formats
from corrflow.runtime.tracking.model_options import ModelOptions

# Each worker has its own engines and memory there; one tracks while the other reads and writes files.
WORKERS_PER_GPU = 2

DEFAULT_FORMATS = ("davis", "jsonl", "report")


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """What corrflow-batch is asked to do; see its options.

    labels:  folder of labels, or one file with the labels of all videos; None for a project of another tool
    out:     folder of results; None for that of a project
    formats: formats of the results; () for those of a project, or DEFAULT_FORMATS
    """

    sources: Sequence[str]
    labels: Path | None
    out: Path | None
    formats: Sequence[str] = ()
    workers: int = 0
    shard: str = "1/1"
    keep_passes: bool = True
    on_ray: bool = False
    gpus: int = 0
    is_strict: bool = False
    min_score: float = 0.0
    with_frames: str = ""

    def check(self) -> None:
        """Raise InputError for a value that cannot be used."""
        check_formats(self.formats)
        if self.labels is not None and not self.labels.exists():
            raise InputError(
                f"expected a folder of labels, got {str(self.labels)!r}, which does not exist; check --labels"
            )
        if self.workers < 0:
            raise InputError(f"expected --workers of 0 or more, got {self.workers}")
        if self.gpus < 0:
            raise InputError(f"expected --gpus of 0 or more, got {self.gpus}")
        if self.with_frames and self.with_frames not in WITH_FRAMES:
            raise InputError(f"expected --with-frames among {', '.join(WITH_FRAMES)}, got {self.with_frames!r}")


@dataclass(frozen=True)
class _Batch:
    """Request with every place known.

    passed_over: a line for each folder with something that is no item
    project:     project of another tool, which may take the results further
    """

    all_items: Sequence[Item]
    labels: Path
    out: Path
    formats: tuple[str, ...]
    with_frames: str
    passed_over: Sequence[str]
    project: Project | None = None


def _resolved(request: BatchRequest, needs_out: bool) -> _Batch:
    """Return the items, and the places of labels and results, of a request or of its project. Raises InputError."""
    passed_over: list[str] = []
    project = None
    if request.labels is None:
        if len(request.sources) != 1 or (project := find_project(Path(request.sources[0]).expanduser())) is None:
            raise InputError(
                "expected --labels, or a project of DeepLabCut, SLEAP, CVAT, YOLO or LabelMe as the only source, got "
                "neither; name the folder of labels"
            )
        passed_over += [f"{request.sources[0]}: a project of {project.tool}", *project.notes]
    items = find_items(request.sources, passed_over) if project is None else project.items
    out = request.out or (project.out if project else None)
    if out is None and needs_out:
        raise InputError("expected --out for the results, got none; name a folder, or check the labels with --dry-run")
    with_frames = request.with_frames or (project.with_frames if project else "none")
    formats = [*(request.formats or (project.formats if project else DEFAULT_FORMATS))]
    formats += ["report"] if with_frames == "suggested" else []
    labels = request.labels or Path(request.sources[0])
    return _Batch(items, labels, out or Path(), tuple(dict.fromkeys(formats)), with_frames, passed_over, project)


def run_batch(request: BatchRequest, options: ModelOptions) -> None:
    """Process a batch. Raises InputError before any tracking, and CorrflowError at the end if items failed."""
    request.check()
    batch = _resolved(request, needs_out=True)
    items = shard_of(batch.all_items, request.shard)
    annotations, out = batch.labels, batch.out
    _check_apart(items, annotations, out)
    model_text, default_workers = _check_model(options)
    index, total = shard_numbers(request.shard)
    suffix = "" if total == 1 else f"-{index}-of-{total}"
    console = Console(stderr=True)
    print_lines(console, batch.passed_over)
    try:
        out.mkdir(parents=True, exist_ok=True)
        staging = out / f".staging{suffix}"
        with lock_run(out / f".lock{suffix}"):
            clean_staging(staging, out)
            staging.mkdir()
            job = Job(
                annotations.absolute(),
                out.absolute(),
                staging.absolute(),
                batch.formats,
                model_text,
                request.keep_passes,
                tuple(item.name for item in batch.all_items),
                request.is_strict,
                request.min_score,
                batch.with_frames,
            )
            manifest = Manifest(out / f"manifest{suffix}.json", [Entry(item.name, str(item.source)) for item in items])
            try:
                workers = request.workers or request.gpus or default_workers
                _process_all(job, options, items, workers, request.on_ray, request.gpus, manifest, console)
            finally:
                _set_aside(job, items, manifest)
                manifest.write()
                clean_staging(staging, out)
    except OSError as error:
        raise InputError(f"expected to write to {str(out)!r}, got an error ({error.strerror})") from error
    if batch.project is not None and batch.project.finish is not None:
        # Those of other shards and earlier runs as well.
        print_lines(console, batch.project.finish(out, [item.name for item in batch.all_items]))
    read = [file["path"] for entry in manifest.entries.values() for file in entry.labels.get("files", [])]
    if request.labels is not None and total == 1 and all(entry.state == "done" for entry in manifest.entries.values()):
        print_unused(console, annotations.absolute(), items, read)
    failed = [entry for entry in manifest.entries.values() if entry.state == "failed"]
    for entry in failed:
        print(f"failed {entry.name}: {entry.reason}", file=sys.stderr)
    if failed:
        raise CorrflowError(
            f"{len(failed)} of {len(items)} items failed; {manifest.path} has the reasons; "
            "give the same command again for those alone"
        )


def run_dry(request: BatchRequest) -> None:
    """Print what is read of the labels of every video, and what is left out. Nothing is tracked or written.

    Raises InputError for a value that cannot be used, and CorrflowError if the labels of a video cannot be.
    """
    request.check()
    batch, console = _resolved(request, needs_out=False), Console()
    items = shard_of(batch.all_items, request.shard)
    print_lines(console, batch.passed_over)
    names = tuple(item.name for item in batch.all_items)
    failed, read = 0, list[str]()
    for item in items:
        job = Job(batch.labels.absolute(), Path(), Path(), (), "", False, names, request.is_strict, request.min_score)
        try:
            annotations = check_labels(labels_of(job, item))
            read += [str(file.path) for file in annotations.files]
            print_lines(console, summary_lines(item.name, annotations))
        except CorrflowError as error:
            failed += 1
            print_lines(console, [f"{item.name}: failed: {error}"])
    if request.labels is not None:
        print_unused(console, request.labels.absolute(), items, read)
    if failed:
        raise CorrflowError(f"the labels of {failed} of {len(items)} videos cannot be used; see above")


def _check_apart(items: Sequence[Item], annotations: Path, out: Path) -> None:
    """Raise InputError where results would mix with the sources or the labels."""
    if inside := [item for item in items if is_within(item.source, out)]:
        raise InputError(f"expected results apart from the sources, got {str(inside[0].source)!r} in --out")
    if is_within(annotations, out) and is_within(out, annotations):
        raise InputError(f"expected results apart from the labels, got {str(out)!r} for both; name another --out")
    for item in items:
        if is_within(annotations, out / item.name) or is_within(out, annotations / item.name):
            raise InputError(
                f"expected results apart from the labels, got {str(out)!r} for --out and {str(annotations)!r} for "
                f"--labels, which meet for {item.name!r}; name another --out"
            )


def _set_aside(job: Job, items: Sequence[Item], manifest: Manifest) -> None:
    """Give the items that a signal interrupted the state that a later run finds them in."""
    for item in items:
        if manifest.entries[item.name].state == "running":
            result = finished_result(job, item)
            if result is None:
                manifest.set(item.name, "pending", reason="interrupted; give the same command again")
            else:
                manifest.set(item.name, "done", result.frames, labels=result.labels)


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
        result = finished_result(job, item)
        if result is None:
            to_do.append(item)
        else:
            manifest.set(item.name, "done", result.frames, labels=result.labels)
    start = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bars, ExitStack() as stack:
        total = bars.add_task("all items", total=len(items), completed=len(items) - len(to_do))
        files: dict[str, TaskID] = {}
        events = stack.enter_context(closing(run(job, options, to_do, workers, gpus)))
        for event in events:
            name = event.item.name
            if event.kind == "started":
                manifest.set(name, "running")
                if name not in files:
                    files[name] = bars.add_task(name, total=None)
            elif event.kind == "frames":
                bars.update(files[name], completed=event.frames, total=event.announced)
            else:
                manifest.set(name, event.kind, event.frames, event.reason, event.labels)
                print_lines(console, [f"{name}: {note}" for note in event.labels.get("notes", [])])
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
