"""TensorRT engines from ONNX, on the machine that runs them: build, check, time, compare, sign; needs no PyTorch.

There is one engine for encoding and one for propagation. All sizes are fixed, and the plugin is compiled for them.
Engines are written only if their label channels agree with those of ONNX Runtime.
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

from corrflow.atomic_files import write_file
from corrflow.errors import CorrflowError, InputError
from corrflow.export.propagate_graph import Sizes, propagate_model
from corrflow.export.step_graph import fixed_encode
from corrflow.plugins.local_soft_copy.cuda.launch import ENTRY_POINT
from corrflow.plugins.local_soft_copy.tensorrt.library import PluginLibrary, find_library
from corrflow.plugins.local_soft_copy.tensorrt.variants import Variant
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
from corrflow.runtime.backends.memory import SlotAllocator
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.backends.tensorrt import EngineGraph, TensorRtGraphs, tensorrt_logger
from corrflow.runtime.settings import MAX_WINDOWS, STRIDE, TrackingSettings, max_windows
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.video.demo_clip import DemoSource
from corrflow.runtime.video.open_source import open_source

logger = logging.getLogger("corrflow")
# Share of cells whose highest channel may differ from float32, because top_k selects among nearly equal scores. On ONNX
# Runtime's CPU, the same graphs of the bundled model change no cell in fp16 and 0.4 % in int8; a random encoder in
# int8 changes more than 5 % and is still correct. Engines were not measured.
MAX_CHANGED_SHARE = {"fp32": 0.005, "fp16": 0.01, "int8": 0.10}
_TIMED_RUNS, _WARM_UP, _COMPARED = 10, 3, 12
_DEMO_FRAME_INTERVAL, _MIN_FRAMES = 2, 3  # of calibration frames; the demo clip has 60 frames


@dataclass(frozen=True)
class Timing:
    """Size of an engine, and mean milliseconds of its layers, slowest first."""

    name: str
    bytes: int
    layers: tuple[tuple[str, float], ...]

    @property
    def milliseconds(self) -> float:
        """Sum of the layer times."""
        return sum(mean for _, mean in self.layers)


@dataclass(frozen=True)
class Agreement:
    """Comparison with ONNX Runtime in float32: largest share of cells with another highest channel, differences."""

    frames: int
    changed_share: float
    largest: float
    mean: float


@dataclass(frozen=True)
class BuildReport:
    """Result of `build_engines`.

    reason: reason for building; empty if the existing engines match and nothing was built
    similarity: mean cosine similarity of 8-bit and float32 features on onnxruntime, if int8 was calibrated
    """

    spec: EngineSpec
    reason: str
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
    num_reference_frames: int,
    num_channels: int,
    plugin: bool,
    calibration: Sequence[np.ndarray] | None = None,
) -> BuildReport:
    """Build engines beside the artifact, unless existing engines match.

    frames: frames [H, W, 3] uint8, BGR, of any size, for the comparison; other parameters: see EngineSpec
    calibration: for int8, calibration frames at working size; None to use the 8-bit encoder of the artifact
    Raises InputError for unsupported settings. Raises CorrflowError if the build fails, the plugin is missing in the
    engine, or label channels differ. Errors leave existing engines unchanged.
    """
    if artifact.settings.dilate_past_age:
        raise InputError(
            f"{artifact.name}: expected fixed search windows, got dilate_past_age"
            f" {artifact.settings.dilate_past_age}, which engines do not support; export an artifact without"
        )
    permanent_frames = len(artifact.settings.permanent_frames)
    if 1 <= num_reference_frames < permanent_frames:
        raise InputError(
            f"expected --reference-frames of {permanent_frames} or more, one for each permanent frame, got"
            f" {num_reference_frames}; raise it"
        )
    calibration_hash = "" if calibration is None else _hash_of(calibration)
    settings = _with_reference_frames(artifact.settings, num_reference_frames)
    library = _library_with_kernel(artifact, settings, precision, num_channels) if plugin else None
    spec = EngineSpec(
        trt.__version__,
        device.gpu,
        device.compute_capability,
        precision,
        frame,
        num_reference_frames,
        len(SlotAllocator(settings)),
        max_windows(settings),
        num_channels,
        plugin,
        # EngineSpec refuses unknown precisions.
        onnx_hashes(artifact, precision, calibration_hash) if precision in MAX_CHANGED_SHARE else ("", ""),
        kernel_hash() if plugin else "",
        calibration_hash,
        library is not None,
    )
    reason = _reason_to_build(artifact, spec)
    if not reason:
        return BuildReport(spec, "")
    if plugin:
        register(trt, library)
    start = time.perf_counter()
    encoder, similarity = _encoder(artifact, precision, calibration)
    contents = {name: _build(trt, spec, name, model) for name, model in _models(artifact, spec, encoder)}
    seconds = time.perf_counter() - start
    engines = Engines(spec, contents)
    graphs = TensorRtGraphs(trt, device, engines)
    if plugin:
        _expect_plugin(trt, PROPAGATE_ENGINE, graphs.loaded[PROPAGATE_ENGINE])
    timings = tuple(
        Timing(name, len(contents[name]), _layer_times(trt, device, graphs.loaded[name])) for name in spec.names
    )
    agreement = compare(artifact, DeviceBackend(artifact, device, graphs), frames(), spec)
    if not agreement.changed_share <= MAX_CHANGED_SHARE[precision]:
        raise CorrflowError(
            f"the engines' labels differ from onnxruntime's: expected another highest channel in at most"
            f" {MAX_CHANGED_SHARE[precision]:.1%} of the cells, got {agreement.changed_share:.1%}; nothing was written,"
            f" try --plugin off{' or --precision fp32' if precision != 'fp32' else ''}, and report it"
        )
    save_engines(artifact, engines)
    return BuildReport(spec, reason, seconds, timings, agreement, similarity)


def comparison_frames(source: Path | None) -> Iterator[np.ndarray]:
    """Yield the first frames [H, W, 3] uint8, BGR, of a video or folder; of the demo clip for None."""
    opened = DemoSource() if source is None else open_source(str(source))
    with opened as frames:
        for frame in islice(frames, _COMPARED):
            yield frame.image


def calibration_frames_of(source: Path | None, short_side: int) -> list[np.ndarray]:
    """Return calibration frames [H, W, 3] uint8, BGR, at `short_side`.

    source: video, folder of videos or images, or None for the demo clip. Frames of a single clip begin after the frames
    of the comparison. Raises InputError for too few frames.
    """
    from corrflow.export.quantize import CALIBRATION_FRAMES, FRAME_INTERVAL, calibration_frames

    if source is not None and source.is_dir():
        frames = calibration_frames(source, short_side)
    else:
        interval = _DEMO_FRAME_INTERVAL if source is None else FRAME_INTERVAL
        opened = DemoSource() if source is None else open_source(str(source))
        with opened as clip:
            chosen = islice(clip, _COMPARED, _COMPARED + interval * CALIBRATION_FRAMES, interval)
            frames = [Geometry.of(frame.image.shape[:2], short_side).resize(frame.image) for frame in chosen]
    if len(frames) < _MIN_FRAMES:
        raise InputError(
            f"expected {_MIN_FRAMES} calibration frames or more, got {len(frames)} from {source}; give a longer video"
            " or a folder of them with --calibration-data"
        )
    return frames


def compare(artifact: Artifact, engine: DeviceBackend, frames: Iterable[np.ndarray], spec: EngineSpec) -> Agreement:
    """Propagate with both backends from the same label channels at every step, so that differences do not accumulate.

    The first frame has one stripe per channel, so that every cell belongs to a channel and borders are everywhere. If
    the settings move search windows, their offsets grow with every step until most cells lie outside the frame.
    Raises InputError for fewer than two frames.
    """
    reference = OnnxRuntimeBackend(artifact if spec.precision == "int8" else artifact.with_float_encoder())
    cells = -(-spec.frame[0] // STRIDE), -(-spec.frame[1] // STRIDE)
    owner = (np.arange(cells[1]) * spec.num_channels * 2 // cells[1]) % spec.num_channels
    labels = np.zeros((spec.num_channels, *cells), np.float32)
    labels[owner, :, np.arange(cells[1])] = 1
    settings = _with_reference_frames(artifact.settings, spec.num_reference_frames)
    memory = engine.new_memory(settings, spec.num_channels, cells)
    reference_memory = reference.new_memory(settings, spec.num_channels, cells)
    changed, largest, means = [], 0.0, []
    for index, image in enumerate(frames):
        if not (image.shape[0] >= spec.frame[0] and image.shape[1] >= spec.frame[1]):
            image = cv2.resize(image, spec.frame[::-1], interpolation=cv2.INTER_LINEAR)
        features, reference_features = engine.encode(image, spec.frame), reference.encode(image, spec.frame)
        if index:
            offsets = {}
            if settings.move_windows and reference.supports_window_offsets:  # older artifacts do not support them
                offsets = {
                    number: _offsets(number in settings.permanent_frames, index, cells)
                    for _, number, _ in memory.references
                }
            plan = SearchPlan.of(memory.references, settings.attributes, offsets)
            got = engine.propagate(features, memory, plan)
            labels = reference.propagate(reference_features, reference_memory, plan)
            changed.append(float((got.argmax(0) != labels.argmax(0)).mean()))
            difference = np.abs(got - labels)
            largest, means = max(largest, float(difference.max())), [*means, float(difference.mean())]
            if not np.isfinite(got).all():
                changed.append(1.0)
        memory.add_frame(features, labels)
        reference_memory.add_frame(reference_features, labels)
    reference.close()
    if not changed:
        raise InputError("expected at least two frames to compare on, got fewer; give a longer video with --frames")
    return Agreement(len(changed), max(changed), largest, float(np.mean(means)))


def _offsets(permanent: bool, step: int, cells: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the (dy, dx) offsets of a frame's search windows at a step, with the maximum number of windows."""
    height, width = cells
    offsets = [(0, 0), (0, step), (step, -step), (-height * step // _COMPARED, width * step // _COMPARED)]
    return offsets[:MAX_WINDOWS] if permanent else [(step % 3 - 1, -step % 4), (-step, 5 * step)]


def _with_reference_frames(settings: TrackingSettings, num_reference_frames: int) -> TrackingSettings:
    """Limit the reference frames by dropping recent frames, as corrflow-track --memory-frames does."""
    recent = max(0, num_reference_frames - len(settings.permanent_frames))
    return replace(settings, recent_offsets=settings.recent_offsets[:recent])


def _reason_to_build(artifact: Artifact, spec: EngineSpec) -> str:
    """Return the reason why existing engines do not match; empty if they match."""
    try:
        return load_engines(artifact).spec.difference(spec)
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
    """Return the ONNX of the encoder; if calibrated here, also the cosine similarity of its features with fp32."""
    if calibration is None:
        return encoder_for(artifact, precision), None
    from corrflow.export.quantize import quantise_for_tensorrt

    logger.info("calibrating int8 on %d frames", len(calibration))
    return quantise_for_tensorrt(encoder_for(artifact, "fp32"), calibration)


def _models(artifact: Artifact, spec: EngineSpec, encoder: bytes) -> Iterable[tuple[str, bytes]]:
    """Yield name and ONNX of each engine, with all sizes fixed."""
    form, half = "library" if spec.library else form_for(spec.tensorrt), spec.precision != "fp32"
    yield ENCODE_ENGINE, fixed_encode(encoder, spec.frame).SerializeToString()
    cells = -(-spec.frame[0] // STRIDE), -(-spec.frame[1] // STRIDE)
    model = propagate_model(
        artifact.settings.attributes,
        artifact.channels,
        Sizes(spec.num_slots, spec.num_channels, cells, spec.num_windows),
        half,
        aot=spec.plugin and form == "aot",
        # The parser of early versions would prefer the function, and that of later ones need not choose either.
        body=not (spec.plugin and form != "aot"),
        indexed_references=True,
    )
    yield PROPAGATE_ENGINE, model.SerializeToString()


def _library_with_kernel(
    artifact: Artifact, settings: TrackingSettings, precision: str, num_channels: int
) -> PluginLibrary | None:
    """Return the plugin library if it is there and has the kernel of these engines."""
    library = find_library()
    if library is None:
        return None
    dtype = "float32" if precision == "fp32" else "float16"
    variant = Variant(artifact.channels, num_channels, artifact.settings.attributes, dtype)
    if library.has_kernel(variant, max_windows(settings)):
        return library
    logger.warning("%s has no kernel for these engines, so the plugin comes from Python", library.path)
    return None


def _build(trt: Any, spec: EngineSpec, name: str, model: bytes) -> bytes:
    """Build the engine of a strongly typed network."""
    trt_logger = tensorrt_logger(trt.Logger)
    builder = trt.Builder(trt_logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt_logger)
    if not parser.parse(model):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise CorrflowError(f"TensorRT {trt.__version__} does not parse {name}: {reasons}; try --plugin off")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the engine then lists its layers
    cache = _timing_cache(spec)
    config.set_timing_cache(config.create_timing_cache(cache.read_bytes() if cache.is_file() else b""), False)
    logger.info("building %s", name)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise CorrflowError(f"TensorRT {trt.__version__} did not build {name}; its reason is above, try --plugin off")
    cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_file(cache, bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def _timing_cache(spec: EngineSpec) -> Path:
    """Return the path of the builder's timing cache for this TensorRT and GPU."""
    key = hashlib.sha256(f"{spec.tensorrt}/{spec.gpu}/{spec.compute_capability}".encode()).hexdigest()[:12]
    return private_folder() / f"timing-{key}.cache"


def _expect_plugin(trt: Any, name: str, graph: EngineGraph) -> None:
    """Raise CorrflowError unless the engine has the plugin's layer: the parser falls back to the function silently."""
    inspector = graph.engine.create_engine_inspector()
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


def _layer_times(trt: Any, device: CudaDevice, graph: EngineGraph) -> tuple[tuple[str, float], ...]:
    """Measure the mean milliseconds of each layer on zeros, slowest first."""
    total: dict[str, float] = {}

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            total[layer_name] = total.get(layer_name, 0.0) + ms

    shared = {name: device.share(shape, kind) for name, (shape, kind) in graph.tensors.items()}
    for tensor in shared.values():
        device.upload(tensor)
    tensors = {name: tensor.buffer for name, tensor in shared.items()}
    for _ in range(_WARM_UP):
        graph.enqueue(tensors)
    device.wait()
    profiler = Profiler()
    graph.context.profiler = profiler
    for _ in range(_TIMED_RUNS):
        graph.enqueue(tensors)
        device.wait()
    # A context keeps its profiler, which prevents graph capture, so the engine gets a new context.
    graph.context = graph.engine.create_execution_context()
    return tuple(sorted(((name, ms / _TIMED_RUNS) for name, ms in total.items()), key=lambda item: -item[1]))
