"""corrflow-bench device-model: the parts of a frame on several GPUs, computed from bytes and operations.

Nothing is run, so every time is a lower bound. docs/cuda.md has the tables and the assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from corrflow.bench.op.roofline import FLOAT32_PER_CLOCK, Device, Workload, milliseconds, work
from corrflow.bench.options import DeviceModelOptions
from corrflow.bench.report import check_output, write_json
from corrflow.errors import InputError
from corrflow.runtime.artifacts.artifact import ENCODE, ENCODE_FP16, Artifact, load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.tracking.edge_refinement import FIT_SCALE
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.target_model import ANNOTATED_SAMPLES, RECENT_FRAMES, RECENT_SAMPLES

REAL_TIME = 30.0  # frames a second
SLOWER = 4.0  # what the CUDA kernel took on an H200, in multiples of its bound
NUM_CHANNELS = 8  # soft masks of the engines
OBJECT_SHARE = 0.25  # of the frame's area, in which masks are enlarged and refined
HALF = 2  # bytes of a feature, a soft mask or a weight in float16
MATRIX_CHANNELS = 8  # tensor cores multiply a multiple of this number of input channels
# Bytes that the host reads and writes, counted in the array operations of the runtime.
FEATURE_BYTES = 10  # per feature: float16 to float32, then read for the means of blocks
FRAME_BYTES = 16  # per pixel of the frame: a cleared soft mask, its limits, a mask by threshold
REGION_BYTES = 102  # per pixel around the object: enlarged mask, enlarged coefficients, their sum
CONTOUR_CELLS = 5  # doubtful cells on a line across the contour of an object
FIT_BYTES = 1775  # per pixel of the guided filter's fit: nine covariances, an inverse in float64, three slopes


@dataclass(frozen=True)
class Machine:
    """Computer with a GPU.

    link: GB/s between host and device memory; None where they share one memory, so a copy reads and writes it
    host: GB/s that one core of the host reads and writes in array operations
    products: GFLOP/s of float32 matrix products of one core of the host, at its peak
    """

    gpu: Device
    link: float | None
    host: float
    products: float

    def transfer(self, size: float) -> float:
        """Return the milliseconds of a copy of `size` bytes between host and device."""
        return size / (self.link * 1e6) if self.link else 2 * size / (self.gpu.gigabytes_per_second * 1e6)


MACHINES = (
    Machine(Device("Jetson Orin Nano 8 GB", 8, 0.625, 68, 1024), None, 6, 24),
    Machine(Device("Jetson Orin Nano 8 GB, Super", 8, 1.02, 102, 1024), None, 6, 27),
    Machine(Device("Jetson Orin NX 16 GB", 8, 0.918, 102.4, 1024), None, 6, 32),
    Machine(Device("Jetson AGX Orin 64 GB", 16, 1.3, 204.8, 1024), None, 6, 35),
    Machine(Device("Jetson AGX Thor", 20, 1.575, 273, 1024), None, 9, 83),
    Machine(Device("GeForce RTX 3060", 28, 1.777, 360, 512), 12, 12, 128),
    Machine(Device("GeForce RTX 4070", 46, 2.475, 504.2, 512), 24, 12, 128),
    Machine(Device("GeForce RTX 5070", 48, 2.512, 672, 512), 24, 12, 128),
)


@dataclass(frozen=True)
class Layer:
    """Work of one operator of the encoder: bytes of device memory, operations on tensor cores and in float32."""

    memory: float
    matrix: float = 0.0
    float32: float = 0.0

    def milliseconds(self, gpu: Device) -> float:
        """Return the time of the slowest resource."""
        clocks = gpu.multiprocessors * gpu.gigahertz * 1e6
        return max(
            self.memory / (gpu.gigabytes_per_second * 1e6),
            self.matrix / (clocks * gpu.matrix_per_clock),
            self.float32 / (clocks * FLOAT32_PER_CLOCK),
        )


@dataclass(frozen=True)
class Parts:
    """Milliseconds of a frame, one part after the other.

    transfer:  upload of the frame, resize, new entry of the memory, download of features and soft masks
    encode:    encoder in float16
    propagate: the CUDA kernel, by its roofline
    host:      one core: window motion, target model, enlarged and refined masks
    """

    transfer: float
    encode: float
    propagate: float
    host: float

    def frames_per_second(self, slower: float = 1.0) -> float:
        """Return the frame rate with a CUDA kernel that takes `slower` times its bound."""
        return 1000 / (self.transfer + self.encode + slower * self.propagate + self.host)

    @property
    def verdict(self) -> str:
        """Whether a setting reaches 30 frames a second."""
        if self.frames_per_second(SLOWER) >= REAL_TIME:
            return "yes"
        return "at its bound" if self.frames_per_second() >= REAL_TIME else "no"


def encoder_layers(encoder: bytes, size: tuple[int, int]) -> list[Layer]:
    """Count the operators of an encoder (ONNX), frame [1, H, W, 3] -> features, for one frame size.

    Operators that TensorRT joins to a convolution cost nothing here; an addition costs the read of its other input.

    Raises InputError without onnx, or for a graph whose sizes do not follow from the frame's.
    """
    try:
        from onnx import shape_inference
    except ImportError as error:
        raise InputError(
            f"expected onnx to count an encoder, found none ({error}); pip install 'corrflow[export]'"
        ) from error
    graph = shape_inference.infer_shapes(_with_fixed_sizes(encoder, size), data_prop=True).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)

    def values(names: Sequence[str]) -> int:
        sizes = [shapes.get(name, (0,)) for name in names if name]
        if any(0 in each for each in sizes):
            raise InputError(
                f"expected an encoder whose sizes follow from the frame's, got free {names}; export it again"
            )
        return sum(math.prod(each) for each in sizes)

    layers = []
    for node in graph.node:
        if node.op_type in ("Shape", "Reshape", "Squeeze", "Unsqueeze", "Constant", "Relu"):
            continue
        if node.op_type == "Conv":
            _, inputs, *kernel = shapes[node.input[1]]
            groups = next((each.i for each in node.attribute if each.name == "group"), 1)
            padded = inputs if groups > 1 else math.ceil(inputs / MATRIX_CHANNELS) * MATRIX_CHANNELS
            operations = 2 * values(node.output) * padded * math.prod(kernel)
            moved = HALF * values([*node.input, *node.output])
            layers.append(Layer(moved, *((operations, 0.0) if groups == 1 else (0.0, operations))))
        elif node.op_type == "Add":
            layers.append(Layer(HALF * values(node.input[1:])))
        else:
            layers.append(Layer(HALF * values([*node.input, *node.output])))
    return layers


def _with_fixed_sizes(encoder: bytes, size: tuple[int, int]) -> Any:
    """Return the graph for one frame size, without the sizes that its export left free.

    The ends of slices are computed from the frame's size, which shape inference cannot do; here they become constants.
    """
    import onnx
    from onnx.numpy_helper import from_array
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_from_string(encoder)
    graph, (frame,) = model.graph, model.graph.input
    for dimension, value in zip(frame.type.tensor_type.shape.dim, (1, *size, 3), strict=True):
        dimension.dim_value = value
    constants = {weight.name for weight in graph.initializer}
    ends = [name for node in graph.node if node.op_type == "Slice" for name in node.input[1:]]
    ends = sorted({name for name in ends if name and name not in constants})
    if ends:
        computed = ReferenceEvaluator(onnx.utils.Extractor(model).extract_model([frame.name], ends))
        found = computed.run(None, {frame.name: np.zeros((1, *size, 3), np.uint8)})
        for node in [node for node in graph.node if set(node.output) & set(ends)]:
            graph.node.remove(node)
        graph.initializer.extend(from_array(np.asarray(value), name) for name, value in zip(ends, found, strict=True))
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


def host_bytes(geometry: Geometry, channels: int, refines: bool) -> float:
    """Count the bytes that the host reads and writes for a frame with one object."""
    pixels = math.prod(geometry.frame)
    fitted = pixels * (geometry.scale * FIT_SCALE) ** 2
    region = OBJECT_SHARE * (REGION_BYTES * pixels + (FIT_BYTES * fitted if refines else 0))
    return FEATURE_BYTES * channels * math.prod(geometry.cells) + FRAME_BYTES * pixels + region


def host_operations(geometry: Geometry, channels: int) -> float:
    """Count the operations of one object's target model: kernels, its equations, doubtful cells."""
    samples = ANNOTATED_SAMPLES + RECENT_FRAMES * RECENT_SAMPLES
    doubtful = CONTOUR_CELLS * 4 * math.sqrt(OBJECT_SHARE * math.prod(geometry.cells))
    return 2 * (channels + 2) * samples * (doubtful + RECENT_SAMPLES) + 2 * samples**3 / 3


