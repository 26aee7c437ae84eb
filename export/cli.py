"""Command line of corrflow-export, see `command`."""

from __future__ import annotations

import typer

from corrflow.command_line import Version, with_options
from corrflow.export.options import EngineOptions, OnnxOptions, SettingsOptions

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.callback(
    help="""Export trained encoders for the runtime.

    \b
    Examples:
      corrflow-export onnx runs/first artifacts/first --size 480x854
      corrflow-export onnx runs/first artifacts/first-int8 --precision int8 --calibration-data videos/
      corrflow-export onnx runs/colours artifacts/both --beside runs/pixel --beside-share 0.5
      corrflow-export onnx random-init:quarter artifacts/random
      corrflow-export settings quarter artifacts/tuned search/settings.json
      corrflow-export engine artifacts/first --precision fp16
    """
)
def export(version: Version = False) -> None: ...


@app.command(
    help="""Write encode.onnx, propagate.onnx and artifact.json, compared with PyTorch before.

    The graphs take frames of any size. The tracker works at --size by default, and graphs are compared at this size.
    """
)
@with_options
def onnx(options: OnnxOptions) -> None:
    from corrflow.export import command

    command.export_onnx(options)


@app.command(
    help="""Write a model with other tracking settings; its new propagate.onnx is compared with the fused kernel.

    Example:

        corrflow-export settings quarter artifacts/tuned search/settings.json
    """
)
@with_options
def settings(options: SettingsOptions) -> None:
    from corrflow.export import command

    command.export_settings(options)


@app.command(
    help="""Build TensorRT engines on the machine that runs them, a Jetson or a PC with a GPU; needs no PyTorch.

    Engines are for one video size, precision and number of objects, and for this GPU and TensorRT. They are written
    only if their results agree with onnxruntime. Existing engines that match are kept.

    \b
    Examples:
      corrflow-export engine quarter --size 1080x1920
      corrflow-export engine quarter --frames video.mp4 --precision int8
      corrflow-export engine artifacts/first --size 480x640 --short-side 240 --objects 24
    """
)
@with_options
def engine(options: EngineOptions) -> None:
    from corrflow.export import command

    command.export_engine(options)


def main() -> None:
    """Run the console command."""
    app()


if __name__ == "__main__":
    main()
