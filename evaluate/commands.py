"""Commands that predict or score masks: from options to a printed table and written files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.evaluate.datasets.attributes import read_attributes
from corrflow.evaluate.datasets.masks import open_davis, open_youtube_vos, select_sequences
from corrflow.evaluate.full_occlusion import FullOcclusion, run_full_occlusion
from corrflow.evaluate.masks import DataSet, Method, evaluate_masks, reused_count
from corrflow.evaluate.method_selection import select_methods
from corrflow.evaluate.methods.methods import Predictions
from corrflow.evaluate.options import (
    DavisOptions,
    MaskOptions,
    MaskReportOptions,
    OcclusionOptions,
    ScoreOptions,
    YouTubeVosOptions,
)
from corrflow.evaluate.partial_occlusion import PartialOcclusion, run_partial_occlusion
from corrflow.evaluate.reports.files import prepare_folder
from corrflow.evaluate.reports.html import html_page
from corrflow.evaluate.reports.report import MaskReport, mask_table, print_notes, print_table, write_files
from corrflow.runtime.tracking.tracker import Tracker


def davis_data(
    root: Path, split: str, year: str | None = None, resolution: str = "480p", names: Sequence[str] | None = None
) -> DataSet:
    """Open a DAVIS split, or only the sequences of these names."""
    sequences = select_sequences(open_davis(root, split, year, resolution), names or ())
    return DataSet("DAVIS", str(root), split, resolution, tuple(sequences))


def youtube_vos_data(root: Path, names: Sequence[str] | None = None) -> DataSet:
    """Open a YouTube-VOS folder, or only the sequences of these names."""
    return DataSet("YouTube-VOS", str(root), "", "", tuple(select_sequences(open_youtube_vos(root), names or ())))


def run_davis(options: DavisOptions) -> MaskReport:
    """Run corrflow-eval davis."""
    data = davis_data(options.root, options.split, options.year, options.resolution, options.sequence)
    return _predict(data, options)


def run_youtube_vos(options: YouTubeVosOptions) -> MaskReport:
    """Run corrflow-eval youtube-vos."""
    return _predict(youtube_vos_data(options.root, options.sequence), options)


def run_score(options: ScoreOptions) -> MaskReport:
    """Run corrflow-eval score."""
    if options.layout == "davis":
        data = davis_data(options.gt, options.split, options.year, options.resolution, options.sequence)
    elif options.layout == "youtube-vos":
        data = youtube_vos_data(options.gt, options.sequence)
    else:
        raise InputError(f"expected a layout among davis and youtube-vos, got {options.layout!r}; choose one of those")
    _prepare(options.out)
    if not options.predictions.is_dir():
        raise InputError(f"expected a folder of masks, found none at {options.predictions}; check the path")
    predictor = Predictions(options.predictions)
    for sequence in data.sequences:
        predictor.check(sequence)
    method = Method(options.predictions.resolve().name or "predictions", predictor)
    return _report(data, [method], options, options.workers, fresh=True)


def run_occlusion(options: OcclusionOptions) -> None:
    """Run corrflow-eval occlusion."""
    if options.full == options.partial:
        raise InputError(
            f"expected exactly one of --full and --partial, got {'both' if options.full else 'neither'}; choose one"
        )
    kind, other = ("full", "partial") if options.full else ("partial", "full")
    requested = {
        name: {key: value for key in keys if (value := getattr(options, key)) is not None}
        for name, keys in {"full": ("begin", "hidden"), "partial": ("width", "frames")}.items()
    }
    if requested[other]:
        unused = " and --".join(requested[other])
        raise InputError(f"expected --{unused} with --{other}, got --{kind}; leave --{unused} out")
    occlusion = FullOcclusion(**requested["full"]) if options.full else PartialOcclusion(**requested["partial"])
    sequences = davis_data(options.root, options.split, options.year, options.resolution, options.sequence).sequences
    with Tracker.from_model(
        options.model, short_side=options.short_side, redetect=options.redetect, threads=options.threads
    ) as tracker:
        if isinstance(occlusion, FullOcclusion):
            run_full_occlusion(tracker, sequences, occlusion)
        else:
            run_partial_occlusion(tracker, sequences, occlusion)


def _predict(data: DataSet, options: MaskOptions) -> MaskReport:
    _prepare(options.out)
    methods = select_methods(options, options.out and options.out / "models")
    return _report(data, methods, options, options.workers, options.fresh)


def _prepare(out: Path | None) -> None:
    if out is not None:
        prepare_folder(out)
    # Backends log their choices, which would interrupt the progress bar.
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)])
    logging.getLogger("corrflow").setLevel(logging.WARNING)


def _report(data: DataSet, methods: list[Method], options: MaskReportOptions, workers: int, fresh: bool) -> MaskReport:
    """Score the methods, print the table with its notes, and write the files."""
    attributes = {} if options.attributes is None else read_attributes(options.attributes)
    report = evaluate_masks(
        data,
        methods,
        workers=workers,
        results=options.out,
        fresh=fresh,
        official_decay=options.official_decay,
        show_progress=True,
    )
    print_table(mask_table(report))
    print_notes((method.label, method.notes) for method in report.methods)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    reused, scores = reused_count(report)
    if reused:
        console.print(
            f"{reused} of {scores} results are from an earlier run with the same code, settings and data;"
            " --fresh computes them again"
        )
    if options.out is not None:
        paths = write_files(report, options.out)
        page = options.out / "report.html"
        write_file(page, html_page(report, data.sequences, attributes))
        console.print(f"wrote {page} and {len(paths)} more files", markup=False)
    return report
