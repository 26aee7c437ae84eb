"""corrflow-bench: how fast the op, tracking and training are here, beside their peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corrflow.errors import InputError, errors_reported

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)

Json = Annotated[Path | None, typer.Option("--json", help="Also write every number to this file.")]
BackEnd = Annotated[str, typer.Option(help="auto, tensorrt, onnxruntime-cuda, onnxruntime or onnx-function.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: all.")]


@app.callback(
    help="""Measure speed and memory beside peers in the same run.

    \b
    Examples:
      corrflow-bench op
      corrflow-bench op --case 12:10 --form fused --form blocked --json op.json
      corrflow-bench track --model quarter --model artifacts/int8
      corrflow-bench soak --seconds 1800
      corrflow-bench kernel --json kernel.json
      corrflow-bench batch --part memory --long 90000
      corrflow-bench train --preset quarter --precision bfloat16 --data videos/
      corrflow-bench track video.mp4 --init mask.png --frames 10000 --short-side 240
    """
)
def bench() -> None: ...


@app.command()
def op(
    case: Annotated[
        list[str] | None, typer.Option(help="Window radius, or RADIUS:TOP_K; repeat for several. [6 and 12:10]")
    ] = None,
    cells: Annotated[str, typer.Option(help="Rows x columns of cells.")] = "120x214",
    channels: Annotated[int, typer.Option(min=1, help="Feature channels, C.")] = 64,
    classes: Annotated[int, typer.Option(min=1, help="Label channels, N.")] = 8,
    references: Annotated[int, typer.Option(min=1, help="Reference frames, K.")] = 1,
    form: Annotated[
        list[str] | None, typer.Option(help="Only forms whose names contain this; repeat for several.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that every form gets.")] = 7,
    memory: Annotated[bool, typer.Option(help="Measure extra memory, each form in a process of its own.")] = True,
    threads: Threads = 0,
    json: Json = None,
) -> None:
    """Time every form of LocalSoftCopy on one input: unfold, dense attention, tiles, ONNX, the fused kernels.

    A row shows the median, half the distance between the quartiles, speed against unfold and torch_blocked, arithmetic
    as a share of this machine's fp32 matrix product, the memory a call adds, and how far it is from torch_blocked.
    """
    with errors_reported():
        short_side, columns = _sizes(cells, "--cells as rows x columns, such as 120x214")
        windows = [_window(text) for text in case or ["6", "12:10"]]
        _needs_torch()
        from corrflow.bench import command

        sizes = (short_side, columns, channels, classes, references)
        command.run_op(sizes, windows, form or [], rounds, memory, threads, json)


@app.command()
def track(
    video: Annotated[Path | None, typer.Argument(help="Video file to play [the demo clip].")] = None,
    init: Annotated[Path | None, typer.Option(help="Mask of its first frame, PNG.")] = None,
    model: Annotated[
        list[Path] | None, typer.Option(help="Model: a bundled name, a folder or a zip; repeat to compare. [quarter]")
    ] = None,
    size: Annotated[str, typer.Option(help="Rows x columns that frames are played at.")] = "480x854",
    short_side: Annotated[
        list[int] | None, typer.Option(help="Short side worked at; repeat for several. [480, 240]")
    ] = None,
    memory_frames: Annotated[int, typer.Option(min=0, help="Last frames kept as references, besides the first.")] = 4,
    timed: Annotated[int, typer.Option(min=1, help="Frames timed in a round, once the memory is full.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that every tracker gets.")] = 3,
    peer: Annotated[bool, typer.Option(help="Time the plain PyTorch tracker as well.")] = True,
    backend: Annotated[
        str, typer.Option(help="auto, tensorrt, onnxruntime-cuda, onnxruntime or onnx-function.")
    ] = "auto",
    frames: Annotated[
        int, typer.Option(min=0, help="In place of all that: one stream of so many frames, memory and pace watched.")
    ] = 0,
    threads: Threads = 0,
    json: Json = None,
) -> None:
    """Time tracking one object from a video file to mask files, with every reference at hand.

    The peer is a tracker in plain PyTorch with the first artifact's weights and settings, its windows cut by gather.
    """
    with errors_reported():
        height, width = _sizes(size, "--size as rows x columns, such as 480x854")
        if (video is None) != (init is None):
            raise InputError(
                "expected VIDEO and --init MASK together, got one of them; give both, or none for the demo"
            )
        if frames and frames < 1100:
            raise InputError(f"expected --frames of at least 1100, got {frames}; memory settles over the first 500")
        if peer and not frames:
            _needs_torch()
        from corrflow.bench import command

        command.run_track(
            command.TrackRequest(
                video, init, tuple(model or ()), (height, width), tuple(short_side or ()), memory_frames, timed, rounds, peer,
                frames, threads, json, backend,
            )
        )  # fmt: skip


@app.command()
def train(
    preset: Annotated[list[str] | None, typer.Option(help="Encoder; repeat for several. [quarter]")] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="float32 or bfloat16; repeat for several. [float32]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips a step.")] = 4,
    crop: Annotated[int, typer.Option(min=32, help="Side of the square training frames, in pixels.")] = 192,
    data: Annotated[Path | None, typer.Option(help="Folder of videos, to time drawing clips as well.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that every part gets.")] = 5,
    threads: Threads = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = None,
) -> None:
    """Time a training step and its parts, beside the same step with unfold in float32; and the memory of both.

    The parts are encoder, op, data, and the op's forward pass in the fused kernel. On a GPU the step is timed whole.
    """
    with errors_reported():
        _needs_torch()
        from corrflow.bench import command

        presets, precisions = preset or ["quarter"], precision or ["float32"]
        command.run_train(presets, precisions, batch, crop, rounds, data, threads, device, json)


def _sizes(text: str, expected: str) -> tuple[int, int]:
    """ "120x214" -> (120, 214); raises InputError."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 1 <= int(part) <= 8192 for part in parts):
        raise InputError(f"expected {expected}, got {text!r}")
    return int(parts[0]), int(parts[1])


