"""Ablations of the paper: train each model for the same time, export it, score it, and write a table.

    bash scripts/ablations --data videos/ --davis DAVIS --minutes 60 --out ablations

    OUT/runs/<model>, OUT/artifacts/<model>     as written by corrflow-train and corrflow-export
    OUT/scores                                  written by corrflow-eval
    OUT/table.md, OUT/table.json                updated after every model

The same command resumes a stopped run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from corrflow.atomic_files import write_file
from corrflow.bench.experiments.dev_scores import Score, Scoring, command, export, scores
from corrflow.errors import InputError, errors_reported

WHOLE = "whole"
# Title and options of each model, and published J and F on DAVIS-2017 val (table 2 of the paper).
MODELS: dict[str, tuple[str, tuple[str, ...], tuple[float, float] | None]] = {
    WHOLE: ("full model", (), (47.7, 51.3)),
    "no-colour-dropout": ("without colour dropout", ("--no-colour-dropout",), (40.5, 39.5)),
    "full-attention": ("without restricted attention", ("--full-attention",), (40.8, 39.7)),
    "no-scheduled-sampling": ("without scheduled sampling", ("--no-scheduled-sampling",), (40.2, 39.2)),
    "no-cycle": ("without cycle", ("--no-cycle",), (41.0, 40.4)),
    "colorization": ("baseline: colorization", (), None),
}
# Options of the baseline with another preset than `paper`.
BASELINE = ("--frames", "2", "--full-attention", "--no-colour-dropout", "--no-cycle", "--no-lightness")
RANDOM_INIT = "random-init"


@dataclass(frozen=True)
class Row:
    """Table row of a model: steps and minutes of training, and score."""

    model: str
    steps: int
    minutes: float
    score: Score


def switches(model: str, preset: str) -> tuple[str, ...]:
    """Return the options of corrflow-train for a model of the table, including its preset."""
    if model == "colorization":
        return ("--preset", "colorization") if preset == "paper" else ("--preset", preset, *BASELINE)
    return ("--preset", preset, *MODELS[model][1])


def run(
    data: str,
    length: tuple[str, str],
    preset: str,
    settings_from: str | None,
    scoring: Scoring,
    out: Path,
    further: list[str],
) -> list[Row]:
    """Train, export and score missing models. length: --minutes or --steps with value; further: for corrflow-train

    Raises InputError if `out` holds models of other options.
    """
    from corrflow.train.config import preset as named_preset

    named_preset(preset)
    scoring.sequences()  # raises before hours of training
    _check_options(
        out,
        {"data": data, "length": list(length), "preset": preset, "settings_from": settings_from, "further": further},
    )
    rows: list[Row] = []
    artifacts = [out / "artifacts" / RANDOM_INIT]
    export(f"random-init:{preset}", artifacts[0], settings_from)
    for model in MODELS:
        folder = out / "runs" / model
        options = (*switches(model, preset), "--data", data, *length, "--out", str(folder), *further)
        if not _finished(folder):
            command("train", *options)
            if not _finished(folder):
                raise InputError(f"the run in {folder} was stopped; repeat the command to resume it")
        artifacts.append(out / "artifacts" / model)
        export(str(folder), artifacts[-1], settings_from)
        found = scores(artifacts, scoring, out / "scores")
        rows = [Row(RANDOM_INIT, 0, 0.0, found[0])]
        for name, score in zip(MODELS, found[1:], strict=False):
            rows.append(Row(name, *_trained(out / "runs" / name), score))
        write_file(out / "table.md", table(rows, preset, scoring))
        write_file(out / "table.json", json.dumps(as_json(rows, preset, scoring), indent=1) + "\n")
    return rows


def table(rows: list[Row], preset: str, scoring: Scoring) -> str:
    """Return a Markdown table of scores in percent, with published scores."""
    whole = next((row.score.both for row in rows if row.model == WHOLE), None)
    rows_at = "480" if scoring.short_side is None else str(scoring.short_side)
    lines = [
        f"# Ablations, preset {preset}",
        "",
        f"{len(scoring.sequences())} sequences of {scoring.split}, protocol {scoring.protocol}, {rows_at} rows."
        " Published: DAVIS-2017 val, 1 M steps.",
        "",
        "| model | steps | minutes | J | F | J&F | against full model | published J / F |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        title, _, published = MODELS.get(row.model, ("random weights", (), None))
        change = "" if whole is None or row.model == WHOLE else f"{100 * (row.score.both - whole):+.1f}"
        region, contour, both = (
            f"{100 * value:.1f}" for value in (row.score.region, row.score.contour, row.score.both)
        )
        known = "{} / {}".format(*published) if published else ""
        lines.append(
            f"| {title} | {row.steps} | {row.minutes:.1f} | {region} | {contour} | {both} | {change} | {known} |"
        )
    return "\n".join(lines) + "\n"


def as_json(rows: list[Row], preset: str, scoring: Scoring) -> dict[str, Any]:
    """Return the table as JSON values; scores 0..1, published scores in percent."""
    return {
        "preset": preset,
        "split": scoring.split,
        "sequences": scoring.sequences(),
        "protocol": scoring.protocol,
        "short_side": scoring.short_side,
        "models": [
            {
                "model": row.model,
                "switches": [] if row.model == RANDOM_INIT else list(switches(row.model, preset)),
                "steps": row.steps,
                "minutes": row.minutes,
                "J": row.score.region,
                "F": row.score.contour,
                "J&F": row.score.both,
                "published": MODELS[row.model][2] if row.model in MODELS else None,
            }
            for row in rows
        ],
    }


def _check_options(out: Path, options: dict[str, Any]) -> None:
    """Store the options of a table, or raise InputError if stored options differ."""
    path = out / "options.json"
    if path.is_file():
        before = json.loads(path.read_text())
        if changed := sorted(name for name in options if before.get(name) != options[name]):
            raise InputError(
                f"{out} holds models with other options ({', '.join(changed)}); repeat the same options,"
                " or use another --out"
            )
    else:
        write_file(path, json.dumps(options, indent=1) + "\n")


def _finished(run: Path) -> bool:
    from corrflow.train.checkpoint import FILE_NAME, load_checkpoint

    if not (run / FILE_NAME).is_file():
        return False
    checkpoint = load_checkpoint(run)
    return checkpoint.step >= checkpoint.train.steps


def _trained(run: Path) -> tuple[int, float]:
    from corrflow.train.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run)
    return checkpoint.step, float(checkpoint.provenance["minutes"])


def ablations(
    data: Annotated[str, typer.Option(help="Training data, as for corrflow-train.")],
    davis: Annotated[Path, typer.Option(help="Data set in the layout of DAVIS to score on.")],
    out: Annotated[Path, typer.Option(help="Folder of runs, artifacts, scores and the table.")],
    minutes: Annotated[float | None, typer.Option(help="Training minutes per model.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps per model instead.")] = None,
    preset: Annotated[str, typer.Option(help="Preset of corrflow-train, for all models but the baseline.")] = "paper",
    split: Annotated[str, typer.Option(help="List of sequences.")] = "dev",
    every: Annotated[int, typer.Option(help="Score every n-th sequence only.")] = 1,
    short_side: Annotated[int | None, typer.Option(help="Short side to score at. [480]")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Protocol of corrflow-eval. [paper with preset paper, else plain]")
    ] = None,
    settings_from: Annotated[str | None, typer.Option(help="Model whose tracking settings to take.")] = None,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 1,
    further: Annotated[list[str] | None, typer.Argument(help="After --: further options of corrflow-train.")] = None,
) -> None:
    """Train the ablations of the paper for the same time each, and write the table.

    Example: bash scripts/ablations --data videos/ --davis DAVIS --minutes 60 --every 2 --short-side 240
    --out ablations -- --images photographs/ --crop 192
    """
    with errors_reported():
        if (minutes is None) == (steps is None):
            raise InputError("expected either --minutes or --steps, got both or neither; give one of them")
        length = ("--minutes", str(minutes)) if minutes is not None else ("--steps", str(steps))
        protocol = protocol or ("paper" if preset == "paper" else "plain")
        scoring = Scoring(davis, split, every, short_side, protocol, workers)
        run(data, length, preset, settings_from, scoring, out, further or [])
        print((out / "table.md").read_text())


if __name__ == "__main__":
    typer.run(ablations)
