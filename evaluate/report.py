"""Scores of several methods on one split: their means, the table for people and the JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from corrflow.evaluate.metrics import ObjectScore
from corrflow.plugins.errors import InputError

REPORT_VERSION = 1


@dataclass(frozen=True)
class SequenceScore:
    """One method on one sequence.

    objects: scores by object id
    frames:  length of the sequence; the tracker is given the first
    seconds: what the tracker took for the other frames, without reading files; None where nothing was tracked
    """

    objects: dict[int, ObjectScore]
    frames: int
    seconds: float | None


@dataclass(frozen=True)
class MethodReport:
    """One method on every sequence.

    artifact:  its path, sha256 and description; None for the identity baseline
    settings:  the tracking settings that were used; None for the identity baseline
    sequences: scores by the sequence's name
    """

    label: str
    artifact: dict[str, Any] | None
    settings: dict[str, Any] | None
    sequences: dict[str, SequenceScore]


@dataclass(frozen=True)
class DavisReport:
    """Every method on one split, all of them on the same sequences."""

    root: str
    split: str
    resolution: str
    methods: tuple[MethodReport, ...]


def mean_scores(sequences: Iterable[SequenceScore]) -> dict[str, float]:
    """J, F and J&F as means over all objects of these sequences, not over the sequences: each 0..1."""
    objects = [score for sequence in sequences for score in sequence.objects.values()]
    region = float(np.mean([score.region.mean for score in objects]))
    contour = float(np.mean([score.contour.mean for score in objects]))
    return {"J": region, "F": contour, "J&F": (region + contour) / 2}


def seconds_per_frame(sequences: Iterable[SequenceScore]) -> float | None:
    """Mean over the tracked frames of these sequences; None where nothing was tracked."""
    timed = [(sequence.seconds, sequence.frames - 1) for sequence in sequences if sequence.seconds is not None]
    return sum(seconds for seconds, _ in timed) / sum(frames for _, frames in timed) if timed else None


def davis_table(report: DavisReport) -> Table:
    """One row per sequence and one for the mean over objects; J, F, J&F in percent and the time for every method."""
    table = Table(title=f"DAVIS {report.split}, {report.resolution}")
    table.add_column("sequence", no_wrap=True)
    for method in report.methods:
        for first, measure in enumerate(("J", "F", "J&F", "s/frame")):
            label = method.label if first == 0 else ""
            table.add_column(Text(f"{label}\n{measure}"), justify="right", no_wrap=True)

    for name in report.methods[0].sequences:
        table.add_row(Text(name), *_cells(report, lambda method, name=name: [method.sequences[name]]))
    table.add_section()
    objects = sum(len(sequence.objects) for sequence in report.methods[0].sequences.values())
    table.add_row(f"mean of {objects} objects", *_cells(report, lambda method: list(method.sequences.values())))
    return table


def print_davis_table(report: DavisReport) -> None:
    """Print the table, in its full width where the output is not a terminal."""
    console, table = Console(), davis_table(report)
    if not console.is_terminal:
        console.width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.print(table)


def as_json(report: DavisReport) -> dict[str, Any]:
    """The report as JSON values: every object's mean, recall and decay of J and of F, each 0..1 (decay -1..1)."""
    return {
        "version": REPORT_VERSION,
        "dataset": {"root": report.root, "split": report.split, "resolution": report.resolution},
        "methods": [
            {
                "label": method.label,
                "artifact": method.artifact,
                "settings": method.settings,
                "mean_over_objects": mean_scores(method.sequences.values()),
                "seconds_per_frame": seconds_per_frame(method.sequences.values()),
                "sequences": {
                    name: {
                        "frames": sequence.frames,
                        "seconds_per_frame": seconds_per_frame([sequence]),
                        "objects": {
                            str(object_id): {"J": asdict(score.region), "F": asdict(score.contour)}
                            for object_id, score in sequence.objects.items()
                        },
                    }
                    for name, sequence in method.sequences.items()
                },
            }
            for method in report.methods
        ],
    }


def check_output(path: Path) -> None:
    """Raise InputError where no file can be made at `path`, so that it is known before the work is done."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"expected a file in a folder that can be written to, got {path}; make the folder first")


def write_json(report: DavisReport, path: Path) -> None:
    """Write the report in one step: the file is the old one or the whole new one, never a part."""
    text = json.dumps(as_json(report), indent=2, default=str) + "\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _cells(report: DavisReport, choose: Callable[[MethodReport], list[SequenceScore]]) -> list[str]:
    cells = []
    for method in report.methods:
        chosen = choose(method)
        seconds = seconds_per_frame(chosen)
        cells += [f"{100 * value:.1f}" for value in mean_scores(chosen).values()]
        cells.append("" if seconds is None else f"{seconds:.3f}")
    return cells
