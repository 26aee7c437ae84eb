"""Options of corrflow-train."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from corrflow.errors import InputError
from corrflow.train.config import ABLATIONS, DISTIL_TRAINING, TrainConfig, objectives_of, train_config


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of corrflow-train; those with the name of a field of `TrainConfig` set that field.

    Fields that a preset or an ablation may set as well are None by default.
    """

    task: Annotated[str | None, typer.Argument(metavar="[distil]", help="distil: the same as --objective distil.")] = (
        None
    )

    # Run
    data: Annotated[
        str,
        typer.Option(help="Folder of videos, of image folders, or of corrflow-prepare's shards; or URLs of shards."),
    ]
    out: Annotated[Path, typer.Option(help="Folder of the run; an existing run is resumed.")]
    images: Annotated[Path | None, typer.Option(help="Folder of images from which clips are synthesised.")] = None
    preset: Annotated[
        str,
        typer.Option(
            help="full, half or quarter; paper (raw dot products); colorization (baseline: Vondrick et al., 2018)."
        ),
    ] = "quarter"
    minutes: Annotated[float | None, typer.Option(help="Duration, which fixes the number of steps.")] = None
    steps: Annotated[int | None, typer.Option(help="Number of optimiser steps.")] = None
    stride: Annotated[int, typer.Option(help="Pixels between learned features: 4, or 8 at a quarter of the cost.")] = 4
    objective: Annotated[
        str,
        typer.Option(
            help="reconstruction (of colours, the paper's), pixel (places of two crops match), frame (frames of a clip"
            " are alike), distil (features of --teacher), or several with commas."
        ),
    ] = TrainConfig.objective
    start_from: Annotated[Path | None, typer.Option(help="Run or checkpoint with the initial weights.")] = None
    seed: Annotated[int, typer.Option(help="Seed of weights, clips and schedules.")] = TrainConfig.seed

    # Clips
    batch: Annotated[int, typer.Option(min=1, help="Clips per step, over all processes.")] = TrainConfig.batch
    accumulate: Annotated[int, typer.Option(help="Parts of the batch, computed one after another.")] = (
        TrainConfig.accumulate
    )
    frames: Annotated[int | None, typer.Option(help=f"Frames per clip. [{TrainConfig.frames}]")] = None
    frames_per_second: Annotated[float, typer.Option("--fps", help="Sampling rate of clips.")] = (
        TrainConfig.frames_per_second
    )
    crop: Annotated[int, typer.Option(help="Side of the training frames in pixels.")] = TrainConfig.crop
    min_crop_scale: Annotated[float, typer.Option(help="Smallest crop, as a fraction of the short side.")] = (
        TrainConfig.min_crop_scale
    )
    image_share: Annotated[float, typer.Option(help="Share of clips and pairs that are made from images.")] = (
        TrainConfig.image_share
    )

    # Objectives pixel, frame and distil
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of crops per step and objective, over all processes.")] = (
        TrainConfig.pairs
    )
    pair_crop: Annotated[int, typer.Option(help="Side of the crops of a pair in pixels.")] = TrainConfig.pair_crop
    pair_gap: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Objectives pixel and distil: most frames between the two crops; 0: both from one frame."
            f" [{TrainConfig.pair_gap}; {DISTIL_TRAINING['pair_gap']} for distil alone]",
        ),
    ] = None
    frame_gap: Annotated[int, typer.Option(min=0, help="Objective frame: most frames between the two crops.")] = (
        TrainConfig.frame_gap
    )
    min_crop_area: Annotated[
        float, typer.Option(help="Objectives pixel and distil: smallest share of the image's area.")
    ] = TrainConfig.min_crop_area
    positive_distance: Annotated[
        float, typer.Option(help="Largest distance of matching cells, in diagonals of the larger cell.")
    ] = TrainConfig.positive_distance
    momentum: Annotated[float, typer.Option(help="Decay of the target network at the start.")] = TrainConfig.momentum
    pixel_weight: Annotated[float, typer.Option(min=0.0, help="Weight of the pixel-level loss.")] = (
        TrainConfig.pixel_weight
    )
    frame_weight: Annotated[float, typer.Option(min=0.0, help="Weight of the frame-level loss.")] = (
        TrainConfig.frame_weight
    )

    # Objective distil
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="Teacher: a run or checkpoint, a model of corrflow-track, or an encoder as FILE.onnx; repeat to fuse"
            " several."
        ),
    ] = None
    teacher_weight: Annotated[
        list[float] | None, typer.Option(help="Factor of a teacher's unit features; repeat for each. [1]")
    ] = None
    teacher_layout: Annotated[str, typer.Option(help="Axes of the input of ONNX teachers: nchw, nhwc or auto.")] = (
        "auto"
    )
    teacher_colours: Annotated[str, typer.Option(help="Channels of the input of ONNX teachers: rgb or bgr.")] = "rgb"
    teacher_mean: Annotated[str, typer.Option(help="Mean of pixels 0..1, by channel, of ONNX teachers.")] = (
        "0.485,0.456,0.406"
    )
    teacher_std: Annotated[str, typer.Option(help="Standard deviation, by channel, of ONNX teachers.")] = (
        "0.229,0.224,0.225"
    )
    relation_weight: Annotated[float, typer.Option(min=0.0, help="Weight of the difference between the matches.")] = (
        TrainConfig.relation_weight
    )

    # Objective reconstruction
    radius: Annotated[
        int | None, typer.Option(min=1, help=f"Window radius in cells of 4 pixels. [{TrainConfig.radius}]")
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(help=f"Divisor of the similarities. [{TrainConfig.temperature}; 1 with preset paper]"),
    ] = None
    lightness: Annotated[
        bool | None,
        typer.Option(
            "--lightness/--no-lightness",
            help="Colour classes of Lab, or of its (a, b) plane. [Lab; the plane with presets paper and colorization]",
        ),
    ] = None
    dropout: Annotated[float, typer.Option(help="Probability of missing colour channels.")] = TrainConfig.dropout
    teacher_forcing_start: Annotated[
        float | None,
        typer.Option(help=f"Probability of true colours at the start. [{TrainConfig.teacher_forcing_start}]"),
    ] = None
    teacher_forcing_end: Annotated[
        float | None,
        typer.Option(help=f"Probability of true colours at the end. [{TrainConfig.teacher_forcing_end}]"),
    ] = None
    cycle_weight: Annotated[
        float | None, typer.Option(min=0.0, help=f"Weight of the cycle terms. [{TrainConfig.cycle_weight}]")
    ] = None
    no_colour_dropout: Annotated[
        bool, typer.Option("--no-colour-dropout", help="Ablation: grey frames instead of missing channels.")
    ] = False
    full_attention: Annotated[
        bool, typer.Option("--full-attention", help="Ablation: search the whole frame, not a window.")
    ] = False
    no_scheduled_sampling: Annotated[
        bool, typer.Option("--no-scheduled-sampling", help="Ablation: always copy true colours.")
    ] = False
    no_cycle: Annotated[bool, typer.Option("--no-cycle", help="Ablation: no cycle terms.")] = False

    # Optimisation
    learning_rate: Annotated[
        float | None,
        typer.Option(help=f"Adam's rate at the start. [{TrainConfig.learning_rate}; 0.001 without reconstruction]"),
    ] = None
    ema_decay: Annotated[
        float, typer.Option(help="Decay of a moving average of the weights, such as 0.999; 0 for no average.")
    ] = TrainConfig.ema_decay
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto"

    # Machine
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto"
    compile: Annotated[bool, typer.Option("--compile", help="Compile the encoder with torch.compile.")] = False
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a process. [its share of the cores]")] = (
        None
    )
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that load clips and pairs. [half of --threads, at most 8]")
    ] = None
    cache: Annotated[Path | None, typer.Option(help="Folder of decoded clips. [~/.cache/corrflow]")] = None
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a byte from a shard's server until it counts as silent.")
    ] = 30.0

    # Checkpoints and logs
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100
    keep_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between retained checkpoints, for later evaluation. [none]")
    ] = None
    log_images_every: Annotated[
        int, typer.Option(min=1, help="Steps between logged images: predicted colours, features, matches.")
    ] = 200

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise InputError("expected either --minutes or --steps, got both or neither; say how long to train")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"expected --minutes above 0, got {self.minutes}; say how long to train")
        if self.task is not None and (self.task, self.objective) not in (
            ("distil", "distil"), ("distil", TrainConfig.objective),
        ):  # fmt: skip
            raise InputError(
                f"expected distil or nothing before the options, got {self.task!r} with --objective {self.objective};"
                " choose one of both"
            )
        if bool(self.teacher) != ("distil" in objectives_of(self._objective)):
            raise InputError(
                f"expected a --teacher with the objective distil, and with no other, got {self.teacher or 'none'} with"
                f" {self._objective}; write corrflow-train distil --teacher T"
            )

    @property
    def _objective(self) -> str:
        return self.task or self.objective

    def config(self, precision: str, threads: int) -> TrainConfig:
        """Return the training settings; raise InputError for values out of range and options in conflict.

        precision, threads: the values for `auto` and for no --threads
        """
        names = {field.name for field in fields(TrainConfig)} - {"teacher"}  # the digest is known once it is loaded
        changes = {name: getattr(self, name) for name in names & {field.name for field in fields(self)}}
        changes |= {"steps": self.steps or 1, "precision": precision, "threads": threads}
        changes["objective"] = self._objective
        if self.images is None:
            changes["image_share"] = 0.0
        ablations = [name for name in ABLATIONS if getattr(self, name.replace("-", "_"))]
        return train_config(
            self.preset, {name: value for name, value in changes.items() if value is not None}, ablations
        )
