"""Options of the commands of corrflow-export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corrflow.errors import InputError

if TYPE_CHECKING:
    from corrflow.runtime.settings import TrackingSettings

DEFAULT_SIZE = "480x854"


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """Options of corrflow-export onnx. Raises InputError for options that exclude each other."""

    run: Annotated[str, typer.Argument(help="Run folder, checkpoint file or random-init:PRESET[:SEED].")]
    artifact: Annotated[Path, typer.Argument(help="Folder to write the artifact to.")]
    size: Annotated[str, typer.Option(help="Default working size, height x width; graphs run at all sizes.")] = (
        DEFAULT_SIZE
    )
    memory_frames: Annotated[int, typer.Option(help="Recent frames kept in memory, besides the first frame.")] = 5
    radius: Annotated[
        str, typer.Option(help="Window radius in cells of 4 pixels; two values such as 8,12: first frame, others.")
    ] = "8"
    dilation: Annotated[
        str,
        typer.Option(help="Distance of window positions in cells; two values such as 1,2: first frame, others."),
    ] = "1"
    top_k: Annotated[int, typer.Option(help="Best scores per position that are kept; 0: all.")] = 10
    temperature: Annotated[float | None, typer.Option(help="Divisor of the scores. [that of training]")] = None
    move_windows: Annotated[bool, typer.Option(help="Move search windows with the objects.")] = True
    refine_radius: Annotated[
        int, typer.Option(help="Radius in pixels of the guided filter that refines mask edges; 0: none.")
    ] = 8
    target_model: Annotated[
        bool, typer.Option(help="Decide doubtful cells by a model of each object, fitted while it is tracked.")
    ] = True
    colour_share: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Weight of raw colours in a score. [that of the run]")
    ] = None
    coarse_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Weight of half-size features among learned ones. [that of the run]"),
    ] = None
    beside: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Second encoder whose features are concatenated, such as one of --stride 8."),
    ] = None
    beside_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Weight of --beside among learned features. [0.5]")
    ] = None
    settings_from: Annotated[
        Path | None, typer.Option(help="Model whose settings and weights of colours and half-size features to use.")
    ] = None
    precision: Annotated[str, typer.Option(help="fp32, or int8 for 8-bit convolutions in the encoder.")] = "fp32"
    calibration_data: Annotated[
        Path | None, typer.Option(help="For int8: folder of representative videos or images.")
    ] = None
    davis: Annotated[Path | None, typer.Option(help="For int8: DAVIS root to score both precisions on.")] = None
    split: Annotated[str, typer.Option(help="Split for --davis: ImageSets/<year>/<split>.txt.")] = "val"

    def __post_init__(self) -> None:
        parse_size(self.size)
        if self.precision not in ("fp32", "int8"):
            raise InputError(f"expected --precision fp32 or int8, got {self.precision!r}; choose one")
        if (self.precision == "int8") != (self.calibration_data is not None):
            raise InputError(
                "expected --precision int8 and --calibration-data FOLDER together, got one of them;"
                " 8-bit scales are calibrated on the frames in that folder"
            )
        if self.beside_share is not None and self.beside is None:
            raise InputError("expected --beside-share with --beside RUN, got --beside-share alone; name the second run")
        if self.davis is not None and self.calibration_data is None:
            raise InputError(
                "expected --davis with --precision int8, got --davis alone; score artifacts with corrflow-eval"
            )

    def settings(self, temperature: float) -> TrackingSettings:
        """Return the tracking settings of these options. temperature: value of training"""
        from corrflow.runtime.settings import TrackingSettings, last_frames

        return TrackingSettings(
            short_side=min(parse_size(self.size)),
            recent_offsets=last_frames(self.memory_frames),
            radius=_one_or_two("radius", self.radius),
            dilation=_one_or_two("dilation", self.dilation),
            top_k=self.top_k,
            temperature=temperature if self.temperature is None else self.temperature,
            move_windows=self.move_windows,
            refine_radius=self.refine_radius,
            target_model=self.target_model,
        )


@dataclass(frozen=True, kw_only=True)
class SettingsOptions:
    """Options of corrflow-export settings."""

    source: Annotated[Path, typer.Argument(help="Model with the encoder.")]
    artifact: Annotated[Path, typer.Argument(help="Folder to write the new artifact to.")]
    file: Annotated[Path, typer.Argument(help="Tracking settings as JSON: settings.json of corrflow-eval search.")]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of corrflow-export engine. Raises InputError for options that exclude each other."""

    artifact: Annotated[Path, typer.Argument(help="Model; engines are written to its folder.")]
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8, which needs calibration frames.")] = "fp16"
    size: Annotated[
        str | None, typer.Option(help=f"Video size, height x width. [that of --frames, else {DEFAULT_SIZE}]")
    ] = None
    short_side: Annotated[
        int | None, typer.Option(min=0, help="Short side of working frames, as for corrflow-track. [the model's]")
    ] = None
    objects: Annotated[int, typer.Option(help="Maximum of channels: one per mask, one per keypoint.")] = 8
    reference_frames: Annotated[
        int | None,
        typer.Option(help="Maximum of reference frames; fewer are faster to build and to run. [the model's]"),
    ] = None
    plugin: Annotated[str, typer.Option(help="on: CUDA kernel; off: ONNX function, which is slower.")] = "on"
    frames: Annotated[
        Path | None, typer.Option(help="Video or images for the comparison with onnxruntime. [demo clip]")
    ] = None
    calibration_data: Annotated[
        Path | None,
        typer.Option(help="For int8: video, or folder of videos. [--frames, unless the model has an int8 encoder]"),
    ] = None

    def __post_init__(self) -> None:
        if self.plugin not in ("on", "off"):
            raise InputError(f"expected --plugin on or off, got {self.plugin!r}; choose one")
        if self.calibration_data is not None and self.precision != "int8":
            raise InputError(
                f"expected --calibration-data with --precision int8, got {self.precision}; only int8 is calibrated"
            )


def parse_size(text: str) -> tuple[int, int]:
    """Parse "480x854" to (480, 854). Raises InputError."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not all(16 <= int(p) <= 8192 for p in parts):
        raise InputError(
            f"expected --size as height x width from 16 to 8192, got {text!r}; give a size such as {DEFAULT_SIZE}"
        )
    return int(parts[0]), int(parts[1])


def _one_or_two(option: str, text: str) -> tuple[int, ...]:
    """Parse "1,2" to (1, 2). Raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise InputError(f"expected --{option} as one whole number or two, got {text!r}; give values such as 1,2")
    return tuple(int(part) for part in parts)
