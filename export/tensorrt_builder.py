"""ONNX becomes TensorRT engines on the machine that will run them: build, check, time, compare, sign. No PyTorch.

One engine encodes and one propagates, every size of both fixed, so that the plugin is compiled for them. Nothing is
written before the engines' labels agree with ONNX Runtime's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from corrflow.atomic_files import write_whole
from corrflow.errors import CorrflowError, InputError
from corrflow.export.propagate_graph import Sizes, propagate_model
from corrflow.export.step_graph import fixed_encode
from corrflow.plugins.local_soft_copy.cuda.launch import ENTRY_POINT
from corrflow.plugins.local_soft_copy.tensorrt_plugin import PLUGIN_NAME, form_for, register
from corrflow.runtime.artifacts.artifact import Artifact
from corrflow.runtime.backends.cuda_device import CudaDevice
from corrflow.runtime.backends.engine_files import (
    ENCODE_ENGINE,
    PROPAGATE_ENGINE,
    Engines,
    EngineSpec,
    encoder_for,
    kernel_hash,
    load_engines,
    onnx_hashes,
    private_folder,
    save_engines,
)
from corrflow.runtime.backends.gpu import DeviceBackend
from corrflow.runtime.backends.memory import ReferenceSlots
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.backends.tensorrt import EngineProgram, TensorRtPrograms
from corrflow.runtime.settings import MAX_WINDOWS, STRIDE, TrackingSettings, max_windows
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.video.demo_clip import DemoSource
from corrflow.runtime.video.open_source import open_source

logger = logging.getLogger("corrflow")
# Share of cells whose highest label may be another than in float32: top_k chooses among near-equal scores. The same
# graphs on ONNX Runtime's CPU, which is all that was measured, change none in fp16 and 0.4 % in int8 (bundled model);
# an untrained encoder in int8 changes more than 5 %, and is not wrong for that.
ALLOWED = {"fp32": 0.005, "fp16": 0.01, "int8": 0.10}
_TIMED_RUNS, _WARM_UP, _COMPARED = 10, 3, 12
_DEMO_FRAMES_APART, _FEWEST = 2, 3  # of the frames that 8 bits are fitted to; the clip has 60


@dataclass(frozen=True)
class Timing:
    """An engine's size and the mean milliseconds of its layers, slowest first."""

    name: str
    bytes: int
    layers: tuple[tuple[str, float], ...]

    @property
    def milliseconds(self) -> float:
        return sum(mean for _, mean in self.layers)


@dataclass(frozen=True)
class Agreement:
    """Engines against ONNX Runtime in float32: share of cells with another highest label, and label differences."""

    frames: int
    other_winner: float
    largest: float
    mean: float


@dataclass(frozen=True)
class Built:
    """why: the reason for building; empty where the engines that are there suit, and then nothing was done.

    similarity: mean cosine between features of 8 bits and of 32, on onnxruntime, where int8 was calibrated
    """

    made: EngineSpec
    why: str
    seconds: float = 0.0
    timings: tuple[Timing, ...] = ()
    agreement: Agreement | None = None
    similarity: float | None = None


def build_engines(
    artifact: Artifact,
    frames: Callable[[], Iterable[np.ndarray]],
    trt: Any,
    device: CudaDevice,
    *,
    precision: str,
    frame: tuple[int, int],
    references: int,
    labels: int,
    plugin: bool,
    calibration: Sequence[np.ndarray] | None = None,
) -> Built:
    """Build what is missing or does not suit, and keep it beside the artifact.

    frames: pictures [H, W, 3] uint8, BGR, of any size, to compare on; labels: N; the rest is as in `engines.EngineSpec`
    calibration: for int8, frames at the size they are tracked at to fit 8 bits to; None to take the artifact's file
    Raises InputError for what cannot be built, CorrflowError where the builder fails, the plugin is not in the engine,
    or labels differ; nothing is written then.
    """
    if artifact.settings.dilate_past_age:
        raise InputError(
            f"{artifact.name}: expected windows that stay as they are, got dilate_past_age"
            f" {artifact.settings.dilate_past_age}, which engines do not have; export an artifact without"
        )
    permanent_frames = len(artifact.settings.permanent_frames)
    if 1 <= references < permanent_frames:
        raise InputError(f"expected --references of {permanent_frames} or more, one for each anchor, got {references}")
    calibrated = "" if calibration is None else _hash_of(calibration)
    settings = _remembering(artifact.settings, references)
    made = EngineSpec(
        trt.__version__,
        device.gpu,
        device.compute_capability,
        precision,
        frame,
        references,
        len(ReferenceSlots(settings)),
        max_windows(settings),
        labels,
        plugin,
        onnx_hashes(artifact, precision, calibrated)
        if precision in ALLOWED
        else ("", ""),  # EngineSpec refuses the others
        kernel_hash() if plugin else "",
        calibrated,
    )
    why = _why_build(artifact, made)
    if not why:
        return Built(made, "")
    if plugin:
        register(trt)
    start = time.perf_counter()
    encoder, similarity = _encoder(artifact, precision, calibration)
    contents = {name: _build(trt, made, name, model) for name, model in _models(artifact, made, encoder)}
    seconds = time.perf_counter() - start
    engines = Engines(made, contents)
    programs = TensorRtPrograms(trt, device, engines)
    if plugin:
        _expect_plugin(trt, PROPAGATE_ENGINE, programs.loaded[PROPAGATE_ENGINE])
    timings = tuple(
        Timing(name, len(contents[name]), _layer_times(trt, device, programs.loaded[name])) for name in made.names
    )
    agreement = compare(artifact, DeviceBackend(artifact, device, programs), frames(), made)
    if not agreement.other_winner <= ALLOWED[precision]:
        raise CorrflowError(
            f"the engines' labels differ from onnxruntime's: expected another highest label in at most"
            f" {ALLOWED[precision]:.1%} of the cells, got {agreement.other_winner:.1%}; nothing was written, try"
            f" --plugin off{' or --precision fp32' if precision != 'fp32' else ''}, and report it"
        )
    save_engines(artifact, engines)
    return Built(made, why, seconds, timings, agreement, similarity)


