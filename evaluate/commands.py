"""Commands that predict or score masks: from options to a printed table and written files."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.evaluate.data_sets import open_sets, set_folder, split_data, youtube_vos_data
from corrflow.evaluate.datasets.attributes import read_attributes
from corrflow.evaluate.datasets.kinds import THRESHOLDS, kinds_of, measure_kinds
from corrflow.evaluate.datasets.points import open_badja
from corrflow.evaluate.full_occlusion import FullOcclusion, run_full_occlusion
from corrflow.evaluate.masks import DataSet, Method, evaluate_masks, reused_count
from corrflow.evaluate.method_selection import select_methods
from corrflow.evaluate.methods.methods import Predictions
from corrflow.evaluate.options import (
    DavisOptions,
    KindsOptions,
    MaskReportOptions,
    OcclusionOptions,
    ScoreOptions,
    YouTubeVosOptions,
)
from corrflow.evaluate.partial_occlusion import PartialOcclusion, run_partial_occlusion
from corrflow.evaluate.published import BADJA_PROTOCOL, badja_scores, published_rows, published_table
from corrflow.evaluate.reports.files import prepare_folder
from corrflow.evaluate.reports.html import html_page
from corrflow.evaluate.reports.report import (
    MaskReport,
    mask_table,
    print_notes,
    print_table,
    rows_of_sets,
    sets_as_json,
    sets_table,
    write_files,
)
from corrflow.output_paths import check_beginning
from corrflow.runtime.tracking.tracker import Tracker


def run_davis(options: DavisOptions) -> list[MaskReport]:
    """Run corrflow-eval davis: one report for each data set, with several a table of all, and a table by protocol."""
    sets = open_sets(options.root, options, options.attributes)
    videos = None if options.badja is None else open_badja(options.badja, options.badja.parent)
    _prepare(options.out)
    methods, badja_methods = _davis_methods(options)
    reports = [
        _report(data, methods, options, options.out and set_folder(options.out, data), options.workers, options.fresh)
        for data in sets
    ]
    named = {data.label: report for data, report in zip(sets, reports, strict=True)}
    if sets[0].label:
        print_table(sets_table(rows_of_sets(named)))
        _write_json(options.out, "sets.json", sets_as_json(named))
    if videos is not None or len({method.protocol for method in methods} - {None}) > 1:
        joints = None
        if videos is not None:
            cache = options.out and options.out / "badja"
            joints = badja_scores(videos, badja_methods, options.workers, cache, options.fresh, show_progress=True)
        rows = published_rows(named, joints)
        print_table(published_table(named, rows))
        _write_json(options.out, "protocols.json", rows)
    return reports


def _davis_methods(options: DavisOptions) -> tuple[list[Method], list[Method]]:
    """Return the methods of the masks, and those of BADJA's joints: each model with its own settings."""
    requested = options.protocol or ["default"]
    if options.badja is not None and BADJA_PROTOCOL not in requested:
        options = replace(options, protocol=[*requested, BADJA_PROTOCOL])
    methods = select_methods(options, options.out and options.out / "models")
    joints = [method for method in methods if method.protocol in (BADJA_PROTOCOL, None)]
    if BADJA_PROTOCOL not in requested:
        methods = [method for method in methods if method.protocol != BADJA_PROTOCOL]
    return methods, joints


def _write_json(folder: Path | None, name: str, content: object) -> None:
    if folder is not None:
        write_file(folder / name, json.dumps(content, indent=1) + "\n")
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"wrote {folder / name}", markup=False)


def run_youtube_vos(options: YouTubeVosOptions) -> MaskReport:
    """Run corrflow-eval youtube-vos."""
    data = youtube_vos_data(options.root, options.sequence)
    data = replace(data, attributes=_attributes(options))
    _prepare(options.out)
    methods = select_methods(options, options.out and options.out / "models")
    return _report(data, methods, options, options.out, options.workers, options.fresh)


def run_score(options: ScoreOptions) -> MaskReport:
    """Run corrflow-eval score."""
    if options.layout == "davis":
        data = split_data(options.gt, options)
    elif options.layout == "youtube-vos":
        if options.stride != 1 or options.backward:
            raise InputError("expected --stride and --backward with --layout davis, got youtube-vos; leave them out")
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
    data = replace(data, attributes=_attributes(options))
    return _report(data, [method], options, options.out, options.workers, fresh=True)


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
    sequences = split_data(options.root, options).sequences
    with Tracker.from_model(
        options.model, short_side=options.short_side, redetect=options.redetect, threads=options.threads
    ) as tracker:
        if isinstance(occlusion, FullOcclusion):
            run_full_occlusion(tracker, sequences, occlusion)
        else:
            run_partial_occlusion(tracker, sequences, occlusion)


def _prepare(out: Path | None) -> None:
    if out is not None:
        prepare_folder(out)
    # Backends log their choices, which would interrupt the progress bar.
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)])
    logging.getLogger("corrflow").setLevel(logging.WARNING)


def run_kinds(options: KindsOptions) -> dict[str, dict[str, float]]:
    """Run corrflow-eval kinds: print the measures of each sequence, and write its attributes."""
    if options.out is not None:
        check_beginning(options.out, "kinds of sequences", b'{\n "sequences": [')
    table = Table(title="measures of each sequence; * where it has the attribute")
    table.add_column("sequence", no_wrap=True)
    for name in THRESHOLDS:
        table.add_column(name, justify="right")
    measured, entries = {}, []
    for sequence in split_data(options.root, options).sequences:
        values = measure_kinds(sequence)
        kinds = kinds_of(values)
        measured[sequence.name] = values
        table.add_row(
            sequence.name, *(f"{value:.2f}{' *' if name in kinds else '  '}" for name, value in values.items())
        )
        rounded = {name: round(value, 3) for name, value in values.items()}
        entries.append({"name": sequence.recording, "attributes": kinds, "measures": rounded})
    print_table(table)
    if options.out is not None:
        # One line for each sequence, so that differences are readable.
        lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
        write_file(options.out, f'{{\n "sequences": [\n{lines}\n ]\n}}\n')
    return measured


def _attributes(options: MaskReportOptions) -> dict[str, tuple[str, ...]]:
    return {} if options.attributes is None else read_attributes(options.attributes)


def _report(
    data: DataSet, methods: list[Method], options: MaskReportOptions, out: Path | None, workers: int, fresh: bool
) -> MaskReport:
    """Score the methods, print the table with its notes, and write the files to `out`."""
    report = evaluate_masks(
        data,
        methods,
        workers=workers,
        results=out,
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
    if out is not None:
        paths = write_files(report, out)
        page = out / "report.html"
        attributes = {sequence.name: data.attributes.get(sequence.recording, ()) for sequence in data.sequences}
        write_file(page, html_page(report, data.sequences, attributes if data.attributes else {}))
        console.print(f"wrote {page} and {len(paths)} more files", markup=False)
    return report
