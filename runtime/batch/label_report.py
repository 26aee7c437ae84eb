"""Report of the labels in the terminal, before and after tracking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.label_discovery import LabelSource, find_annotations, unused_labels
from corrflow.runtime.formats.annotations import Annotations
from corrflow.runtime.video.open_source import open_source


def check_labels(labels: LabelSource) -> Annotations:
    """Read the labels of a video, and leave out those that do not fit its frames, without decoding all of them.

    Raises InputError for a video or labels that cannot be used, or without a label that fits.
    """
    with open_source(str(labels.source)) as source:
        first, count = next(iter(source)), source.frame_count
    height, width = first.image.shape[:2]
    annotations = find_annotations(labels, lambda: (height, width))
    for index, objects in annotations.objects.items():
        if index < first.index:
            reason = f"frame {first.index} is the first of the video that can be decoded"
            for packed in objects:
                annotations.leave_out(packed, index, reason)
        elif count is not None and index >= count:
            for packed in objects:
                annotations.leave_out(packed, index, f"the video states {count} frames, which count from 0")
        else:
            annotations.usable_on(replace(first, index=index))
    return annotations


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are: long ones are not cut, and brackets are no markup."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_unused(console: Console, place: Path, items: Sequence[Item], read: Sequence[str]) -> None:
    """Print the labels that no video uses, such as a file with a misspelt name."""
    if unused := unused_labels(place, [item.name for item in items], read):
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        print_lines(console, [f"not used in {place}: {', '.join(unused[:5])}{more}; no video has that name"])
