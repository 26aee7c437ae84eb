"""corrflow-export: the shell around the exporters."""

from __future__ import annotations

from contextlib import nullcontext
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


@app.callback(
    help="""Turn a training run into what the runtime reads.

    \b
    Examples:
      corrflow-export onnx runs/first artifacts/first --size 480x854
      corrflow-export onnx runs/first artifacts/first-int8 --precision int8 --calibration-data videos/
      corrflow-export onnx random-init:quarter artifacts/untrained
      corrflow-export settings quarter artifacts/tuned search/settings.json
      corrflow-export engine artifacts/first --precision fp16
    """
)
def export() -> None: ...


@app.command()
def onnx(
    run: Annotated[str, typer.Argument(help="Run folder or checkpoint file, or random-init:PRESET[:SEED].")],
    artifact: Annotated[Path, typer.Argument(help="Folder to write the artifact to.")],
    size: Annotated[str, typer.Option(help="Rows x columns to work at; other sizes run as well.")] = "480x854",
    memory_frames: Annotated[int, typer.Option(help="Last frames kept as references, besides the first.")] = 5,
    radius: Annotated[
        str, typer.Option(help="Window radius in cells of 4 pixels; two such as 8,12: first frame, others.")
    ] = "8",
    dilation: Annotated[
        str, typer.Option(help="Distance between window positions in cells; two such as 1,2: first frame, others.")
    ] = "1",
    top_k: Annotated[int, typer.Option(help="Scores kept for each position; 0 keeps all.")] = 10,
    temperature: Annotated[float | None, typer.Option(help="Divisor of the scores [that of training].")] = None,
    move_windows: Annotated[bool, typer.Option(help="Move windows along with the objects.")] = True,
    refine_radius: Annotated[
        int, typer.Option(help="Radius in pixels of the filter that brings outlines to the picture's edges; 0: none.")
    ] = 8,
    colour_share: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Share of a score that raw colours have beside the features [the run's]."),
    ] = None,
    coarse_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the learned part for features at half the size [the run's]."),
    ] = None,
    settings_from: Annotated[Path | None, typer.Option(help="Model whose settings and shares to take instead.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, or int8 for an encoder with 8-bit convolutions.")] = "fp32",
    calibration_data: Annotated[
        Path | None, typer.Option(help="For int8: folder of videos or pictures of the kind to be tracked.")
    ] = None,
    davis: Annotated[Path | None, typer.Option(help="For int8: DAVIS root to score both precisions on.")] = None,
    split: Annotated[str, typer.Option(help="Split to score them on: ImageSets/<year>/<split>.txt.")] = "val",
) -> None:
    """Write encode.onnx, propagate.onnx and artifact.json, held against PyTorch first.

    The graphs take frames of any height and width; --size is what the tracker works at by default and what is compared.
    """
    with errors_reported():
        height, width = _size(size)
        if precision not in ("fp32", "int8"):
            raise InputError(f"expected --precision fp32 or int8, got {precision!r}")
        if (precision == "int8") != (calibration_data is not None):
            raise InputError(
                "expected --precision int8 and --calibration-data FOLDER together, got one of them;"
                " 8-bit scales are fitted to the frames in that folder"
            )
        if davis is not None and calibration_data is None:
            raise InputError("expected --davis with --precision int8, got it alone; corrflow-eval scores an artifact")
        try:
            from corrflow.export.to_onnx import export_artifact, trained_temperature
        except ImportError as error:
            raise InputError(
                f"exporting needs {error.name}, which is not installed: pip install 'corrflow[export]'"
            ) from error
        from rich.console import Console
        from rich.table import Table

        from corrflow.runtime.artifacts.artifact import load_artifact
        from corrflow.runtime.artifacts.bundled import resolve_model
        from corrflow.runtime.settings import TrackingSettings, last_frames

        if settings_from is not None:
            example = load_artifact(resolve_model(settings_from))
            settings = example.settings
            shares = example.provenance.get("model", {})
            if colour_share is None:
                colour_share = float(shares.get("colour_share", 0.0))
            if coarse_share is None:
                coarse_share = float(shares.get("coarse_share", 0.0))
        else:
            settings = TrackingSettings(
                short_side=min(height, width),
                recent_offsets=last_frames(memory_frames),
                radius=_one_or_two("radius", radius),
                dilation=_one_or_two("dilation", dilation),
                top_k=top_k,
                temperature=trained_temperature(run) if temperature is None else temperature,
                move_windows=move_windows,
                refine_radius=refine_radius,
            )
        console = Console()
        scored = None if davis is None else (davis, split)
        # The scores have a progress bar of their own, and two live displays cannot share a terminal.
        with nullcontext() if scored else console.status("exporting and comparing with PyTorch"):
            exported = export_artifact(
                run, artifact, settings, (height, width), calibration_data, scored, colour_share, coarse_share
            )
        table = Table("graph", "case", "largest difference", "allowed", title="onnxruntime against PyTorch")
        for difference in exported.differences:
            table.add_row(difference.graph, difference.case, f"{difference.largest:.1e}", f"{difference.tolerance:.0e}")
        console.print(table)
        if (quantised := exported.quantised) is not None:
            console.print(
                f"int8 encoder: {quantised.seconds * 1e3:.1f} ms a frame of {height}x{width}, fp32"
                f" {quantised.seconds_float * 1e3:.1f} ms; mean cosine between their features"
                f" {quantised.similarity:.4f}; calibrated on {quantised.frames} frames",
                highlight=False,
            )
            if exported.scores is not None:
                before, after = exported.scores
                console.print(
                    f"J&F on {split}: fp32 {100 * before:.1f}, int8 {100 * after:.1f},"
                    f" lost {100 * (before - after):.1f}",
                    highlight=False,
                )
            if not quantised.is_faster:
                console.print("int8 is not faster on this processor, so the artifact holds the fp32 encoder")
        console.print(f"wrote {artifact}; next: corrflow-track VIDEO --init MASK.png --model {artifact}")


