"""corrflow-train: the shell around `loop.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corrflow.errors import InputError, errors_reported

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="""Learn an encoder from raw video alone: no labels, no downloads.

    The same command again goes on with a run that was stopped. tensorboard --logdir RUN shows curves and pictures.

    \b
    Examples:
      corrflow-train --data videos/ --preset quarter --minutes 90 --out runs/first
      corrflow-train --data videos/ --images photographs/ --steps 20000 --out runs/second
      corrflow-train --data 'https://host/shard-{000000..004799}.tar' --steps 200000 --out runs/large
      corrflow-train --data videos/ --preset paper --steps 1000000 --out runs/paper
      corrflow-train --data videos/ --preset paper --steps 1000000 --out runs/no-cycle --no-cycle
      torchrun --nproc-per-node 8 -m corrflow.train --data videos/ --preset full --steps 200000 --out runs/full
      corrflow-train --data videos/ --preset quarter --teacher runs/half --steps 1000 --out runs/taught
      corrflow-export onnx runs/first artifacts/first
    """
)
def train(
    data: Annotated[
        str,
        typer.Option(help="Folder of videos, of folders of pictures, or of corrflow-prepare's shards; or their URLs."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run found there goes on.")],
    preset: Annotated[
        str, typer.Option(help="full, half, quarter; paper (raw dot products); colorization (the paper's rival).")
    ] = "quarter",
    minutes: Annotated[float | None, typer.Option(help="Length of the run; fixes its number of steps.")] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run in optimiser steps.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of photographs to make further clips from.")] = None,
    start_from: Annotated[Path | None, typer.Option(help="Run or checkpoint whose weights to start from.")] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Run or checkpoint, mostly of a wider encoder, whose features to learn in place of colours."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Clips a step, over all processes.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Parts that they are computed in, one after another.")] = 1,
    frames: Annotated[int | None, typer.Option(help="Frames a clip. [3]")] = None,
    fps: Annotated[float, typer.Option(help="Frames a second that clips are sampled at.")] = 6.0,
    crop: Annotated[int, typer.Option(help="Side of the training frames in pixels.")] = 256,
    min_crop_scale: Annotated[float, typer.Option(help="Least share of the short side that a crop shows.")] = 0.7,
    radius: Annotated[int | None, typer.Option(min=1, help="Window radius in cells. [6]")] = None,
    temperature: Annotated[float | None, typer.Option(help="Scores' divisor [0.07; 1 with preset paper].")] = None,
    dropout: Annotated[float, typer.Option(help="Probability of missing colour channels.")] = 0.7,
    teacher_forcing_start: Annotated[
        float | None, typer.Option(help="Probability of true colours at the start. [0.9]")
    ] = None,
    teacher_forcing_end: Annotated[
        float | None, typer.Option(help="Probability of true colours at the end. [0.6]")
    ] = None,
    cycle_weight: Annotated[float | None, typer.Option(min=0.0, help="Weight of the cycle terms. [0.1]")] = None,
    no_colour_dropout: Annotated[
        bool, typer.Option("--no-colour-dropout", help="Ablation: grey frames in place of missing channels.")
    ] = False,
    full_attention: Annotated[
        bool, typer.Option("--full-attention", help="Ablation: search the whole frame, not a window.")
    ] = False,
    no_scheduled_sampling: Annotated[
        bool, typer.Option("--no-scheduled-sampling", help="Ablation: always copy from true colours.")
    ] = False,
    no_cycle: Annotated[bool, typer.Option("--no-cycle", help="Ablation: no cycle terms.")] = False,
    learning_rate: Annotated[float, typer.Option(help="Adam's learning rate at the start.")] = 2e-4,
    ema: Annotated[float, typer.Option(help="Keep a moving average of the weights, such as 0.999; 0: none.")] = 0.0,
    image_share: Annotated[float, typer.Option(help="Share of clips made from photographs.")] = 0.3,
    lightness: Annotated[
        bool | None,
        typer.Option(
            "--lightness/--no-lightness",
            help="Colour classes of Lab, or of its (a, b) plane. [Lab; the plane with presets paper and colorization]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, clips and schedules.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the encoder with torch.compile.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a process [its share of all].")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for decoded clips [~/.cache/corrflow].")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that draw clips ahead [half of --threads, 8 at most].")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a byte after which a shard's server counts as silent.")
    ] = 30.0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    keep_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints that are kept, to score them later. [none]")
    ] = None,
    picture_every: Annotated[
        int, typer.Option(help="Steps between pictures: copied colours, features, matches.")
    ] = 200,
) -> None:
    with errors_reported():
        if (minutes is None) == (steps is None):
            raise InputError("expected either --minutes or --steps, got both or neither; say how long to train")
        if min(save_every, picture_every, batch) < 1 or (minutes is not None and not minutes > 0):
            raise InputError("expected --minutes, --save-every, --picture-every and --batch above 0")
        from corrflow.train import command
        from corrflow.train.config import learning
        from corrflow.train.config import preset as named_preset

        model = named_preset(preset)
        # What a preset or an ablation may set as well has no default here.
        given = {
            "frames": frames,
            "radius": radius,
            "temperature": temperature,
            "teacher_forcing_start": teacher_forcing_start,
            "teacher_forcing_end": teacher_forcing_end,
            "cycle_weight": cycle_weight,
            "lightness": lightness,
        }
        switches = {
            "no-colour-dropout": no_colour_dropout,
            "full-attention": full_attention,
            "no-scheduled-sampling": no_scheduled_sampling,
            "no-cycle": no_cycle,
        }
        always = {
            "steps": steps or 1,
            "batch": batch,
            "accumulate": accumulate,
            "frames_per_second": fps,
            "crop": crop,
            "min_crop_scale": min_crop_scale,
            "dropout": dropout,
            "learning_rate": learning_rate,
            "average": ema,
            "image_share": image_share if images else 0.0,
            "seed": seed,
            "precision": command.choose_precision(precision, device),
            "compile": compile,
            "threads": threads or command.available_threads(),
        }
        config = learning(
            preset,
            always | {name: value for name, value in given.items() if value is not None},
            [name for name, chosen in switches.items() if chosen],
        )
        command.run(
            command.Request(
                data, images, out, cache, minutes, start_from, teacher, save_every, picture_every, device,
                workers or max(1, min(8, config.threads // 2)), keep_every, timeout,
            ),
            model,
            config,
        )  # fmt: skip


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    main()
