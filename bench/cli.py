"""Command line of corrflow-bench, see `command`."""

from __future__ import annotations

import typer

from corrflow.bench.options import (
    BatchOptions,
    DeviceModelOptions,
    KernelOptions,
    OpOptions,
    SoakOptions,
    TrackOptions,
    TrainOptions,
)
from corrflow.command_line import Version, with_options

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.callback(
    help="""Measure speed and memory, with other implementations in the same run.

    \b
    Examples:
      corrflow-bench op
      corrflow-bench op --case 12:10 --form fused --form blocked --json op.json
      corrflow-bench track --model quarter --model artifacts/int8
      corrflow-bench track video.mp4 --init mask.png --frames 10000 --short-side 240
      corrflow-bench train --preset quarter --precision bfloat16 --data videos/
      corrflow-bench kernel --json kernel.json
      corrflow-bench device-model --model fast --short-side 480
      corrflow-bench soak --seconds 1800
      corrflow-bench batch --part memory --long 90000
    """
)
def bench(version: Version = False) -> None: ...


@app.command(
    help="""Time every form of LocalSoftCopy on one input: unfold, dense attention, tiles, ONNX, fused kernels.

    A row has the median, half the interquartile range, speed relative to unfold and torch_blocked, arithmetic relative
    to this machine's fp32 matrix product, extra memory of a call, and the difference from torch_blocked.
    """
)
@with_options
def op(options: OpOptions) -> None:
    from corrflow.bench import command

    command.run_op(options)


@app.command(
    help="""Time tracking of one object from a video file to mask files, with a full memory.

    The peer is a tracker in plain PyTorch with weights and settings of the first model; it gathers its windows.
    """
)
@with_options
def track(options: TrackOptions) -> None:
    from corrflow.bench import command

    command.run_track(options)


@app.command(
    help="""Time a training step and its parts, and the same step with unfold in float32; measure the memory of both.

    The parts are encoder, op, data, and the op's forward pass in the fused kernel. On a GPU, only the step is timed.
    """
)
@with_options
def train(options: TrainOptions) -> None:
    from corrflow.bench import command

    command.run_train(options)


@app.command(
    help="""Run the CUDA kernel on this machine's GPU: compare it with the CPU in all edge cases, and time it.

    PyTorch and TensorRT are not needed. The command fails if results differ.
    """
)
@with_options
def kernel(options: KernelOptions) -> None:
    from corrflow.bench import command

    command.run_kernel(options)


@app.command(
    "device-model",
    help="""Compute the parts of a frame on Jetson and desktop GPUs from counted bytes and operations.

    Nothing is measured: times are lower bounds. The second table has the settings that reach 30 frames a second.
    """,
)
@with_options
def device_model(options: DeviceModelOptions) -> None:
    from corrflow.bench.device_model import run_device_model

    run_device_model(options)


@app.command(
    help="""Track a synthetic live camera while objects are added and removed.

    The command fails if the latency of results or the memory grows.
    """
)
@with_options
def soak(options: SoakOptions) -> None:
    from corrflow.bench.soak import run_soak

    run_soak(options)


@app.command(
    help="""Compare batches with two workers and one, and with Ray and the plain pool; measure memory on a long video.

    A worker has one thread. Frame rates count from the time when every worker has finished its first video; the total
    time is printed as well. Memory is that of a process that writes every format.
    """
)
@with_options
def batch(options: BatchOptions) -> None:
    from corrflow.bench.batch import run_batch

    run_batch(options)


def main() -> None:
    """Run the console command."""
    app()


if __name__ == "__main__":
    main()