def pictures(source: Path | None) -> Iterator[np.ndarray]:
    """The first frames [H, W, 3] uint8, BGR, of a video or folder, or of the demo's clip, rendered from photographs."""
    opened = DemoSource() if source is None else open_source(str(source))
    with opened as frames:
        for frame in islice(frames, _COMPARED):
            yield frame.image


def calibration_pictures(source: Path | None, rows: int) -> list[np.ndarray]:
    """Frames [H, W, 3] uint8, BGR, to fit 8 bits to, shrunk to `rows`: of a video, a folder of videos or pictures, or
    the demo's clip. Those of one clip begin after the ones that labels are compared on. Raises InputError for too few.
    """
    from corrflow.export.quantize import CALIBRATION_FRAMES, FRAMES_APART, calibration_frames

    if source is not None and source.is_dir():
        frames = calibration_frames(source, rows)
    else:
        apart = _DEMO_FRAMES_APART if source is None else FRAMES_APART
        opened = DemoSource() if source is None else open_source(str(source))
        with opened as clip:
            chosen = islice(clip, _COMPARED, _COMPARED + apart * CALIBRATION_FRAMES, apart)
            frames = [Geometry.of(frame.image.shape[:2], rows).shrink(frame.image) for frame in chosen]
    if len(frames) < _FEWEST:
        raise InputError(
            f"expected {_FEWEST} frames or more to fit 8 bits to, got {len(frames)} from {source}; give a longer video"
            " or a folder of them with --calibration-data"
        )
    return frames


