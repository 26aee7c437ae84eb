"""Processing of one item, from its source to its folder of results, which appears atomically."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corrflow.errors import InputError
from corrflow.output_paths import check_own_folder, file_sizes
from corrflow.runtime.batch.bidirectional import PassOptions, track_bidirectional
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.label_discovery import LabelSource, find_annotations
from corrflow.runtime.formats.background_writer import write_behind
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.frame_images import ImageWriter
from corrflow.runtime.formats.html_report import ReportSink
from corrflow.runtime.formats.label_summary import summary_record
from corrflow.runtime.formats.registry import FORMATS, open_sink
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.open_source import open_source

COMPLETION_RECORD = "item.json"
"""Last file of a finished item: the digest of its inputs, its number of frames and labels, and its files' sizes."""

OLD = "old"
"""Folder in the folder of incomplete results, for results that are being replaced."""


@dataclass(frozen=True)
class Job:
    """Settings of a batch, for every item.

    annotations: folder of annotations
    out:         folder of results
    staging:     folder of incomplete results, on the disk of `out`
    formats:     keys of FORMATS
    model:       text of the model and its settings, on which the results depend
    keep_passes: True to keep the propagation passes for a later run with further annotations
    names:       names of all items, because a file that is named after another item is not read
    is_strict:   True to refuse an item with a faulty label
    min_score:   least score of a predicted point or object in the annotations that is read
    with_frames: frames whose images are written, among WITH_FRAMES
    """

    annotations: Path
    out: Path
    staging: Path
    formats: tuple[str, ...]
    model: str
    keep_passes: bool = True
    names: tuple[str, ...] = ()
    is_strict: bool = False
    min_score: float = 0.0
    with_frames: str = "none"


@dataclass(frozen=True)
class ItemResult:
    """Finished item.

    labels: what was read and what was left out, see `summary_record`
    """

    frames: int
    labels: dict[str, Any]


def labels_of(job: Job, item: Item) -> LabelSource:
    """Return where the labels of an item may be."""
    names = [path.stem for path in item.images()] if item.source.is_dir() else None
    return LabelSource(
        item.labels or job.annotations,
        item.name,
        item.source,
        job.names,
        names,
        item.label_folder,
        job.is_strict,
        job.min_score,
    )


def input_digest(job: Job, item: Item) -> str:
    """Return the SHA-256 of the annotations' content, the source's names, sizes and times, the model and the formats.

    Raises InputError where the source or the annotations are missing.
    """
    settings = [sorted(job.formats), job.is_strict, job.min_score, job.with_frames]
    digest = hashlib.sha256(json.dumps([_video_digest(job, item), settings]).encode())
    try:
        for path in labels_of(job, item).files():
            digest.update(json.dumps([path.name, path.stat().st_size]).encode())
            digest.update(path.read_bytes())
    except OSError as error:
        raise InputError(f"expected to read {error.filename!r}, got an error ({error.strerror})") from error
    return digest.hexdigest()


def _video_digest(job: Job, item: Item) -> str:
    """Return the SHA-256 of the source's names, sizes and times, and the model. Raises InputError."""
    digest = hashlib.sha256(job.model.encode())
    try:
        files = sorted(item.source.iterdir()) if item.source.is_dir() else [item.source]
        for path in files:
            status = path.stat()
            digest.update(json.dumps([path.name, status.st_size, status.st_mtime_ns]).encode())
    except OSError as error:
        raise InputError(f"expected to read {error.filename!r}, got an error ({error.strerror})") from error
    return digest.hexdigest()


def finished_result(job: Job, item: Item) -> ItemResult | None:
    """Return the result of an item that was finished with the same inputs, else None."""
    try:
        record = json.loads((job.out / item.name / COMPLETION_RECORD).read_text())
        if record["input_digest"] != input_digest(job, item):
            return None
        return ItemResult(int(record["frames"]), dict(record["labels"]))
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None


def process_item(job: Job, item: Item, tracker: Tracker, report: Callable[[int, int | None], None]) -> ItemResult:
    """Track one item, and write its results.

    report: called with the frames done, and the announced number of frames or None

    Raises CorrflowError; an earlier result then stays as it is, and so does a folder of the user.
    """
    final = job.out / item.name
    check_own_folder(final, final / COMPLETION_RECORD)
    digest = input_digest(job, item)
    annotations = find_annotations(labels_of(job, item), lambda: _frame_size(item))
    staged, cache = job.staging / "results" / item.name, job.staging / "frames" / item.name
    for folder in (staged, cache):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        with open_source(str(item.source), job.is_strict) as source, ExitStack() as stack:
            sinks: list[Sink] = []
            images = ImageWriter(staged, job.formats, annotations.schema, item.name, item.source)

            def notes() -> list[str]:
                return [*annotations.notes, *source.notes]

            for name in job.formats:
                sinks.append(open_sink(name, staged / FORMATS[name].result, source, annotations.schema, notes))
                stack.callback(sinks[-1].close)
            write = stack.enter_context(write_behind(sinks))
            count = 0
            options = PassOptions(_video_digest(job, item), final, staged, job.keep_passes)
            results = track_bidirectional(source, tracker, annotations, cache, options)
            for result in stack.enter_context(closing(results)):
                write(result)
                if job.with_frames == "all" or (job.with_frames == "labelled" and _is_labelled(result)):
                    images.write(result.frame)
                count += 1
                report(count, source.frame_count)
        labels = summary_record(annotations, notes())  # a writer may add a note when it closes
        if job.with_frames == "suggested":
            _write_suggested(sinks, images, item)
        record = {"frames": count, "labels": labels, "input_digest": digest, "files": file_sizes(staged)}
        (staged / COMPLETION_RECORD).write_text(json.dumps(record) + "\n")
        check_own_folder(final, final / COMPLETION_RECORD)  # a user may have added a file since
        _publish(staged, final, job.staging / OLD / item.name)
    finally:
        for folder in (staged, cache):
            shutil.rmtree(folder, ignore_errors=True)
    return ItemResult(count, labels)


def _is_labelled(result: FrameResult) -> bool:
    return any(obj.is_annotation for obj in result.objects)


def _write_suggested(sinks: Sequence[Sink], images: ImageWriter, item: Item) -> None:
    """Write the images of the frames that the report suggests for labelling; they are known at the end alone."""
    wanted = {index for sink in sinks if isinstance(sink, ReportSink) for index in sink.suggested()}
    if not wanted:
        return
    with open_source(str(item.source)) as source:
        for frame in source:
            if frame.index in wanted:
                images.write(frame)
            if frame.index >= max(wanted):
                break


def _frame_size(item: Item) -> tuple[int, int]:
    """Return the (height, width) of the frames, which some annotations do not state."""
    with open_source(str(item.source)) as source:
        height, width = next(iter(source)).image.shape[:2]
    return height, width


def _publish(staged: Path, final: Path, old: Path) -> None:
    """Rename a complete folder to its final path. After a kill between two renames, `clean_staging` restores `old`."""
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        old.parent.mkdir(exist_ok=True)
        os.rename(final, old)
        os.rename(staged, final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(staged, final)


def clean_staging(staging: Path, out: Path) -> None:
    """Remove the folder of incomplete results of a stopped run. An earlier result whose successor is missing stays."""
    for old in (*staging.glob(f"{OLD}/*"), *staging.glob(f"*/{OLD}/*")):
        if not (out / old.name).exists():
            os.rename(old, out / old.name)
    shutil.rmtree(staging, ignore_errors=True)
