"""Scores of several methods on one data set: means, a table for the terminal, JSON and CSV."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from corrflow.atomic_files import write_file
from corrflow.evaluate.metrics.masks import ObjectScore, object_score
from corrflow.evaluate.reports.files import file_name

REPORT_VERSION = 2
MAX_TABLE_METHODS = 3
"""Largest number of methods that a table shows side by side."""


@dataclass(frozen=True)
class SequenceScore:
    """Score of one method on one sequence.

    objects: scores by object id
    frames:  length of the sequence
    seconds: time of the `tracked` frames, without reading files; None where nothing was computed
    reused:  the score is from an earlier run
    """

    objects: dict[int, ObjectScore]
    frames: int
    seconds: float | None
    tracked: int
    reused: bool = False


@dataclass(frozen=True)
class MethodReport:
    """Scores of one method on every sequence.

    protocol:    name of the tracking protocol; None for a method without the tracker
    description: JSON values of `MaskPredictor.describe`, with hashes and settings
    sequences:   scores by the sequence's name
    masks:       folder of the masks <sequence>/<frame>.png; None where masks were not written
    notes:       remarks for readers of the score
    """

    label: str
    protocol: str | None
    description: dict[str, Any]
    sequences: dict[str, SequenceScore]
    masks: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskReport:
    """Scores of all methods on the same sequences of one data set.

    dataset:        "DAVIS" or "YouTube-VOS", whose rule selects the scored frames and objects
    program:        hash of corrflow's code, versions of the libraries
    official_decay: decays repeat the official code's overflow past 256 frames
    """

    dataset: str
    root: str
    split: str
    resolution: str
    methods: tuple[MethodReport, ...]
    program: dict[str, str]
    official_decay: bool = False

    @property
    def title(self) -> str:
        return " ".join(part for part in (self.dataset, self.split, self.resolution) if part)


def with_official_decay(score: SequenceScore) -> SequenceScore:
    """Return the scores with the decays of the official code, which overflow past 256 frames."""
    objects = {
        object_id: object_score(item.frames.tolist(), item.region_similarity, item.contour_accuracy, True)
        for object_id, item in score.objects.items()
    }
    return replace(score, objects=objects)


def mean_scores(sequences: Iterable[SequenceScore]) -> dict[str, float]:
    """Return J, F and J&F, 0..1, as means over all objects of these sequences (not over the sequences)."""
    objects = [score for sequence in sequences for score in sequence.objects.values()]
    region = float(np.mean([score.region.mean for score in objects]))
    contour = float(np.mean([score.contour.mean for score in objects]))
    return {"J": region, "F": contour, "J&F": (region + contour) / 2}


def seconds_per_frame(sequences: Iterable[SequenceScore]) -> float | None:
    """Return the mean over the tracked frames of these sequences; None where nothing was tracked."""
    timed = [(item.seconds, item.tracked) for item in sequences if item.seconds is not None and item.tracked]
    return sum(seconds for seconds, _ in timed) / sum(frames for _, frames in timed) if timed else None


def mask_table(report: MaskReport) -> Table:
    """Build the table of J, F, J&F in percent and seconds per frame; the last row has the means over objects."""
    methods = {method.label: list(method.sequences.values()) for method in report.methods}
    first = report.methods[0].sequences
    return score_table(
        report.title,
        ("sequence", *first, f"mean of {sum(len(score.objects) for score in first.values())} objects"),
        ("J", "F", "J&F", "s/frame"),
        {label: [*(_cells([score]) for score in scores), _cells(scores)] for label, scores in methods.items()},
    )


def _cells(scores: Sequence[SequenceScore]) -> list[str]:
    means, seconds = mean_scores(scores), seconds_per_frame(scores)
    return [*(f"{100 * value:.1f}" for value in means.values()), "" if seconds is None else f"{seconds:.3f}"]


def score_table(
    title: str, names: Sequence[str], measures: Sequence[str], cells: Mapping[str, Sequence[Sequence[str]]]
) -> Table:
    """Build a table with a row for each video and columns for each method.

    With more than `MAX_TABLE_METHODS` methods the table has a row for each method, with the means alone.

    names:  title of the first column, then the V videos, then the row of means
    cells:  text of each measure, [V + 1][measure], by the method's label
    """
    heading, *videos, mean = names
    table = Table(title=title)
    if len(cells) > MAX_TABLE_METHODS:
        table.add_column(mean, no_wrap=True)
        for measure in measures:
            table.add_column(measure, justify="right", no_wrap=True)
        for label, rows in cells.items():
            table.add_row(Text(label), *rows[-1])
        return table
    table.add_column(heading, no_wrap=True)
    for label in cells:
        for index, measure in enumerate(measures):
            table.add_column(Text(f"{'' if index else label}\n{measure}"), justify="right", no_wrap=True)
    for index, name in enumerate((*videos, mean)):
        if index == len(videos):
            table.add_section()
        table.add_row(Text(name), *(text for rows in cells.values() for text in rows[index]))
    return table


def print_table(table: Table) -> None:
    """Print a table, at full width where the output is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.print(table)


