"""Commands that track points: from options to a printed table and a JSON file."""

from __future__ import annotations

import json
import sys

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.evaluate.datasets.points import open_badja, open_jhmdb, open_tapvid
from corrflow.evaluate.masks import Method
from corrflow.evaluate.method_selection import select_methods
from corrflow.evaluate.metrics.points import QUERY_MODES
from corrflow.evaluate.options import BadjaOptions, JhmdbOptions, PointOptions, TapVidOptions
from corrflow.evaluate.points import (
    PointReport,
    evaluate_badja,
    evaluate_jhmdb,
    evaluate_tapvid,
    point_table,
    points_as_json,
)
from corrflow.evaluate.reports.files import prepare_folder
from corrflow.evaluate.reports.report import print_notes, print_table


def run_jhmdb(options: JhmdbOptions) -> None:
    """Run corrflow-eval jhmdb."""
    methods, clips = _methods(options), open_jhmdb(options.root, options.split)
    _report(evaluate_jhmdb(clips, methods, options.workers, options.drop_lost, show_progress=True), options)


def run_badja(options: BadjaOptions) -> None:
    """Run corrflow-eval badja."""
    methods, videos = _methods(options), open_badja(options.annotations, options.root)
    _report(evaluate_badja(videos, methods, options.workers, show_progress=True), options)


def run_tapvid(options: TapVidOptions) -> None:
    """Run corrflow-eval tapvid."""
    mode = options.queries
    if mode not in QUERY_MODES:
        raise InputError(f"expected --queries among {', '.join(QUERY_MODES)}, got {mode!r}; choose one of those")
    methods, videos = _methods(options), open_tapvid(options.file)
    _report(evaluate_tapvid(videos, methods, mode, options.workers, options.native, show_progress=True), options)


def _methods(options: PointOptions) -> list[Method]:
    """Select the methods. Raises InputError for an invalid method, or for --out that cannot be written."""
    if options.out is not None:
        prepare_folder(options.out.parent)
        if options.out.is_dir():
            raise InputError(f"expected --out to name a JSON file, got the folder {options.out}")
    return select_methods(options)


def _report(report: PointReport, options: PointOptions) -> None:
    print_table(point_table(report))
    print_notes((method.label, method.notes) for method in report.methods)
    if options.out is not None:
        write_file(options.out, json.dumps(points_as_json(report), indent=1, default=str) + "\n")
        print(f"wrote {options.out}", file=sys.stderr)
