"""corrflow-train: the shell around `loop.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corrflow.plugins.errors import InputError, errors_reported

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="""Learn an encoder from raw video alone: no labels, no downloads.

    The same command again goes on with a run that was stopped. tensorboard --logdir RUN shows curves and pictures.

    \b
    Examples:
      corrflow-train --data videos/ --preset quarter --minutes 90 --out runs/first
      corrflow-train --data videos/ --stills photographs/ --steps 20000 --out runs/second
      corrflow-train --data videos/ --preset paper --steps 1000000 --out runs/paper
      corrflow-export onnx runs/first artifacts/first
    """
)
def train(
    data: Annotated[Path, typer.Option(help="Folder of videos, or of folders of pictures (one video each).")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run found there goes on.")],
    preset: Annotated[str, typer.Option(help="Encoder: full, half, quarter, or paper (raw dot products).")] = "quarter",
    minutes: Annotated[float | None, typer.Option(help="Length of the run; fixes its number of steps.")] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run in optimiser steps.")] = None,
    stills: Annotated[Path | None, typer.Option(help="Folder of photographs to make further clips from.")] = None,
    start_from: Annotated[Path | None, typer.Option(help="Run or checkpoint whose weights to start from.")] = None,
    batch: Annotated[int, typer.Option(help="Clips a step.")] = 8,
    frames: Annotated[int, typer.Option(help="Frames a clip.")] = 3,
    fps: Annotated[float, typer.Option(help="Frames a second that clips are sampled at.")] = 6.0,
    crop: Annotated[int, typer.Option(help="Side of the training frames in pixels.")] = 256,
    smallest_view: Annotated[float, typer.Option(help="Least share of the short side that a crop shows.")] = 0.7,
    radius: Annotated[int, typer.Option(help="Window radius in cells; 0 searches the whole frame.")] = 6,
    temperature: Annotated[float | None, typer.Option(help="Scores' divisor [0.07; 1 with preset paper].")] = None,
    dropout: Annotated[float, typer.Option(help="Probability of missing colour channels.")] = 0.7,
    grey_input: Annotated[bool, typer.Option("--grey-input", help="Grey input in place of colour dropout.")] = False,
    truth_start: Annotated[float, typer.Option(help="Probability of true colours at the start.")] = 0.9,
    truth_end: Annotated[float, typer.Option(help="Probability of true colours at the end.")] = 0.6,
    cycle_weight: Annotated[float, typer.Option(help="Weight of the cycle terms; 0 leaves them out.")] = 0.1,
    learning_rate: Annotated[float, typer.Option(help="Adam's learning rate at the start.")] = 2e-4,
    stills_share: Annotated[float, typer.Option(help="Share of clips made from photographs.")] = 0.3,
    lightness: Annotated[
        bool, typer.Option("--lightness/--no-lightness", help="Colour classes of Lab, or of its (a, b) plane.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of weights, clips and schedules.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads [all].")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for decoded clips [~/.cache/corrflow].")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    picture_every: Annotated[int, typer.Option(help="Steps between pictures of reconstructions.")] = 200,
) -> None:
    with errors_reported():
        if (minutes is None) == (steps is None):
            raise InputError("expected either --minutes or --steps, got both or neither; say how long to train")
        if min(save_every, picture_every, batch) < 1 or (minutes is not None and not minutes > 0):
            raise InputError("expected --minutes, --save-every, --picture-every and --batch above 0")
        from corrflow.train import command
        from corrflow.train.config import TrainConfig
        from corrflow.train.config import preset as named_preset

        model = named_preset(preset)
        config = TrainConfig(
            steps=steps or 1,
            batch=batch,
            frames=frames,
            frames_per_second=fps,
            crop=crop,
            smallest_view=smallest_view,
            radius=radius,
            temperature=temperature if temperature is not None else (0.07 if model.unit_norm else 1.0),
            dropout=dropout,
            grey_input=grey_input,
            truth_start=truth_start,
            truth_end=truth_end,
            cycle_weight=cycle_weight,
            learning_rate=learning_rate,
            stills_share=stills_share if stills else 0.0,
            lightness=lightness,
            seed=seed,
            precision=command.choose_precision(precision),
            threads=threads or command.available_threads(),
        )
        command.run(
            command.Request(data, stills, out, cache, minutes, start_from, save_every, picture_every), model, config
        )


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    main()
