"""Processing of one item, from its source to its folder of results, which appears atomically."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.batch.bidirectional import PassOptions, track_bidirectional
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.label_discovery import annotation_files, find_annotations
from corrflow.runtime.formats.background_writer import write_behind
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.registry import FORMATS, open_sink
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.video.open_source import open_source

COMPLETION_RECORD = "item.json"
"""Last file of a finished item: the digest of its inputs, and its number of frames."""


@dataclass(frozen=True)
class Job:
    """Settings of a batch, for every item.

    annotations: folder of annotations
    out:         folder of results
    staging:     folder of incomplete results, on the disk of `out`
    formats:     keys of FORMATS
    model:       text of the model and its settings, on which the results depend
    keep_passes: True to keep the propagation passes for a later run with further annotations
    """

    annotations: Path
    out: Path
    staging: Path
    formats: tuple[str, ...]
    model: str
    keep_passes: bool = True


def input_digest(job: Job, item: Item) -> str:
    """Return the SHA-256 of the annotations' content, the source's names, sizes and times, the model and the formats.

    Raises InputError where the source or the annotations are missing.
    """
    digest = hashlib.sha256(json.dumps([_video_digest(job, item), sorted(job.formats)]).encode())
    try:
        for path in annotation_files(job.annotations, item.name):
            digest.update(json.dumps([str(path.relative_to(job.annotations)), path.stat().st_size]).encode())
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


def finished_frames(job: Job, item: Item) -> int | None:
    """Return the number of frames of an item that was finished with the same inputs, else None."""
    try:
        record = json.loads((job.out / item.name / COMPLETION_RECORD).read_text())
        return int(record["frames"]) if record["input_digest"] == input_digest(job, item) else None
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None


def process_item(job: Job, item: Item, tracker: Tracker, report: Callable[[int, int | None], None]) -> int:
    """Track one item, write its results, and return its number of frames.

    report: called with the frames done, and the announced number of frames or None

    Raises CorrflowError; an earlier result then stays as it is.
    """
    digest = input_digest(job, item)
    annotations = find_annotations(job.annotations, item.name, lambda: _frame_size(item))
    staged, cache = job.staging / "results" / item.name, job.staging / "frames" / item.name
    for folder in (staged, cache):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        with open_source(str(item.source)) as source, ExitStack() as stack:
            sinks: list[Sink] = []
            for name in job.formats:
                sinks.append(open_sink(name, staged / FORMATS[name].result, source))
                stack.callback(sinks[-1].close)
            write = stack.enter_context(write_behind(sinks))
            count = 0
            options = PassOptions(_video_digest(job, item), job.out / item.name, staged, job.keep_passes)
            results = track_bidirectional(source, tracker, annotations, cache, options)
            for result in stack.enter_context(closing(results)):
                write(result)
                count += 1
                report(count, source.frame_count)
        (staged / COMPLETION_RECORD).write_text(json.dumps({"frames": count, "input_digest": digest}) + "\n")
        _publish(staged, job.out / item.name, job.staging / "old" / item.name)
    finally:
        for folder in (staged, cache):
            shutil.rmtree(folder, ignore_errors=True)
    return count


def _frame_size(item: Item) -> tuple[int, int]:
    """Return the (height, width) of the frames, which some annotations do not state."""
    with open_source(str(item.source)) as source:
        height, width = next(iter(source)).image.shape[:2]
    return height, width


def _publish(staged: Path, final: Path, old: Path) -> None:
    """Rename a complete folder to its final path. A kill between two renames leaves no result, never a part of one."""
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        old.parent.mkdir(exist_ok=True)
        os.rename(final, old)
        os.rename(staged, final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(staged, final)
