"""Scores of several methods on one data set: their means, the table for people, JSON and CSV for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from corrflow.evaluate.metrics.masks import ObjectScore, object_score
from corrflow.evaluate.reports.files import file_name, write_text

REPORT_VERSION = 2
WIDEST_TABLE = 3


@dataclass(frozen=True)
class SequenceScore:
    """One method on one sequence.

    objects: scores by object id
    frames:  length of the sequence
    seconds: what the method took for `tracked` frames, without reading files; None where nothing was computed
    reused:  whether the score is from an earlier run
    """

    objects: dict[int, ObjectScore]
    frames: int
    seconds: float | None
    tracked: int
    reused: bool = False


@dataclass(frozen=True)
class MethodReport:
    """One method on every sequence.

    protocol:    name of the tracking protocol; None for what does not track with the tracker
    description: what the method is, with hashes and settings, JSON-ready
    sequences:   scores by the sequence's name
    masks:       folder of the masks, <sequence>/<frame>.png below it; None where they were not kept
    notes:       what a reader of the score has to know
    """

    label: str
    protocol: str | None
    description: dict[str, Any]
    sequences: dict[str, SequenceScore]
    masks: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskReport:
    """Every method on one data set, all of them on the same sequences.

    dataset:        "DAVIS" or "YouTube-VOS": whose rule says which frames and objects are scored
    official_decay: whether decays keep the official code's mistake past 256 frames
    program:        hash of corrflow's code, versions of the libraries
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
    """The same scores with decays as the official code computes them, right or wrong."""
    objects = {
        object_id: object_score(item.frames.tolist(), item.region_similarity, item.contour_accuracy, True)
        for object_id, item in score.objects.items()
    }
    return replace(score, objects=objects)


def mean_scores(sequences: Iterable[SequenceScore]) -> dict[str, float]:
    """J, F and J&F as means over all objects of these sequences, not over the sequences: each 0..1."""
    objects = [score for sequence in sequences for score in sequence.objects.values()]
    region = float(np.mean([score.region.mean for score in objects]))
    contour = float(np.mean([score.contour.mean for score in objects]))
    return {"J": region, "F": contour, "J&F": (region + contour) / 2}


def seconds_per_frame(sequences: Iterable[SequenceScore]) -> float | None:
    """Mean over the tracked frames of these sequences; None where nothing was tracked."""
    timed = [(item.seconds, item.tracked) for item in sequences if item.seconds is not None and item.tracked]
    return sum(seconds for seconds, _ in timed) / sum(frames for _, frames in timed) if timed else None


def mask_table(report: MaskReport) -> Table:
    """One row per sequence and one for the mean over objects; J, F, J&F in percent and the time for every method.

    With more than `WIDEST_TABLE` methods one row per method, with the means alone.
    """
    table = Table(title=report.title)
    if len(report.methods) > WIDEST_TABLE:
        objects = sum(len(sequence.objects) for sequence in report.methods[0].sequences.values())
        table.add_column(f"mean of {objects} objects", no_wrap=True)
        for measure in ("J", "F", "J&F", "s/frame"):
            table.add_column(measure, justify="right", no_wrap=True)
        for method in report.methods:
            one = replace(report, methods=(method,))
            table.add_row(Text(method.label), *_cells(one, lambda method: list(method.sequences.values())))
        return table
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


def print_whole(table: Table) -> None:
    """Print a table, in its full width where the output is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.print(table)


def as_json(report: MaskReport) -> dict[str, Any]:
    """The report as JSON values: every object's mean, recall and decay of J and of F, each 0..1 (decay -1..1)."""
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
    """None in place of NaN, which JSON does not have: an official decay may have an empty quarter."""
    return {name: None if value != value else value for name, value in values.items()}


def official_csv(report: MaskReport, method: MethodReport) -> dict[str, str]:
    """Name and text of the two files that the DAVIS-2017 evaluation writes, in its columns, order and rounding."""
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
    """report.json and each method's CSV files below `folder`; returns their paths."""
    texts = {folder / "report.json": json.dumps(as_json(report), indent=1, default=str) + "\n"}
    for method in report.methods:
        for name, text in official_csv(report, method).items():
            texts[folder / "csv" / file_name(method.label) / name] = text
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def _cells(report: MaskReport, choose: Callable[[MethodReport], list[SequenceScore]]) -> list[str]:
    cells = []
    for method in report.methods:
        chosen = choose(method)
        seconds = seconds_per_frame(chosen)
        cells += [f"{100 * value:.1f}" for value in mean_scores(chosen).values()]
        cells.append("" if seconds is None else f"{seconds:.3f}")
    return cells
