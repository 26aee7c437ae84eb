"""The paper's ablations: train each model for the same time, export it, score it, and write the table.

    bash scripts/ablations --data videos/ --davis DAVIS --minutes 60 --out ablations

    OUT/runs/<model>, OUT/artifacts/<model>     as corrflow-train and corrflow-export leave them
    OUT/scores                                  as corrflow-eval leaves them
    OUT/table.md, OUT/table.json                after every model, with those that are done

The same command again goes on where it was stopped.
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
# Model, its switches, and J and F on DAVIS-2017 val as the paper has them (table 2; Vondrick et al. for the baseline).
MODELS: dict[str, tuple[str, tuple[str, ...], tuple[float, float] | None]] = {
    WHOLE: ("all of it", (), (47.7, 51.3)),
    "no-colour-dropout": ("without colour dropout", ("--no-colour-dropout",), (40.5, 39.5)),
    "full-attention": ("without restricted attention", ("--full-attention",), (40.8, 39.7)),
    "no-scheduled-sampling": ("without scheduled sampling", ("--no-scheduled-sampling",), (40.2, 39.2)),
    "no-cycle": ("without cycle", ("--no-cycle",), (41.0, 40.4)),
    "colorization": ("baseline: colorization", (), None),
}
# What the preset colorization changes, for the baseline in another preset's shape.
BASELINE = ("--frames", "2", "--full-attention", "--no-colour-dropout", "--no-cycle", "--no-lightness")
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Row:
    """A model's line of the table: steps and minutes it was trained for, and its score."""

    model: str
    steps: int
    minutes: float
    score: Score


def switches(model: str, preset: str) -> tuple[str, ...]:
    """The options of corrflow-train that make a model of the table, its preset among them."""
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
    """Train, export and score what is missing. length: --minutes or --steps and its value; further: for corrflow-train.

    Raises InputError where `out` holds models that were made in another way.
    """
    from corrflow.train.config import preset as named_preset

    named_preset(preset)
    scoring.sequences()  # raises before hours of training
    _agree(
        out,
        {"data": data, "length": list(length), "preset": preset, "settings_from": settings_from, "further": further},
    )
    rows: list[Row] = []
    untrained = out / "artifacts" / UNTRAINED
    export(f"random-init:{preset}", untrained, settings_from)
    artifacts = [untrained]
    for model in MODELS:
        folder = out / "runs" / model
        options = (*switches(model, preset), "--data", data, *length, "--out", str(folder), *further)
        if not _finished(folder):
            command("train", *options)
            if not _finished(folder):
                raise InputError(f"the run in {folder} was stopped; the same command goes on with it")
        artifacts.append(out / "artifacts" / model)
        export(str(folder), artifacts[-1], settings_from)
        found = scores(artifacts, scoring, out / "scores")
        rows = [Row(UNTRAINED, 0, 0.0, found[0])]
        for name, score in zip(MODELS, found[1:], strict=False):
            rows.append(Row(name, *_trained(out / "runs" / name), score))
        write_file(out / "table.md", table(rows, preset, scoring))
        write_file(out / "table.json", json.dumps(as_json(rows, preset, scoring), indent=1) + "\n")
    return rows


def table(rows: list[Row], preset: str, scoring: Scoring) -> str:
    """Markdown: scores in percent, and beside them what the paper has."""
    whole = next((row.score.both for row in rows if row.model == WHOLE), None)
    rows_at = "480" if scoring.short_side is None else str(scoring.short_side)
    lines = [
        f"# Ablations, preset {preset}",
        "",
        f"{len(scoring.sequences())} sequences of {scoring.split}, protocol {scoring.protocol}, {rows_at} rows."
        " Published: DAVIS-2017 val, 1 M steps.",
        "",
        "| model | steps | minutes | J | F | J&F | against all of it | published J / F |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        title, _, published = MODELS.get(row.model, ("an untrained encoder", (), None))
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
    """The table as JSON values; scores 0..1, published ones in percent."""
    return {
        "preset": preset,
        "split": scoring.split,
        "sequences": scoring.sequences(),
        "protocol": scoring.protocol,
        "short_side": scoring.short_side,
        "models": [
            {
                "model": row.model,
                "switches": [] if row.model == UNTRAINED else list(switches(row.model, preset)),
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


def _agree(out: Path, made: dict[str, Any]) -> None:
    """Models of one table are made alike: write down how, or hold it against what is there."""
    path = out / "made.json"
    if path.is_file():
        before = json.loads(path.read_text())
        if changed := sorted(name for name in made if before.get(name) != made[name]):
            raise InputError(
                f"{out} holds models made with other options ({', '.join(changed)}); give the same ones to go on with"
                " them, or another --out"
            )
    else:
        write_file(path, json.dumps(made, indent=1) + "\n")


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
    data: Annotated[str, typer.Option(help="As corrflow-train takes it.")],
    davis: Annotated[Path, typer.Option(help="Data set in the layout of DAVIS to score on.")],
    out: Annotated[Path, typer.Option(help="Folder of runs, artifacts, scores and the table.")],
    minutes: Annotated[float | None, typer.Option(help="Minutes that each model is trained for.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps that each model is trained for instead.")] = None,
    preset: Annotated[str, typer.Option(help="Of corrflow-train, for all models but the baseline.")] = "paper",
    split: Annotated[str, typer.Option(help="List of sequences.")] = "dev",
    every: Annotated[int, typer.Option(help="Score each such sequence only.")] = 1,
    short_side: Annotated[int | None, typer.Option(help="Short side to score at. [480]")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Of corrflow-eval. [paper with preset paper, else plain]")
    ] = None,
    settings_from: Annotated[str | None, typer.Option(help="Model whose tracking settings to take.")] = None,
    workers: Annotated[int, typer.Option(help="DistributedContext that score.")] = 1,
    further: Annotated[list[str] | None, typer.Argument(help="After --: further options of corrflow-train.")] = None,
) -> None:
    """Train the paper's ablations for the same time each and write its table.

    Example: bash scripts/ablations --data videos/ --davis DAVIS --minutes 60 --every 2 --short-side 240 --out ablations --
    --images photographs/ --crop 192
    """
    with errors_reported():
        if (minutes is None) == (steps is None):
            raise InputError("expected either --minutes or --steps, got both or neither; say how long to train")
        length = ("--minutes", str(minutes)) if minutes is not None else ("--steps", str(steps))
        protocol = protocol or ("paper" if preset == "paper" else "plain")
        scoring = Scoring(davis, split, every, short_side, protocol, workers)
        run(data, length, preset, settings_from, scoring, out, further or [])
        print((out / "table.md").read_text())


if __name__ == "__main__":
    typer.run(ablations)
