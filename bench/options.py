"""Options of the commands of corrflow-bench."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from corrflow.errors import InputError

MIN_STREAM_FRAMES = 1100  # memory settles over the first 500

Json = Annotated[Path | None, typer.Option("--json", help="Also write all numbers to this file.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: one for each core.")]
Backend = Annotated[str, typer.Option(help="auto, tensorrt, onnxruntime-cuda, onnxruntime or onnx-function.")]


@dataclass(frozen=True, kw_only=True)
class OpOptions:
    """Options of corrflow-bench op. Raises InputError for values of a wrong format."""

    case: Annotated[
        list[str] | None, typer.Option(help="Window radius, or RADIUS:TOP_K; repeatable. [6 and 12:10]")
    ] = None
    cells: Annotated[str, typer.Option(help="Frame size in cells, height x width.")] = "120x214"
    channels: Annotated[int, typer.Option(min=1, help="Feature channels, C.")] = 64
    classes: Annotated[int, typer.Option(min=1, help="Value channels, N.")] = 8
    references: Annotated[int, typer.Option(min=1, help="Reference frames, K.")] = 1
    form: Annotated[list[str] | None, typer.Option(help="Only forms whose names contain this text; repeatable.")] = None
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every form runs once per round.")] = 7
    memory: Annotated[bool, typer.Option(help="Measure extra memory, each form in a separate process.")] = True
    threads: Threads = 0
    json: Json = None

    def __post_init__(self) -> None:
        parse_size("--cells", self.cells)
        self.windows()

    def windows(self) -> list[tuple[int, int]]:
        """Return (radius, top_k) of each case."""
        return [_window(text) for text in self.case or ["6", "12:10"]]


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """Options of corrflow-bench track. Raises InputError for options that exclude each other."""

    video: Annotated[Path | None, typer.Argument(help="Video file. [demo clip]")] = None
    init: Annotated[Path | None, typer.Option(help="Mask of its first frame, PNG.")] = None
    model: Annotated[
        list[Path] | None, typer.Option(help="Model: a bundled name, a folder or a zip; repeatable. [quarter]")
    ] = None
    size: Annotated[str, typer.Option(help="Size of the video frames, height x width.")] = "480x854"
    short_side: Annotated[
        list[int] | None, typer.Option(help="Short side of working frames; repeatable. [480, 240]")
    ] = None
    memory_frames: Annotated[int, typer.Option(min=0, help="Recent frames kept in memory, besides the first.")] = 4
    timed: Annotated[int, typer.Option(min=1, help="Timed frames per round, with a full memory.")] = 30
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every tracker runs once per round.")] = 3
    peer: Annotated[bool, typer.Option(help="Also time the tracker in plain PyTorch.")] = True
    backend: Backend = "auto"
    frames: Annotated[
        int, typer.Option(min=0, help="Instead: memory and speed over one stream of this number of frames.")
    ] = 0
    threads: Threads = 0
    json: Json = None

    def __post_init__(self) -> None:
        parse_size("--size", self.size)
        if (self.video is None) != (self.init is None):
            raise InputError(
                "expected VIDEO and --init MASK together, got one of them; give both, or none for the demo"
            )
        if 0 < self.frames < MIN_STREAM_FRAMES:
            raise InputError(
                f"expected --frames of {MIN_STREAM_FRAMES} or more, got {self.frames}; memory settles over 500 frames"
            )
        if self.frames and (len(self.model or ()) > 1 or len(self.short_side or ()) > 1):
            raise InputError(
                "expected one --model and one --short-side with --frames, got several; leave out the others"
            )

    @property
    def short_sides(self) -> list[int]:
        """Working sizes to time."""
        return self.short_side or ([240] if self.frames else [480, 240])


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of corrflow-bench train. Raises InputError for options that exclude each other."""

    preset: Annotated[list[str] | None, typer.Option(help="Encoder; repeatable. [quarter]")] = None
    precision: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; repeatable. [float32]")] = None
    batch: Annotated[int, typer.Option(min=1, help="Clips per step.")] = 4
    crop: Annotated[int, typer.Option(min=32, help="Side of the training frames in pixels.")] = 192
    data: Annotated[Path | None, typer.Option(help="Folder of videos, to time the sampling of clips as well.")] = None
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every part runs once per round.")] = 5
    threads: Threads = 0
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu"
    json: Json = None

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"expected --device cpu or cuda, got {self.device!r}; choose one")
        if self.device == "cuda" and self.data is not None:
            raise InputError(
                "expected --data or --device cuda, got both: clips are sampled on the CPU; measure them separately"
            )


