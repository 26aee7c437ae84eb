"""What the commands that score points do between reading their options and printing a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from corrflow.errors import InputError
from corrflow.evaluate.datasets.points import open_badja, open_jhmdb, open_tapvid
from corrflow.evaluate.masks import Method
from corrflow.evaluate.method_selection import Choice
from corrflow.evaluate.metrics.points import QUERY_MODES
from corrflow.evaluate.points import (
    PointReport,
    evaluate_badja,
    evaluate_jhmdb,
    evaluate_tapvid,
    point_table,
    points_as_json,
)
from corrflow.evaluate.reports.files import prepare_folder, write_text
from corrflow.evaluate.reports.report import print_whole


@dataclass(frozen=True)
class Chosen:
    """The options that all of these commands have."""

    artifacts: Sequence[str] | None
    protocols: Sequence[str] | None
    baselines: Sequence[str] | None
    short_side: int | None
    workers: int
    out: Path | None

    def methods(self) -> list[Method]:
        """Raises InputError for a method that cannot be used, or a file that cannot be written."""
        if self.out is not None:
            prepare_folder(self.out.parent)
            if self.out.is_dir():
                raise InputError(f"expected --out to name a JSON file, got the folder {self.out}")
        return Choice(
            self.artifacts or (), self.protocols or (), self.baselines or (), short_side=self.short_side
        ).methods()


def run_jhmdb(root: Path, split: int | None, drop_lost: bool, chosen: Chosen) -> None:
    """corrflow-eval jhmdb."""
    methods, sequences = chosen.methods(), open_jhmdb(root, split)
    _report(evaluate_jhmdb(sequences, methods, chosen.workers, drop_lost, show_progress=True), chosen)


def run_badja(annotations: Path, root: Path, chosen: Chosen) -> None:
    """corrflow-eval badja."""
    methods, sequences = chosen.methods(), open_badja(annotations, root)
    _report(evaluate_badja(sequences, methods, chosen.workers, show_progress=True), chosen)


def run_tapvid(file: Path, queries: str, native: bool, chosen: Chosen) -> None:
    """corrflow-eval tapvid."""
    if queries not in QUERY_MODES:
        raise InputError(f"expected --queries among {', '.join(QUERY_MODES)}, got {queries!r}; choose one of those")
    methods, videos = chosen.methods(), open_tapvid(file)
    _report(evaluate_tapvid(videos, methods, queries, chosen.workers, native, show_progress=True), chosen)


def _report(report: PointReport, chosen: Chosen) -> None:
    print_whole(point_table(report))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for method in report.methods:
        for note in method.notes:
            console.print(f"note: {method.label}: {note}", markup=False)
    if chosen.out is not None:
        write_text(chosen.out, json.dumps(points_as_json(report), indent=1, default=str) + "\n")
        console.print(f"wrote {chosen.out}", markup=False)