@app.command()
def settings(
    source: Annotated[Path, typer.Argument(help="Model to take the encoder from.")],
    artifact: Annotated[Path, typer.Argument(help="Folder to write the new artifact to.")],
    file: Annotated[Path, typer.Argument(help="Tracking settings as JSON: settings.json of corrflow-eval search.")],
) -> None:
    """Write an artifact with other tracking settings; its propagate.onnx is made anew and compared first.

    Example:

        corrflow-export settings quarter artifacts/tuned search/settings.json
    """
    with errors_reported():
        try:
            from corrflow.export.retune import export_with_settings, read_settings
        except ImportError as error:
            raise InputError(
                f"exporting needs {error.name}, which is not installed: pip install 'corrflow[export]'"
            ) from error
        from corrflow.runtime.artifacts.artifact import load_artifact
        from corrflow.runtime.artifacts.bundled import resolve_model

        apart = export_with_settings(load_artifact(resolve_model(source)), read_settings(file), artifact)
        print(f"wrote {artifact}; its propagation differs from the fused kernel by at most {apart:.1e}")


@app.command(
    help="""Build TensorRT engines on the machine that will run them, a Jetson or a PC with a GPU; needs no PyTorch.

    Engines are for one size of video, precision and number of objects, and for this GPU and TensorRT. Their labels are
    compared with onnxruntime's before anything is written. Engines that are there and suit are left alone.

    \b
    Examples:
      corrflow-export engine quarter --size 1080x1920
      corrflow-export engine quarter --frames video.mp4 --precision int8
      corrflow-export engine artifacts/first --size 480x640 --short-side 240 --objects 24
    """
)
def engine(
    artifact: Annotated[Path, typer.Argument(help="Model; the engines go beside it.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16, or int8, which is fitted to frames.")] = "fp16",
    size: Annotated[
        str | None, typer.Option(help="Rows x columns of the video or camera [those of --frames, else 480x854].")
    ] = None,
    short_side: Annotated[
        int | None, typer.Option(min=0, help="Short side to track at, as for corrflow-track [the artifact's].")
    ] = None,
    objects: Annotated[int, typer.Option(help="Most label channels: one for a mask, one for a keypoint.")] = 8,
    references: Annotated[
        int | None, typer.Option(help="Most frames remembered; fewer are quicker to build and run [the artifact's].")
    ] = None,
    plugin: Annotated[str, typer.Option(help="on: the CUDA kernel; off: the ONNX function, which is slower.")] = "on",
    frames: Annotated[Path | None, typer.Option(help="Video or pictures to compare on [the demo's clip].")] = None,
    calibration_data: Annotated[
        Path | None,
        typer.Option(
            help="Video or folder of them to fit int8 to [--frames, unless the artifact has an int8 encoder]."
        ),
    ] = None,
) -> None:
    with errors_reported():
        if plugin not in ("on", "off"):
            raise InputError(f"expected --plugin on or off, got {plugin!r}")
        if calibration_data is not None and precision != "int8":
            raise InputError(
                f"expected --calibration-data with --precision int8, got it with {precision}; only int8 is fitted to frames"
            )
        try:
            from corrflow.export.tensorrt_builder import build_engines, calibration_pictures, pictures
        except ImportError as error:
            raise InputError(
                f"engines need {error.name}, which is not installed: pip install 'corrflow[tensorrt]'"
            ) from error
        from rich.console import Console
        from rich.table import Table

        from corrflow.runtime.artifacts.artifact import ENCODE_INT8, load_artifact
        from corrflow.runtime.artifacts.bundled import resolve_model
        from corrflow.runtime.backends.cuda_device import CudaDevice
        from corrflow.runtime.backends.engine_files import writable_folder
        from corrflow.runtime.backends.tensorrt import import_tensorrt
        from corrflow.runtime.tracking.geometry import Geometry

        console = Console()
        loaded = load_artifact(resolve_model(artifact))
        given = _size(size or "480x854")
        if size is None and frames is not None:
            for first in pictures(frames):
                given = first.shape[0], first.shape[1]
                break
        frame = Geometry.of(given, loaded.settings.short_side if short_side is None else short_side).working
        writable_folder(loaded)  # building takes minutes
        trt, device = import_tensorrt(), CudaDevice()
        fits = precision == "int8" and (calibration_data is not None or ENCODE_INT8 not in loaded.files)
        tracked = f"{frame[0]}x{frame[1]}"
        with console.status(f"building for frames tracked at {tracked}, and comparing with onnxruntime"):
            built = build_engines(
                loaded,
                lambda: pictures(frames),
                trt,
                device,
                precision=precision,
                frame=frame,
                references=loaded.settings.references if references is None else references,
                labels=-(-objects // 8) * 8,  # the tracker has channels in blocks of eight
                plugin=plugin == "on",
                calibration=calibration_pictures(calibration_data or frames, min(frame)) if fits else None,
            )
        if not built.why:
            console.print("the engines that are there suit; nothing was built", highlight=False)
            return
        console.print(
            f"built for frames tracked at {tracked} in {built.seconds:.0f} s, because {built.why}", highlight=False
        )
        if built.similarity is not None:
            console.print(
                f"int8 on onnxruntime: mean cosine with fp32's features {built.similarity:.4f}", highlight=False
            )
        table = Table("engine", "MB", "ms", "slowest layers (ms)", title="layer times on zeros")
        for timing in built.timings:
            slowest = "\n".join(f"{ms:.3f} {name[:70]}" for name, ms in timing.layers[:5])
            table.add_row(timing.name, f"{timing.bytes / 1e6:.1f}", f"{timing.milliseconds:.2f}", slowest)
        console.print(table)
        if (found := built.agreement) is not None:
            console.print(
                f"against onnxruntime in fp32, {found.frames} frames: another highest label in at most"
                f" {found.other_winner:.2%} of the cells; labels differ by {found.mean:.1e} on average and"
                f" {found.largest:.1e} at most",
                highlight=False,
            )
        at = "" if short_side is None else f" --short-side {short_side}"
        console.print(
            f"wrote {loaded.folder}/engines; next: corrflow-track VIDEO --init MASK.png --model {artifact}"
            f" --backend tensorrt{at}",
            highlight=False,
        )


def _size(text: str) -> tuple[int, int]:
    """ "480x854" -> (480, 854); raises InputError."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not all(16 <= int(p) <= 8192 for p in parts):
        raise InputError(f"expected --size as rows x columns from 16 to 8192, such as 480x854, got {text!r}")
    return int(parts[0]), int(parts[1])


def _one_or_two(option: str, text: str) -> tuple[int, ...]:
    """ "1,2" -> (1, 2); raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise InputError(f"expected --{option} as one whole number or two such as 1,2, got {text!r}")
    return tuple(int(part) for part in parts)


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    main()
