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
from corrflow.evaluate.metrics.continuity import (
    MAX_LOSS,
    area_at_end,
    identity_switches,
    longest_loss,
    mean_area_at_end,
)
from corrflow.evaluate.metrics.masks import ObjectScore, object_score
from corrflow.evaluate.reports.files import file_name

REPORT_VERSION = 3
MAX_TABLE_COLUMNS = 12
"""Largest number of columns of methods that a table shows side by side."""


@dataclass(frozen=True)
class SequenceScore:
    """Score of one method on one sequence.

    objects:     scores by object id
    frames:      length of the sequence
    cpu_seconds: CPU time of the `tracked` frames, without reading files; None where nothing was computed
    reused:      the score is from an earlier run
    """

    objects: dict[int, ObjectScore]
    frames: int
    cpu_seconds: float | None
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
        object_id: object_score(item.frames.tolist(), item.region_similarity, item.contour_accuracy, item.areas, True)
        for object_id, item in score.objects.items()
    }
    return replace(score, objects=objects)


def mean_scores(sequences: Iterable[SequenceScore]) -> dict[str, float]:
    """Return J, F and J&F, 0..1, as means over all objects of these sequences (not over the sequences)."""
    objects = [score for sequence in sequences for score in sequence.objects.values()]
    region = float(np.mean([score.region.mean for score in objects]))
    contour = float(np.mean([score.contour.mean for score in objects]))
    return {"J": region, "F": contour, "J&F": (region + contour) / 2}


def worst_third(sequences: Mapping[str, SequenceScore]) -> dict[str, SequenceScore]:
    """Return the third of the sequences with the lowest J&F, worst first; their number is rounded, and at least 1."""
    ordered = sorted(sequences, key=lambda name: mean_scores([sequences[name]])["J&F"])
    return {name: sequences[name] for name in ordered[: max(1, round(len(ordered) / 3))]}


def cpu_seconds_per_frame(sequences: Iterable[SequenceScore]) -> float | None:
    """Return the mean over the tracked frames of these sequences; None where nothing was tracked."""
    timed = [(item.cpu_seconds, item.tracked) for item in sequences if item.cpu_seconds is not None and item.tracked]
    return sum(seconds for seconds, _ in timed) / sum(frames for _, frames in timed) if timed else None


def summary(sequences: Iterable[SequenceScore]) -> dict[str, Any]:
    """Return the figures beside J and F as JSON values: area, losses, identity switches and price.

    area_at_end:           geometric mean over objects; None where no object is in the last frames
    lost_objects:          objects that are visible without a mask for more than `MAX_LOSS` frames in a row
    identity_switches:     their number over all objects
    cpu_seconds_per_frame: None where nothing was tracked
    """
    sequences = list(sequences)
    objects = [score for sequence in sequences for score in sequence.objects.values()]
    return {
        "area_at_end": mean_area_at_end(score.areas for score in objects),
        "lost_objects": sum(longest_loss(score.frames, score.areas) > MAX_LOSS for score in objects),
        "identity_switches": sum(identity_switches(score.areas) for score in objects),
        "cpu_seconds_per_frame": cpu_seconds_per_frame(sequences),
    }


def _cells(sequences: Sequence[SequenceScore]) -> dict[str, str]:
    """Return the texts of one row of a table by their columns."""
    area, lost, switches, seconds = summary(sequences).values()
    return {
        **{name: f"{100 * value:.1f}" for name, value in mean_scores(sequences).items()},
        "area": "" if area is None else f"{area:.2f}",
        "lost": str(lost),
        "switches": str(switches),
        "CPU ms": "" if seconds is None else f"{1000 * seconds:.0f}",
    }


def mask_table(report: MaskReport) -> Table:
    """Build the table of J, F, J&F in percent and of the summary; the last row has the means over objects.

    From three sequences on, the row before has the means over the objects of each method's worst third. Identity
    switches are below the table, where a sequence has several objects.
    """
    first = report.methods[0].sequences
    mean = f"mean of {sum(len(score.objects) for score in first.values())} objects"
    summaries = (mean,) if len(first) < 3 else (f"worst third ({len(worst_third(first))} sequences)", mean)
    columns = ("J", "F", "J&F", "area", "lost", "CPU ms")
    cells, switches = {}, []
    for method in report.methods:
        scores = list(method.sequences.values())
        parts = [[score] for score in scores]
        if len(first) >= 3:
            parts.append(list(worst_third(method.sequences).values()))
        rows = [_cells(part) for part in (*parts, scores)]
        cells[method.label] = [[row[name] for name in columns] for row in rows]
        switches.append(f"{rows[-1]['switches']} ({method.label})")
    table = score_table(report.title, ("sequence", *first, *summaries), columns, cells, len(summaries))
    if any(len(score.objects) > 1 for score in first.values()):
        table.caption = Text(f"identity switches: {', '.join(switches)}")
    return table