@dataclass(frozen=True, kw_only=True)
class KernelOptions:
    """Options of corrflow-bench kernel."""

    runs: Annotated[int, typer.Option(min=1, help="Consecutive launches per time.")] = 50
    json: Json = None


@dataclass(frozen=True, kw_only=True)
class DeviceModelOptions:
    """Options of corrflow-bench device-model. Raises InputError for a frame size of a wrong format."""

    model: Annotated[
        list[Path] | None, typer.Option(help="Model: a bundled name or a folder; repeatable. [quarter, fast]")
    ] = None
    short_side: Annotated[
        list[int] | None, typer.Option(min=16, help="Short side of working frames; repeatable. [480, 240]")
    ] = None
    size: Annotated[str, typer.Option(help="Size of the video frames, height x width.")] = "480x854"
    json: Json = None

    def __post_init__(self) -> None:
        parse_size("--size", self.size)

    @property
    def models(self) -> list[Path]:
        """Models to compute."""
        return self.model or [Path("quarter"), Path("fast")]

    @property
    def short_sides(self) -> list[int]:
        """Working sizes to compute."""
        return self.short_side or [480, 240]

    @property
    def frame(self) -> tuple[int, int]:
        """Size of the video frames (height, width)."""
        return parse_size("--size", self.size)


@dataclass(frozen=True, kw_only=True)
class SoakOptions:
    """Options of corrflow-bench soak. Raises InputError for values out of range."""

    seconds: Annotated[float, typer.Option(help="Duration; 1800 for a thorough run.")] = 20.0
    rate: Annotated[float, typer.Option(help="Frames per second of the camera; more than the model processes.")] = 60.0
    model: Annotated[Path | None, typer.Option(help="Model: a bundled name, a folder or a zip. [quarter]")] = None
    short_side: Annotated[int, typer.Option(min=16, help="Short side of working frames; frames are 240x320.")] = 120
    backend: Backend = "auto"
    threads: Threads = 0

    def __post_init__(self) -> None:
        if not (0 < self.seconds <= 86400 and 0 < self.rate <= 1000):
            raise InputError(
                f"expected up to 86400 seconds and up to 1000 frames per second, got {self.seconds} and {self.rate};"
                " choose values in range"
            )


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Options of corrflow-bench batch. Raises InputError for wrong parts or lengths."""

    PARTS = ("workers", "ray", "memory", "memory-both-ways")

    part: Annotated[list[str] | None, typer.Option(help=f"{', '.join(PARTS)}; repeatable. [workers and memory]")] = None
    clips: Annotated[int, typer.Option(min=4, help="Videos per timed run.")] = 8
    frames: Annotated[int, typer.Option(min=4, help="Frames per video.")] = 24
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every configuration runs once per round.")] = 3
    long: Annotated[int, typer.Option(min=300, help="Frames of the long video for memory.")] = 2000
    short: Annotated[int, typer.Option(min=100, help="Frames after which memory must not grow.")] = 500
    radius: Annotated[int, typer.Option(min=1, help="Search radius in cells for memory; small, to be fast.")] = 2
    model: Annotated[Path | None, typer.Option(help="Model of timed runs. [quarter]")] = None
    short_side: Annotated[int, typer.Option(min=16, help="Short side of working frames in timed runs.")] = 240
    json: Json = None

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in self.PARTS:
                raise InputError(f"expected --part among {', '.join(self.PARTS)}, got {part!r}; choose one")
        if not self.short < self.long // 2:
            raise InputError(f"expected --long above twice --short, got {self.long} and {self.short}; raise --long")

    @property
    def parts(self) -> list[str]:
        """Requested parts."""
        return self.part or ["workers", "memory"]


def parse_size(option: str, text: str) -> tuple[int, int]:
    """Parse "120x214" to (120, 214). Raises InputError."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 1 <= int(part) <= 8192 for part in parts):
        raise InputError(f"expected {option} as height x width, got {text!r}; give a size such as 120x214")
    return int(parts[0]), int(parts[1])


def _window(text: str) -> tuple[int, int]:
    """Parse "12:10" to (12, 10) and "6" to (6, 0). Raises InputError."""
    radius, _, top_k = text.partition(":")
    if not radius.isdecimal() or not (top_k or "0").isdecimal():
        raise InputError(f"expected --case as RADIUS or RADIUS:TOP_K, got {text!r}; give a case such as 6 or 12:10")
    return int(radius), int(top_k or 0)