def model_of(artifact: Artifact, frame: tuple[int, int], short_side: int) -> Callable[[Machine], Parts]:
    """Count the work of a frame once, and return its parts as a function of the machine.

    frame: (height, width) of the video
    """
    geometry, settings = Geometry.of(frame, short_side), artifact.settings
    # A model without a float16 encoder has the same operators in its encoder in float32.
    layers = encoder_layers(artifact.files.get(ENCODE_FP16, artifact.files[ENCODE]), geometry.working)
    height, width = geometry.cells
    workload = Workload(
        height=height,
        width=width,
        channels=artifact.channels,
        classes=NUM_CHANNELS,
        # A window that follows the object is another one in the frames that stay.
        num_windows=settings.num_reference_frames + (len(settings.permanent_frames) if settings.move_windows else 0),
        radius=tuple(settings.radius),
        dilation=tuple(settings.dilation),
        top_k=settings.top_k,
    )
    searched = work(workload, "float16")
    source, resized = 3 * math.prod(frame), 3 * math.prod(geometry.working)
    entry, masks = (HALF * number * height * width for number in (artifact.channels + NUM_CHANNELS, NUM_CHANNELS))
    downloaded = entry if settings.move_windows else masks
    copied = 2 * entry + (source + resized if source != resized else 0)
    on_host = host_bytes(geometry, artifact.channels if settings.move_windows else 0, settings.refine_radius > 0)
    products = host_operations(geometry, artifact.channels) if settings.target_model else 0

    def parts(machine: Machine) -> Parts:
        return Parts(
            transfer=machine.transfer(source + downloaded) + copied / (machine.gpu.gigabytes_per_second * 1e6),
            encode=sum(layer.milliseconds(machine.gpu) for layer in layers),
            propagate=milliseconds(searched, machine.gpu, "float16")["bound"],
            host=on_host / (machine.host * 1e6) + products / (machine.products * 1e6),
        )

    return parts


