"""One item from its source to its folder of results, which appears whole or not at all."""

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
from corrflow.runtime.batch.bidirectional import PassPlaces, track_whole
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.label_discovery import label_files, read_labels
from corrflow.runtime.formats.background_writer import write_behind
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.registry import FORMATS, open_sink
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.video.open_source import open_source

RECEIPT = "item.json"
"""The last file of a finished item: what it was made from, and how many frames it has."""


@dataclass(frozen=True)
class Job:
    """What is done with every item.

    staging: where folders grow before they are whole; on the disk of `out`
    formats: keys of FORMATS
    model:   whatever else results depend on, in words
    keep_passes: for a later run with further labels
    """

    labels: Path
    out: Path
    staging: Path
    formats: tuple[str, ...]
    model: str
    keep_passes: bool = True


def fingerprint(job: Job, item: Item) -> str:
    """SHA-256 of what the results are made from: the labels' content, the source's names, sizes and times, the model.

    Raises InputError where the source or the labels are not there.
    """
    digest = hashlib.sha256(json.dumps([_video_and_model(job, item), sorted(job.formats)]).encode())
    try:
        for path in label_files(job.labels, item.name):
            digest.update(json.dumps([str(path.relative_to(job.labels)), path.stat().st_size]).encode())
            digest.update(path.read_bytes())
    except OSError as error:
        raise InputError(f"expected to read {error.filename!r}, got an error ({error.strerror})") from error
    return digest.hexdigest()


def _video_and_model(job: Job, item: Item) -> str:
    """What soft labels are made from beside a label. Raises InputError where the source is not there."""
    digest = hashlib.sha256(job.model.encode())
    try:
        files = sorted(item.source.iterdir()) if item.source.is_dir() else [item.source]
        for path in files:
            state = path.stat()
            digest.update(json.dumps([path.name, state.st_size, state.st_mtime_ns]).encode())
    except OSError as error:
        raise InputError(f"expected to read {error.filename!r}, got an error ({error.strerror})") from error
    return digest.hexdigest()


def finished_frames(job: Job, item: Item) -> int | None:
    """How many frames the item has where it was finished from the same labels, source and model; else None."""
    try:
        receipt = json.loads((job.out / item.name / RECEIPT).read_text())
        return int(receipt["frames"]) if receipt["made_from"] == fingerprint(job, item) else None
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None


def do_item(job: Job, item: Item, tracker: Tracker, report: Callable[[int, int | None], None]) -> int:
    """Track one item; returns its number of frames. report: frames done, and announced or None.

    Raises CorrflowError for what is wrong with it; nothing of it is kept then, and an older result stays.
    """
    made_from = fingerprint(job, item)
    labels = read_labels(job.labels, item.name, lambda: _frame_size(item))
    staged, spools = job.staging / "results" / item.name, job.staging / "spools" / item.name
    for folder in (staged, spools):
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
            places = PassPlaces(_video_and_model(job, item), job.out / item.name, staged, job.keep_passes)
            for result in stack.enter_context(closing(track_whole(source, tracker, labels, spools, places))):
                write(result)
                count += 1
                report(count, source.frame_count)
        (staged / RECEIPT).write_text(json.dumps({"frames": count, "made_from": made_from}) + "\n")
        _publish(staged, job.out / item.name, job.staging / "old" / item.name)
    finally:
        for folder in (staged, spools):
            shutil.rmtree(folder, ignore_errors=True)
    return count


def _frame_size(item: Item) -> tuple[int, int]:
    """(height, width), which some labels do not say."""
    with open_source(str(item.source)) as source:
        height, width = next(iter(source)).image.shape[:2]
    return height, width


def _publish(staged: Path, final: Path, old: Path) -> None:
    """Put a whole folder in its place; between the two renames a kill leaves no result, never half of one."""
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        old.parent.mkdir(exist_ok=True)
        os.rename(final, old)
        os.rename(staged, final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(staged, final)
