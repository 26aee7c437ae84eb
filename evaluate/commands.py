"""What the commands that score masks do between reading their options and printing a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.logging import RichHandler

from corrflow.errors import InputError
from corrflow.evaluate.datasets.attributes import read_attributes
from corrflow.evaluate.datasets.masks import open_davis, open_youtube_vos, select
from corrflow.evaluate.masks import DataSet, Method, evaluate_masks, reused_count
from corrflow.evaluate.method_selection import Choice
from corrflow.evaluate.methods.encoders import OnnxEncoder
from corrflow.evaluate.methods.methods import Predictions
from corrflow.evaluate.reports.files import prepare_folder, write_text
from corrflow.evaluate.reports.html import html_page
from corrflow.evaluate.reports.report import MaskReport, mask_table, print_whole, write_files
from corrflow.evaluate.search import SearchSpace

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Outputs:
    """Where a report goes, and the attributes of the sequences for it; each may be None."""

    folder: Path | None = None
    attributes: Path | None = None


def choice(
    artifacts: Sequence[str] | None,
    protocols: Sequence[str] | None,
    baselines: Sequence[str] | None,
    encoders: Sequence[Path] | None,
    layout: str,
    colours: str,
    mean: str,
    std: str,
    short_side: int | None,
    results: Path | None,
) -> Choice:
    """What to compare, from the options as they were typed."""
    named = [
        OnnxEncoder(path, layout, colours, _numbers("mean", mean), _numbers("std", std)) for path in encoders or ()
    ]
    return Choice(artifacts or (), protocols or (), baselines or (), named, short_side, results)


def davis_data(root: Path, split: str, year: str | None, resolution: str, names: Sequence[str]) -> DataSet:
    """The sequences of a DAVIS split."""
    sequences = tuple(select(open_davis(root, split, year, resolution), names))
    return DataSet("DAVIS", str(root), split, resolution, sequences)


def youtube_vos_data(root: Path, names: Sequence[str]) -> DataSet:
    """The sequences of a YouTube-VOS folder."""
    return DataSet("YouTube-VOS", str(root), "", "", tuple(select(open_youtube_vos(root), names)))


def data_of_layout(
    layout: str, root: Path, split: str, year: str | None, resolution: str, names: Sequence[str]
) -> DataSet:
    """The data set in the layout of this name."""
    if layout == "davis":
        return davis_data(root, split, year, resolution, names)
    if layout == "youtube-vos":
        return youtube_vos_data(root, names)
    raise InputError(f"expected a layout among davis and youtube-vos, got {layout!r}; choose one of those")


def search_space(short_side: str, radius: str, memory_frames: str, top_k: str, temperature: str) -> SearchSpace:
    """The values to try, from the lists as they were typed."""
    typed = {"short_side": short_side, "radius": radius, "memory_frames": memory_frames, "top-k": top_k}
    whole = {name: _list(name, text, int, "whole numbers") for name, text in typed.items()}
    warm = _list("temperature", temperature, float, "numbers")
    return SearchSpace(whole["short_side"], whole["radius"], whole["memory_frames"], whole["top-k"], warm)


def run_masks(
    data: DataSet, chosen: Choice, outputs: Outputs, workers: int, fresh: bool, official_decay: bool
) -> MaskReport:
    """corrflow-eval davis and youtube-vos."""
    _prepare(outputs)
    return _report(data, chosen.methods(), outputs, workers, fresh, official_decay)


def run_score(predictions: Path, data: DataSet, outputs: Outputs, workers: int, official_decay: bool) -> MaskReport:
    """corrflow-eval score."""
    _prepare(outputs)
    if not predictions.is_dir():
        raise InputError(f"expected a folder of masks, found none at {predictions}; check the path")
    maker = Predictions(predictions)
    for sequence in data.sequences:
        maker.check(sequence)
    method = Method(predictions.resolve().name or "predictions", maker)
    return _report(data, [method], outputs, workers, True, official_decay)


def _report(
    data: DataSet, methods: list[Method], outputs: Outputs, workers: int, fresh: bool, official_decay: bool
) -> MaskReport:
    """Score, print the table and what is to be known about it, write the files."""
    attributes = {} if outputs.attributes is None else read_attributes(outputs.attributes)
    report = evaluate_masks(
        data,
        methods,
        workers=workers,
        results=outputs.folder,
        fresh=fresh,
        official_decay=official_decay,
        show_progress=True,
    )
    print_whole(mask_table(report))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for method in report.methods:
        for note in method.notes:
            console.print(f"note: {method.label}: {note}", markup=False)
    reused, scores = reused_count(report)
    if reused:
        console.print(
            f"{reused} of {scores} results are of an earlier run with the same code, settings and data;"
            " --fresh computes them again"
        )
    if outputs.folder is not None:
        paths = write_files(report, outputs.folder)
        page = outputs.folder / "report.html"
        write_text(page, html_page(report, data.sequences, attributes))
        console.print(f"wrote {page} and {len(paths)} more files", markup=False)
    return report


def _prepare(outputs: Outputs) -> None:
    if outputs.folder is not None:
        prepare_folder(outputs.folder)
    # Why a kept result was not used is worth a line; what the back end chose is not, here.
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)])
    logging.getLogger("corrflow").setLevel(logging.WARNING)


def _list(name: str, text: str, kind: Callable[[str], N], what: str) -> tuple[N, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"expected --{name} as {what} with commas, got {text!r}") from error


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"expected --encoder-{name} as three numbers with commas, got {text!r}") from error