def print_notes(notes: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Print the notes of each method, (label, notes), to standard error."""
    for label, texts in notes:
        for text in texts:
            print(f"note: {label}: {text}", file=sys.stderr)


def as_json(report: MaskReport) -> dict[str, Any]:
    """Convert a report to JSON values, with mean, recall (0..1) and decay (-1..1) of each object's J and F."""
    return {
        "version": REPORT_VERSION,
        "dataset": {
            "name": report.dataset,
            "root": report.root,
            "split": report.split,
            "resolution": report.resolution,
        },
        "official_decay": report.official_decay,
        "program": report.program,
        "methods": [
            {
                "label": method.label,
                "protocol": method.protocol,
                "description": method.description,
                "notes": list(method.notes),
                "mean_over_objects": mean_scores(method.sequences.values()),
                "seconds_per_frame": seconds_per_frame(method.sequences.values()),
                "sequences": {
                    name: {
                        "frames": sequence.frames,
                        "seconds_per_frame": seconds_per_frame([sequence]),
                        "reused": sequence.reused,
                        "objects": {
                            str(object_id): {
                                "J": _without_nan(asdict(score.region)),
                                "F": _without_nan(asdict(score.contour)),
                                "frames": score.frames.tolist(),
                                "J_of_frames": score.region_similarity.tolist(),
                                "F_of_frames": score.contour_accuracy.tolist(),
                            }
                            for object_id, score in sequence.objects.items()
                        },
                    }
                    for name, sequence in method.sequences.items()
                },
            }
            for method in report.methods
        ],
    }


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    """Replace NaN, which JSON lacks, by None; an official decay is NaN where a quarter is empty."""
    return {name: None if value != value else value for name, value in values.items()}


def official_csv(report: MaskReport, method: MethodReport) -> dict[str, str]:
    """Return names and texts of the DAVIS-2017 code's two CSV files, with the same columns, order and rounding."""
    objects = [
        (f"{name}_{object_id}", score)
        for name, sequence in method.sequences.items()
        for object_id, score in sequence.objects.items()
    ]
    region, contour = (
        np.mean([[item.mean, item.recall, item.decay] for item in measure], axis=0)
        for measure in ([score.region for _, score in objects], [score.contour for _, score in objects])
    )
    overall = [(region[0] + contour[0]) / 2, *region, *contour]
    split = file_name(report.split or report.dataset)
    lines = [f"{name},{score.region.mean:.3f},{score.contour.mean:.3f}" for name, score in objects]
    return {
        f"global_results-{split}.csv": "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay\n"
        + ",".join(f"{value:.3f}" for value in overall)
        + "\n",
        f"per-sequence_results-{split}.csv": "\n".join(["Sequence,J-Mean,F-Mean", *lines]) + "\n",
    }


def write_files(report: MaskReport, folder: Path) -> list[Path]:
    """Write report.json and each method's CSV files to `folder`, and return their paths."""
    texts = {folder / "report.json": json.dumps(as_json(report), indent=1, default=str) + "\n"}
    for method in report.methods:
        for name, text in official_csv(report, method).items():
            texts[folder / "csv" / file_name(method.label) / name] = text
    for path, text in texts.items():
        write_file(path, text)
    return list(texts)
