"""Commands that track points: from options to a printed table and a JSON file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.evaluate.data_sets import split_data
from corrflow.evaluate.datasets.labelled_videos import open_labelled_video
from corrflow.evaluate.datasets.point_truth import WarpSettings
from corrflow.evaluate.datasets.points import open_badja, open_jhmdb, open_tapvid
from corrflow.evaluate.keypoints import evaluate_keypoints, keypoint_table
from corrflow.evaluate.masks import Method
from corrflow.evaluate.method_selection import POINT_BASELINES, select_methods
from corrflow.evaluate.metrics.points import QUERY_MODES
from corrflow.evaluate.options import (
    BadjaOptions,
    JhmdbOptions,
    KeypointOptions,
    MethodOptions,
    PointOptions,
    TapVidOptions,
    WarpOptions,
)
from corrflow.evaluate.points import (
    PointReport,
    evaluate_badja,
    evaluate_jhmdb,
    evaluate_tapvid,
    point_table,
    points_as_json,
)
from corrflow.evaluate.reports.files import prepare_folder
from corrflow.evaluate.reports.keypoints import REPORT_FILES, write_keypoint_files
from corrflow.evaluate.reports.report import print_notes, print_table
from corrflow.evaluate.warps import evaluate_warps
from corrflow.output_paths import check_apart, check_beginning

DEFAULT_BASELINES = ("lk", "flow", "identity")
NO_BASELINE = "none"


def run_points(options: KeypointOptions) -> None:
    """Run corrflow-eval points."""
    if options.out is not None:
        check_apart([Path(options.video), options.labels], [options.out / name for name in REPORT_FILES])
        prepare_folder(options.out)
    methods = _with_baselines(options)
    video = open_labelled_video(options.video, options.labels)
    for note in video.notes:
        print(f"note: {note}", file=sys.stderr)
    report = evaluate_keypoints(
        video, methods, options.labelled, options.body_length, options.workers, show_progress=True
    )
    print_table(keypoint_table(report))
    print_notes((method.label, method.notes) for method in methods)
    if options.out is not None:
        page, *_ = write_keypoint_files(report, options.out)
        print(f"wrote {page}", file=sys.stderr)


def run_warps(options: WarpOptions) -> None:
    """Run corrflow-eval warps."""
    _check_out(options.out, options.root)
    methods = _with_baselines(options)
    settings = WarpSettings(options.frames, options.motion, options.points, options.seed)
    sequences = split_data(options.root, options).sequences
    _report(evaluate_warps(sequences, methods, settings, options.real, options.workers, show_progress=True), options)


def _with_baselines(options: MethodOptions) -> list[Method]:
    """Select the methods of a command that has all baselines of points by default. Raises InputError."""
    baselines = list(options.baseline or DEFAULT_BASELINES)
    if NO_BASELINE in baselines:
        if len(baselines) > 1:
            raise InputError(f"expected --baseline {NO_BASELINE} alone, got {', '.join(baselines)}; leave one out")
        baselines = []
    models = options.model or ([] if options.encoder else ["quarter"])
    return select_methods(replace(options, baseline=baselines, model=models), known=POINT_BASELINES)


def run_jhmdb(options: JhmdbOptions) -> None:
    """Run corrflow-eval jhmdb."""
    methods, clips = _methods(options, options.root), open_jhmdb(options.root, options.split)
    _report(evaluate_jhmdb(clips, methods, options.workers, options.drop_lost, show_progress=True), options)


def run_badja(options: BadjaOptions) -> None:
    """Run corrflow-eval badja."""
    methods, videos = (
        _methods(options, options.annotations, options.root),
        open_badja(options.annotations, options.root),
    )
    _report(evaluate_badja(videos, methods, options.workers, show_progress=True), options)


def run_tapvid(options: TapVidOptions) -> None:
    """Run corrflow-eval tapvid."""
    mode = options.queries
    if mode not in QUERY_MODES:
        raise InputError(f"expected --queries among {', '.join(QUERY_MODES)}, got {mode!r}; choose one of those")
    methods, videos = _methods(options, options.file), open_tapvid(options.file)
    _report(evaluate_tapvid(videos, methods, mode, options.workers, options.native, show_progress=True), options)


def _methods(options: PointOptions, *inputs: Path | None) -> list[Method]:
    """Select the methods. Raises InputError for an invalid method, or for --out that cannot be written.

    inputs: what is read, which --out must not replace
    """
    _check_out(options.out, *inputs)
    return select_methods(options, known=POINT_BASELINES)


def _check_out(out: Path | None, *inputs: Path | None) -> None:
    """Raise InputError for a JSON file that cannot be written, or would replace what is read."""
    if out is not None:
        prepare_folder(out.parent, ())
        if out.is_dir():
            raise InputError(f"expected --out to name a JSON file, got the folder {out}")
        check_apart(inputs, [out])
        check_beginning(out, "--out", b"{")


def _report(report: PointReport, options: PointOptions) -> None:
    print_table(point_table(report))
    print_notes((method.label, method.notes) for method in report.methods)
    if options.out is not None:
        write_file(options.out, json.dumps(points_as_json(report), indent=1, default=str) + "\n")
        print(f"wrote {options.out}", file=sys.stderr)