def _window(text: str) -> tuple[int, int]:
    """ "12:10" -> (12, 10), "6" -> (6, 0); raises InputError."""
    radius, _, top_k = text.partition(":")
    if not radius.isdecimal() or not (top_k or "0").isdecimal():
        raise InputError(f"expected --case as RADIUS or RADIUS:TOP_K, such as 6 or 12:10, got {text!r}")
    return int(radius), int(top_k or 0)


def _needs_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the peers of this benchmark need {error.name}, which is not installed: pip install 'corrflow[export]'"
        ) from error


@app.command()
def kernel(
    runs: Annotated[int, typer.Option(min=1, help="Launches timed in a row.")] = 50,
    json: Json = None,
) -> None:
    """Launch the CUDA kernel on the GPU here: hold it against the CPU at every edge and in every storage, and time it.

    PyTorch and TensorRT are not needed. Fails where the results differ.
    """
    with errors_reported():
        from corrflow.bench import command

        command.run_kernel(runs, json)


@app.command()
def soak(
    seconds: Annotated[float, typer.Option(help="How long; 1800 for a real one.")] = 20.0,
    rate: Annotated[float, typer.Option(help="Frames a second of the camera; more than the model can do.")] = 60.0,
    model: Annotated[Path | None, typer.Option(help="Model to track with [the bundled one].")] = None,
    short_side: Annotated[int, typer.Option(min=16, help="Short side worked at; frames are 240x320.")] = 120,
    backend: Annotated[
        str, typer.Option(help="auto, tensorrt, onnxruntime-cuda, onnxruntime or onnx-function.")
    ] = "auto",
    threads: Threads = 0,
) -> None:
    """Track a made-up camera live while objects come and go; fails where the age of results or memory creeps up."""
    with errors_reported():
        from corrflow.bench.soak import run_soak

        run_soak(model, seconds, rate, short_side, threads, backend)


@app.command()
def batch(
    part: Annotated[
        list[str] | None,
        typer.Option(help="workers, ray, memory or memory-both-ways; repeat for several. [workers and memory]"),
    ] = None,
    clips: Annotated[int, typer.Option(min=4, help="Videos of a run that is timed.")] = 8,
    frames: Annotated[int, typer.Option(min=4, help="Frames of each.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that every run gets.")] = 3,
    long: Annotated[int, typer.Option(min=300, help="Frames of the video that memory is watched on.")] = 2000,
    short: Annotated[int, typer.Option(min=100, help="Frames after which it is to stay as it is.")] = 500,
    radius: Annotated[int, typer.Option(min=1, help="Cells searched for memory; few, to be quick.")] = 2,
    model: Annotated[Path | None, typer.Option(help="Model of the timed runs [the bundled one].")] = None,
    short_side: Annotated[int, typer.Option(min=16, help="Short side worked at in the timed runs.")] = 240,
    json: Json = None,
) -> None:
    """Time a batch with two workers beside one and with Ray beside the plain pool; watch memory on a long video.

    A worker has one thread. Paces count from the time when every worker has done its first video; the whole, with all
    starts, is printed beside it. Memory is that of a process that writes every format.
    """
    with errors_reported():
        from corrflow.bench.batch import run_batch_bench
        from corrflow.runtime.tracking.model_options import ModelOptions

        options = ModelOptions(None if model is None else str(model), short_side=short_side, threads=1)
        run_batch_bench(part or ["workers", "memory"], clips, frames, rounds, long, short, radius, options, json)


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    main()
