"""Dev score of a run over its steps: every retained checkpoint is exported and scored.

    corrflow-train --data videos/ --steps 20000 --keep-every 2000 --out RUN
    bash scripts/dev-curve RUN --davis DAVIS

    RUN/dev-curve/curve.json, curve.png         steps and scores
    RUN/dev-curve/artifacts, scores             as corrflow-export and corrflow-eval leave them
    RUN/tensorboard/dev                         the same curve beside the losses

Existing scores are reused, so the command can be repeated during a run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from corrflow.atomic_files import write_file
from corrflow.bench.experiments.dev_scores import Score, Scoring, export, scores
from corrflow.errors import InputError, errors_reported


def measure(run: Path, scoring: Scoring, settings_from: str | None) -> dict[int, Score]:
    """Score every checkpoint, and write the files of the curve. Raises InputError without a checkpoint."""
    from corrflow.train.checkpoint import FILE_NAME, load_checkpoint, retained_checkpoint

    scoring.sequences()  # raises before anything is exported
    checkpoints = {int(path.stem): path for path in sorted(retained_checkpoint(run, 0).parent.glob("*.safetensors"))}
    if (run / FILE_NAME).is_file():
        newest = load_checkpoint(run)
        if newest.step >= newest.train.steps:  # a run in progress would replace its checkpoint during the read
            checkpoints[newest.step] = run / FILE_NAME
    if not checkpoints:
        raise InputError(
            f"expected checkpoints in {retained_checkpoint(run, 0).parent} or a finished run, got neither;"
            " corrflow-train --keep-every retains them"
        )
    folder = run / "dev-curve"
    artifacts = {step: folder / "artifacts" / f"{step:07d}" for step in sorted(checkpoints)}
    for step, artifact in artifacts.items():
        export(str(checkpoints[step]), artifact, settings_from)
    curve = dict(zip(artifacts, scores(list(artifacts.values()), scoring, folder / "scores"), strict=True))
    _write(curve, scoring, folder, run / "tensorboard" / "dev")
    return curve


def _write(curve: dict[int, Score], scoring: Scoring, folder: Path, events: Path) -> None:
    """Write JSON, plot and TensorBoard events of the curve."""
    from torch.utils.tensorboard import SummaryWriter

    from corrflow.train.curves import plot_curves

    lines = {
        "J&F": [score.both for score in curve.values()],
        "J": [score.region for score in curve.values()],
        "F": [score.contour for score in curve.values()],
    }
    described = {
        "sequences": scoring.sequences(), "protocol": scoring.protocol, "short_side": scoring.short_side,
        "steps": list(curve), **lines,
    }  # fmt: skip
    write_file(folder / "curve.json", json.dumps(described, indent=1) + "\n")
    percent = {name: (list(curve), [100 * value for value in values]) for name, values in lines.items()}
    plot_curves(folder / "curve.png", {"score in percent": percent}, "step")
    shutil.rmtree(events, ignore_errors=True)  # otherwise every call adds the whole curve again
    with SummaryWriter(str(events)) as writer:
        for step, score in curve.items():
            writer.add_scalar("dev/J&F", score.both, step)
            writer.add_scalar("dev/J", score.region, step)
            writer.add_scalar("dev/F", score.contour, step)


def dev_curve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run with retained checkpoints.")],
    davis: Annotated[Path, typer.Option(help="Data set in the layout of DAVIS to score on.")],
    split: Annotated[str, typer.Option(help="List of sequences.")] = "dev",
    every: Annotated[int, typer.Option(help="Score every n-th sequence only.")] = 1,
    short_side: Annotated[int | None, typer.Option(help="Short side to score at. [the artifact's]")] = None,
    protocol: Annotated[str, typer.Option(help="Protocol of corrflow-eval.")] = "default",
    settings_from: Annotated[str | None, typer.Option(help="Model whose tracking settings to take.")] = None,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 1,
) -> None:
    """Score every retained checkpoint of a run and plot the curve.

    Example: bash scripts/dev-curve runs/first --davis DAVIS --every 2 --short-side 240 --settings-from quarter
    """
    with errors_reported():
        curve = measure(run, Scoring(davis, split, every, short_side, protocol, workers), settings_from)
        for step, score in curve.items():
            region, contour, both = (f"{100 * value:5.1f}" for value in (score.region, score.contour, score.both))
            print(f"step {step:8d}  J {region}  F {contour}  J&F {both}")
        print(f"wrote {run / 'dev-curve' / 'curve.png'}")


if __name__ == "__main__":
    typer.run(dev_curve)