def compare(artifact: Artifact, engine: DeviceBackend, frames: Iterable[np.ndarray], made: EngineSpec) -> Agreement:
    """Both back ends copy from the same labels at every step, so that nothing adds up. Raises InputError for no frames.

    The first frame's labels are stripes, one channel each: every cell has an owner, and borders are everywhere. Where
    windows follow, they are moved further at every step, for most cells out of the frame in the end.
    """
    reference = OnnxRuntimeBackend(artifact)
    cells = -(-made.frame[0] // STRIDE), -(-made.frame[1] // STRIDE)
    owner = (np.arange(cells[1]) * made.labels * 2 // cells[1]) % made.labels
    labels = np.zeros((made.labels, *cells), np.float32)
    labels[owner, :, np.arange(cells[1])] = 1
    settings = _remembering(artifact.settings, made.references)
    own = engine.new_memory(settings, made.labels, cells)
    other = reference.new_memory(settings, made.labels, cells)
    others, largest, means = [], 0.0, []
    for index, picture in enumerate(frames):
        if not (picture.shape[0] >= made.frame[0] and picture.shape[1] >= made.frame[1]):
            picture = cv2.resize(picture, made.frame[::-1], interpolation=cv2.INTER_LINEAR)
        ours, theirs = engine.encode(picture, made.frame), reference.encode(picture, made.frame)
        if index:
            aims = {}
            if settings.move_windows and reference.supports_window_offsets:  # an artifact may be older than that
                aims = {frame: _moves(frame in settings.permanent_frames, index, cells) for frame in own.frames}
            got = engine.propagate(ours, own.aimed(aims))
            labels = reference.propagate(theirs, other.aimed(aims))
            others.append(float((got.argmax(0) != labels.argmax(0)).mean()))
            apart = np.abs(got - labels)
            largest, means = max(largest, float(apart.max())), [*means, float(apart.mean())]
            if not np.isfinite(got).all():
                others.append(1.0)
        own.add_frame(ours, labels)
        other.add_frame(theirs, labels)
    reference.close()
    if not others:
        raise InputError("expected at least two frames to compare on, got fewer; give a longer video with --frames")
    return Agreement(len(others), max(others), largest, float(np.mean(means)))


def _moves(anchor: bool, step: int, cells: tuple[int, int]) -> list[tuple[int, int]]:
    """How far the windows of a frame are moved in a step of the comparison, as many as there may be."""
    height, width = cells
    across = [(0, 0), (0, step), (step, -step), (-height * step // _COMPARED, width * step // _COMPARED)]
    return across[:MAX_WINDOWS] if anchor else [(step % 3 - 1, -step % 4)]


def _remembering(settings: TrackingSettings, references: int) -> TrackingSettings:
    """Settings with at most so many references: fewer of the last frames, as with corrflow-track --memory-frames."""
    return replace(
        settings, recent_offsets=settings.recent_offsets[: max(0, references - len(settings.permanent_frames))]
    )


def _why_build(artifact: Artifact, made: EngineSpec) -> str:
    try:
        return load_engines(artifact).made.difference(made)
    except InputError as error:
        return str(error).partition(";")[0]


def _hash_of(frames: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(f"{frame.shape}".encode())
        digest.update(frame.tobytes())
    return digest.hexdigest()


def _encoder(
    artifact: Artifact, precision: str, calibration: Sequence[np.ndarray] | None
) -> tuple[bytes, float | None]:
    """The encoder's ONNX, and how similar its features are to those of fp32 where it was calibrated here."""
    if calibration is None:
        return encoder_for(artifact, precision), None
    from corrflow.export.quantize import quantise_for_tensorrt

    logger.info("fitting 8 bits to %d frames", len(calibration))
    return quantise_for_tensorrt(encoder_for(artifact, "fp32"), calibration)


def _models(artifact: Artifact, made: EngineSpec, encoder: bytes) -> Iterable[tuple[str, bytes]]:
    """The ONNX of each engine, with every size fixed."""
    form, half = form_for(made.tensorrt), made.precision != "fp32"
    yield ENCODE_ENGINE, fixed_encode(encoder, made.frame).SerializeToString()
    cells = -(-made.frame[0] // STRIDE), -(-made.frame[1] // STRIDE)
    model = propagate_model(
        artifact.settings.attributes,
        artifact.channels,
        Sizes(made.slots, made.labels, cells, made.rows),
        half,
        aot=made.plugin and form == "aot",
        body=not (made.plugin and form == "v3"),  # their parser would take the function
        named=True,
    )
    yield PROPAGATE_ENGINE, model.SerializeToString()


def _build(trt: Any, made: EngineSpec, name: str, model: bytes) -> bytes:
    """An engine of a strongly typed network."""
    trt_logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(trt_logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt_logger)
    if not parser.parse(model):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise CorrflowError(f"TensorRT {trt.__version__} does not parse {name}: {reasons}; try --plugin off")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the engine can be asked for its layers
    kept = _timing_cache(made)
    config.set_timing_cache(config.create_timing_cache(kept.read_bytes() if kept.is_file() else b""), False)
    logger.info("building %s", name)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise CorrflowError(f"TensorRT {trt.__version__} did not build {name}; its reason is above, try --plugin off")
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(kept, bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def _timing_cache(made: EngineSpec) -> Any:
    """Where what the builder has measured is kept, for this TensorRT and GPU."""
    where = hashlib.sha256(f"{made.tensorrt}/{made.gpu}/{made.compute_capability}".encode()).hexdigest()[:12]
    return private_folder() / f"timing-{where}.cache"


def _expect_plugin(trt: Any, name: str, program: EngineProgram) -> None:
    """Raise CorrflowError unless the plugin's layer is in the engine: the parser takes the function without a word."""
    inspector = program.engine.create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)).get("Layers", [])
    for layer in layers:
        kind = layer.get("LayerType", "") if isinstance(layer, dict) else ""
        if "plugin" in kind.lower() or ENTRY_POINT in json.dumps(layer):
            return
    kinds = sorted({str(layer.get("LayerType")) if isinstance(layer, dict) else str(layer) for layer in layers})
    raise CorrflowError(
        f"expected the plugin {PLUGIN_NAME} among the layers of {name}, got {', '.join(kinds) or 'none'}; nothing was"
        " written, try --plugin off, and report it"
    )


def _layer_times(trt: Any, device: CudaDevice, program: EngineProgram) -> tuple[tuple[str, float], ...]:
    """Mean milliseconds of each layer on zeros, slowest first."""
    total: dict[str, float] = {}

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            total[layer_name] = total.get(layer_name, 0.0) + ms

    shared = {name: device.share(shape, kind) for name, (shape, kind) in program.tensors.items()}
    for tensor in shared.values():
        device.upload(tensor)
    tensors = {name: tensor.buffer for name, tensor in shared.items()}
    for _ in range(_WARM_UP):
        program.enqueue(tensors)
    device.wait()
    profiler = Profiler()
    program.context.profiler = profiler
    for _ in range(_TIMED_RUNS):
        program.enqueue(tensors)
        device.wait()
    # A profiler stays with its context for good, and one cannot be recorded: the engine gets a fresh context.
    program.context = program.engine.create_execution_context()
    return tuple(sorted(((name, ms / _TIMED_RUNS) for name, ms in total.items()), key=lambda each: -each[1]))