@dataclass(frozen=True)
class Row:
    """Row of the table."""

    gpu: str
    model: str
    short_side: int
    parts: Parts


def rows(options: DeviceModelOptions) -> list[Row]:
    """Compute every machine with every model and short side."""
    height, width = options.frame
    counted = []
    for name in options.models:
        artifact = load_artifact(resolve_model(name))
        for short_side in options.short_sides:
            counted.append((name, short_side, model_of(artifact, (height, width), short_side)))
    return [
        Row(machine.gpu.name, str(name), short_side, parts(machine))
        for machine in MACHINES
        for name, short_side, parts in counted
    ]


def table(found: Sequence[Row]) -> str:
    """Return a Markdown table of the parts in milliseconds, marked as a model."""
    lines = [
        "| GPU (model, not measured) | artifact | short side | transfer | encode | kernel | host | frames/s"
        f" | kernel {SLOWER:g} times slower |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        parts = row.parts
        times = " | ".join(f"{time:.2f}" for time in (parts.transfer, parts.encode, parts.propagate, parts.host))
        rates = f"{parts.frames_per_second():.0f} | {parts.frames_per_second(SLOWER):.0f}"
        lines.append(f"| {row.gpu} | {row.model} | {row.short_side} | {times} | {rates} |")
    return "\n".join(lines)


def verdicts(found: Sequence[Row]) -> str:
    """Return a Markdown table of the settings that reach 30 frames a second, marked as a model."""
    settings = list(dict.fromkeys(f"{row.model}, {row.short_side}" for row in found))
    lines = [
        f"| {REAL_TIME:g} frames/s (model, not measured) | {' | '.join(settings)} |",
        f"|---|{'---|' * len(settings)}",
    ]
    for gpu in dict.fromkeys(row.gpu for row in found):
        lines.append(f"| {gpu} | {' | '.join(row.parts.verdict for row in found if row.gpu == gpu)} |")
    return "\n".join(lines)


def run_device_model(options: DeviceModelOptions) -> None:
    """Run corrflow-bench device-model: print the tables, and write them as JSON."""
    check_output(options.json)
    found = rows(options)
    print(f"{table(found)}\n\n{verdicts(found)}")
    print("\nModel, not measured: every part is a lower bound, in milliseconds.")
    if options.json is not None:
        results = [
            {
                **asdict(row),
                "frames_per_second": row.parts.frames_per_second(),
                "frames_per_second_with_a_slower_kernel": row.parts.frames_per_second(SLOWER),
            }
            for row in found
        ]
        write_json(options.json, {"measured": False, "slower": SLOWER, "rows": results})