def sets_table(rows: Iterable[tuple[str, str, Mapping[str, SequenceScore]]]) -> Table:
    """Build the table of several data sets: means over objects, and the J&F of each worst third.

    rows: data set, method, and scores by sequence; rows of a data set follow each other
    """
    table = Table(title="means over objects, percent")
    for name in ("data set", "method"):
        table.add_column(name, no_wrap=True)
    columns = ("sequences", "objects", "J", "F", "J&F", "worst third", "area", "lost", "switches", "CPU ms")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for label, method, sequences in rows:
        if label != previous:
            table.add_section()
            previous = label
        scores = list(sequences.values())
        row = _cells(scores) | {
            "sequences": str(len(scores)),
            "objects": str(sum(len(score.objects) for score in scores)),
            "worst third": _cells(list(worst_third(sequences).values()))["J&F"],
        }
        table.add_row(Text(label), Text(method), *(row[name] for name in columns))
    return table


def rows_of_sets(reports: Mapping[str, MaskReport]) -> list[tuple[str, str, Mapping[str, SequenceScore]]]:
    """Return the rows of `sets_table` for reports by the data set's label."""
    return [(label, method.label, method.sequences) for label, report in reports.items() for method in report.methods]


def sets_as_json(reports: Mapping[str, MaskReport]) -> list[dict[str, Any]]:
    """Convert the means of several data sets, by label, to JSON values."""
    return [
        {
            "set": label,
            "root": report.root,
            "split": report.split,
            "method": method.label,
            "sequences": len(method.sequences),
            **means_as_json(method.sequences),
        }
        for label, report in reports.items()
        for method in report.methods
    ]


def means_as_json(sequences: Mapping[str, SequenceScore]) -> dict[str, Any]:
    """Convert the means of one method on one data set to JSON values."""
    worst = worst_third(sequences)
    return {
        "mean_over_objects": mean_scores(sequences.values()),
        "worst_third": {"sequences": list(worst), **mean_scores(worst.values())},
        **summary(sequences.values()),
    }


def score_table(
    title: str,
    names: Sequence[str],
    measures: Sequence[str],
    cells: Mapping[str, Sequence[Sequence[str]]],
    summaries: int = 1,
) -> Table:
    """Build a table with a row for each video and columns for each method.

    With more than `MAX_TABLE_COLUMNS` the table has a row for each of several methods, with the summaries alone.

    names:     title of the first column, then the V videos, then the summaries, the mean last
    cells:     text of each measure, [V + summaries][measure], by the method's label
    summaries: number of rows that summarise the videos
    """
    heading, *rest = names
    videos = rest[:-summaries]
    table = Table(title=title)
    if len(cells) > 1 and len(cells) * len(measures) > MAX_TABLE_COLUMNS:
        table.add_column(rest[-1], no_wrap=True)
        for name in (*rest[len(videos) : -1], ""):
            for index, measure in enumerate(measures):
                heading = f"{'' if index else name}\n{measure}" if summaries > 1 else measure
                table.add_column(Text(heading), justify="right", no_wrap=True)
        for label, rows in cells.items():
            table.add_row(Text(label), *(text for row in rows[len(videos) :] for text in row))
        return table
    table.add_column(heading, no_wrap=True)
    for label in cells:
        for index, measure in enumerate(measures):
            table.add_column(Text(f"{'' if index else label}\n{measure}"), justify="right", no_wrap=True)
    for index, name in enumerate(rest):
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
                **means_as_json(method.sequences),
                "sequences": {
                    name: {
                        "frames": sequence.frames,
                        **summary([sequence]),
                        "reused": sequence.reused,
                        "objects": {
                            str(object_id): {
                                "J": _without_nan(asdict(score.region)),
                                "F": _without_nan(asdict(score.contour)),
                                "area_at_end": area_at_end(score.areas),
                                "longest_loss": longest_loss(score.frames, score.areas),
                                "identity_switches": identity_switches(score.areas),
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
