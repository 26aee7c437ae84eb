"""Commands of corrflow-export: checks, progress and messages around the exporters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.table import Table

from corrflow.errors import InputError
from corrflow.export.options import DEFAULT_SIZE, EngineOptions, OnnxOptions, SettingsOptions, parse_size
from corrflow.output_paths import check_apart, check_folder_of


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Turn an import error into InputError with the install command of an extra."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"expected {error.name} for this command, found none; pip install 'corrflow[{extra}]'"
        ) from error


def export_onnx(options: OnnxOptions) -> None:
    """Export a run and print the measurements."""
    with _needs("export"):
        from corrflow.export.to_onnx import export_artifact, trained_temperature
    from corrflow.runtime.artifacts.artifact import DESCRIPTION, load_artifact
    from corrflow.runtime.artifacts.bundled import resolve_model

    size = height, width = parse_size(options.size)
    read = [options.run, options.beside, options.calibration_data, options.davis, options.settings_from]
    check_apart(read, folders=[options.artifact])
    check_folder_of(options.artifact, DESCRIPTION)
    colour_share, coarse_share = options.colour_share, options.coarse_share
    if options.settings_from is None:
        settings = options.settings(trained_temperature(options.run))
    else:
        model = load_artifact(resolve_model(options.settings_from))
        settings, shares = model.settings, _shares(model.name, model.provenance)
        colour_share = shares[0] if colour_share is None else colour_share
        coarse_share = shares[1] if coarse_share is None else coarse_share
    console = Console()
    beside = None
    if options.beside is not None:
        beside = options.beside, 0.5 if options.beside_share is None else options.beside_share
    davis = None if options.davis is None else (options.davis, options.split)
    # Scoring has its own progress bar, and two live displays cannot share a terminal.
    with nullcontext() if davis else console.status("exporting and comparing with PyTorch"):
        report = export_artifact(
            options.run, options.artifact, settings, size, options.calibration_data, davis, colour_share,
            coarse_share, beside,
        )  # fmt: skip
    table = Table("graph", "case", "largest difference", "allowed", title="onnxruntime compared with PyTorch")
    for difference in report.differences:
        table.add_row(difference.graph, difference.case, f"{difference.largest:.1e}", f"{difference.tolerance:.0e}")
    console.print(table)
    if (quantised := report.quantised) is not None:
        console.print(
            f"int8 encoder: {quantised.seconds * 1e3:.1f} ms per frame of {height}x{width}, fp32"
            f" {quantised.seconds_float * 1e3:.1f} ms; mean cosine similarity of their features"
            f" {quantised.similarity:.4f}; calibrated on {quantised.frames} frames",
            highlight=False,
        )
        if report.scores is not None:
            before, after = report.scores
            console.print(
                f"J&F on {options.split}: fp32 {100 * before:.1f}, int8 {100 * after:.1f},"
                f" lost {100 * (before - after):.1f}",
                highlight=False,
            )
        if not quantised.is_faster:
            console.print("int8 is not faster on this processor, so the artifact contains the fp32 encoder")
    console.print(f"wrote {options.artifact}; next: corrflow-track VIDEO --init MASK.png --model {options.artifact}")


def _shares(name: str, provenance: Mapping[str, Any]) -> tuple[float, float]:
    """Return a model's weights of raw colours in a score, and of half-size features among the learned ones.

    In a pair of encoders, the second has its part of the learned features. Raises InputError for other provenance.
    """
    first, beside = provenance.get("model", {}), provenance.get("beside")
    try:
        coarse = float(first.get("coarse_share", 0.0))
        if beside is not None:
            share = float(beside["share"])
            coarse = (1 - share) * coarse + share * float(beside["model"].get("coarse_share", 0.0))
        return float(first.get("colour_share", 0.0)), coarse
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"expected weights of colours and half-size features in the provenance of {name}, got others;"
            " give --colour-share and --coarse-share, and settings by corrflow-export settings"
        ) from error


def export_settings(options: SettingsOptions) -> None:
    """Export a model with other tracking settings."""
    with _needs("export"):
        from corrflow.export.retune import export_with_settings, read_settings
    from corrflow.runtime.artifacts.artifact import DESCRIPTION, load_artifact
    from corrflow.runtime.artifacts.bundled import resolve_model

    model = load_artifact(resolve_model(options.source))
    check_apart([model.folder, options.file], folders=[options.artifact])
    check_folder_of(options.artifact, DESCRIPTION)
    difference = export_with_settings(model, read_settings(options.file), options.artifact)
    print(f"wrote {options.artifact}; its propagation differs from the fused kernel by at most {difference:.1e}")


def export_engine(options: EngineOptions) -> None:
    """Build the engines of a model on this machine and print the measurements."""
    with _needs("tensorrt"):
        from corrflow.export.tensorrt_builder import build_engines, calibration_frames_of, comparison_frames
    from corrflow.runtime.artifacts.artifact import ENCODE_INT8, load_artifact
    from corrflow.runtime.artifacts.bundled import resolve_model
    from corrflow.runtime.backends.cuda_device import CudaDevice
    from corrflow.runtime.backends.engine_files import writable_folder
    from corrflow.runtime.backends.tensorrt import import_tensorrt
    from corrflow.runtime.tracking.geometry import Geometry

    console = Console()
    model = load_artifact(resolve_model(options.artifact))
    height, width = parse_size(options.size or DEFAULT_SIZE)
    if options.size is None and options.frames is not None:
        height, width = next((image.shape[:2] for image in comparison_frames(options.frames)), (height, width))
    settings, short_side = model.settings, options.short_side
    frame = Geometry.of((height, width), settings.short_side if short_side is None else short_side).working
    num_reference_frames = options.reference_frames
    if num_reference_frames is None:
        num_reference_frames = settings.num_reference_frames
    writable_folder(model)  # fails before minutes of building
    trt, device = import_tensorrt(), CudaDevice()
    calibration = None
    if options.precision == "int8" and (options.calibration_data is not None or ENCODE_INT8 not in model.files):
        calibration = calibration_frames_of(options.calibration_data or options.frames, min(frame))
    working = f"{frame[0]}x{frame[1]}"
    with console.status(f"building for working frames of {working}, and comparing with onnxruntime"):
        report = build_engines(
            model,
            lambda: comparison_frames(options.frames),
            trt,
            device,
            precision=options.precision,
            frame=frame,
            num_reference_frames=num_reference_frames,
            num_channels=-(-options.objects // 8) * 8,  # the tracker allocates channels in blocks of eight
            plugin=options.plugin == "on",
            calibration=calibration,
        )
    if not report.reason:
        console.print("existing engines match; nothing was built", highlight=False)
        return
    console.print(
        f"built for working frames of {working} in {report.seconds:.0f} s, because {report.reason}", highlight=False
    )
    if report.similarity is not None:
        console.print(
            f"int8 on onnxruntime: mean cosine similarity with fp32 features {report.similarity:.4f}", highlight=False
        )
    table = Table("engine", "MB", "ms", "slowest layers (ms)", title="layer times on zeros")
    for timing in report.timings:
        slowest = "\n".join(f"{ms:.3f} {name[:70]}" for name, ms in timing.layers[:5])
        table.add_row(timing.name, f"{timing.bytes / 1e6:.1f}", f"{timing.milliseconds:.2f}", slowest)
    console.print(table)
    if (agreement := report.agreement) is not None:
        console.print(
            f"compared with onnxruntime in fp32 on {agreement.frames} frames: another highest channel in at most"
            f" {agreement.changed_share:.2%} of the cells; soft masks differ by {agreement.mean:.1e} on average and"
            f" {agreement.largest:.1e} at most",
            highlight=False,
        )
    suffix = "" if short_side is None else f" --short-side {short_side}"
    console.print(
        f"wrote {model.folder}/engines; next: corrflow-track VIDEO --init MASK.png --model {options.artifact}"
        f" --backend tensorrt{suffix}",
        highlight=False,
    )
