"""Backend with features and memory on the GPU: takes frames, returns soft masks.

A `GraphSet` runs the graphs: TensorRT engines, or sessions of ONNX Runtime.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.spec import padded_references
from corrflow.runtime.artifacts.artifact import REFERENCES, Artifact
from corrflow.runtime.backends.cuda_device import Buffer, CudaDevice, PinnedBuffer
from corrflow.runtime.backends.cuda_resize import DeviceResize
from corrflow.runtime.backends.memory import SlotAllocator
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.backends.resize import resize
from corrflow.runtime.backends.search_plan import ReferenceFrame, SearchPlan
from corrflow.runtime.settings import STRIDE, TrackingSettings, max_windows

logger = logging.getLogger("corrflow")


class Graph(Protocol):
    """Graph that is ready to run."""

    def enqueue(self, tensors: dict[str, Buffer]) -> None:
        """Put a run on the device's stream. tensors: inputs and outputs by name, in the sizes of the graph."""
        ...


class GraphSet(Protocol):
    """Graphs of an artifact on one device.

    name:          display name
    dtype:         number type of features and soft masks
    supports_cuda_graph: graphs can be captured in a CUDA graph
    indexed_references: propagation takes the whole memory and `references`; otherwise the referenced frames, stacked
    frame, num_reference_frames, num_channels: fixed (H, W), maximum of reference frames, fixed N; None: free
    num_slots, num_windows: fixed K and M with indexed references; None: free
    """

    name: str
    dtype: np.dtype
    supports_cuda_graph: bool
    indexed_references: bool
    frame: tuple[int, int] | None
    num_reference_frames: int | None
    num_slots: int | None
    num_windows: int | None
    num_channels: int | None

    def encode(self) -> Graph:
        """Return the graph frame [1, H, W, 3] uint8, BGR -> features [1, C, h, w]."""
        ...

    def propagate(self) -> Graph:
        """Return the graph query [1, C, h, w], keys [1, K, C, h, w], values [1, K, N, h, w] -> labels [1, N, h, w].

        With indexed references, `references` [M, 4] int32 is another input.
        """
        ...

    def close(self) -> None:
        """Release the graphs."""
        ...


@dataclass(frozen=True, eq=False)
class FrameBuffers:
    """Device buffers for one input size.

    source: original frame [1, H, W, 3] uint8; frame: working frame [1, h, w, 3] uint8, the same memory for equal sizes
    """

    source: PinnedBuffer
    frame: Buffer
    features: Buffer


@dataclass(frozen=True)
class DeviceFeatures:
    """Features of frame `number`, valid until the next frame is encoded.

    np.asarray copies them to the host as [C, h, w] float32; the copy stays valid.
    """

    number: int
    cells: tuple[int, int]
    backend: DeviceBackend = field(repr=False, compare=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.backend.on_host(self), dtype, copy=copy)


@dataclass
class _SoftMasks:
    """Staging buffer of soft masks, and the array that was last returned."""

    staging: PinnedBuffer
    returned: np.ndarray | None = None


class DeviceMemory:
    """`base.Memory` on the device. Soft masks that `propagate` has just returned are not uploaded again."""

    def __init__(
        self, backend: DeviceBackend, settings: TrackingSettings, num_channels: int, padded: int, cells: tuple[int, int]
    ) -> None:
        """Allocate the memory. padded: number of channels in the graphs"""
        device, graphs = backend.device, backend.graphs
        self._backend, self._num_channels, self.cells = backend, num_channels, cells
        self.slots = SlotAllocator(settings)
        num_slots = graphs.num_slots or len(self.slots)
        self._keys = device.allocate((num_slots, backend.artifact.channels, *cells), graphs.dtype)
        self._values = device.allocate((num_slots, padded, *cells), graphs.dtype)
        # Padding channels are zeros here, so they are zeros in the ring and in all results.
        self._soft = _SoftMasks(device.share((1, padded, *cells), graphs.dtype))
        self._stacked: tuple[Buffer, Buffer] | None = None
        # A fixed address, so that a captured step stays valid when the content changes.
        num_windows = graphs.num_windows or max_windows(settings)
        self.windows = device.share((num_windows, 4), np.int32) if graphs.indexed_references else None
        self.captured: dict[Any, Callable[[], None] | None] = {}  # None for a step that has run once, uncaptured

    @property
    def soft_masks(self) -> PinnedBuffer:
        """Staging buffer of soft masks between host and device."""
        return self._soft.staging

    @property
    def num_channels(self) -> int:
        """Number of channels of the soft masks, N."""
        return self._num_channels

    def add_frame(self, features: DeviceFeatures | np.ndarray, soft_masks: np.ndarray) -> None:
        """Store features and soft masks [N, h, w] of a frame. Raises CorrflowError for other sizes."""
        self._backend.check_size(features, self)
        if soft_masks.shape != (self._num_channels, *self.cells):
            raise CorrflowError(
                f"expected soft masks {[self._num_channels, *self.cells]} to add_frame, got {list(soft_masks.shape)};"
                " make a memory of that size"
            )
        slot = self.slots.allocate()
        if slot is None:
            return
        device = self._backend.device
        device.copy(self._keys.entry(slot), self._backend.on_device(features))
        if soft_masks is not self._soft.returned:
            device.wait()  # the last upload from this buffer must be complete
            self.soft_masks.host[0, : self._num_channels] = soft_masks
            device.upload(self.soft_masks)
            self._soft.returned = None
        device.copy(self._values.entry(slot), self.soft_masks.buffer)

    @property
    def references(self) -> list[ReferenceFrame]:
        """Reference frames of the next frame, by ascending slot."""
        return self.slots.references

    def inputs(self, plan: SearchPlan) -> dict[str, Buffer]:
        """Return the inputs of a propagation by name; indexed references are not uploaded yet.

        Keys [1, K, C, h, w] and values [1, K, N, h, w] are all slots with indexed references. Otherwise they are the
        reference frames, in place if these are the first slots. Raises CorrflowError for an empty memory, and for
        offsets that the graphs do not support.
        """
        if not plan.windows:
            raise CorrflowError("expected a memory with a frame in it, got an empty one; add a frame first")
        if self.windows is None:
            if plan.moves:
                raise CorrflowError(
                    f"expected graphs that take references by index, got {self._backend.name}; export"
                    f" {self._backend.artifact.name} again"
                )
            keys, values = self._stack(plan.slots)
            return {"keys": keys.batch(), "values": values.batch()}
        rows = plan.windows
        if self._backend.graphs.num_windows is not None:
            rows = padded_references(rows, len(self.windows.host))
        # `propagate` has waited for the last upload from this buffer.
        self.windows.host[: len(rows)] = rows
        references = self.windows.buffer.first(len(rows))
        return {"keys": self._keys.batch(), "values": self._values.batch(), REFERENCES: references}

    def _stack(self, slots: list[int]) -> tuple[Buffer, Buffer]:
        """Return keys [K, C, h, w] and values [K, N, h, w] of ascending slots; the first slots need no copy."""
        count = len(slots)
        if count == slots[-1] + 1:
            return self._keys.first(count), self._values.first(count)
        device = self._backend.device
        if self._stacked is None:
            keys, values = (device.allocate(ring.shape, ring.dtype) for ring in (self._keys, self._values))
            self._stacked = keys, values
        for target, source in zip(self._stacked, (self._keys, self._values), strict=True):
            for place, slot in enumerate(slots):
                device.copy(target.entry(place), source.entry(slot))
        keys, values = self._stacked
        return keys.first(count), values.first(count)

    def result(self) -> np.ndarray:
        """Return the propagated soft masks [N, h, w] float32; read-only, to stay equal to the copy on the device."""
        returned = self._soft.returned = self.soft_masks.host[0, : self._num_channels].astype(np.float32)
        returned.flags.writeable = False
        return returned


class DeviceBackend:
    """`base.Backend` on a GPU. Frames may also be on the device already (__cuda_array_interface__).

    Encoding is deferred until the next operation is known. So a whole step is one CUDA graph: upload, resize, encode,
    propagate, download. The first run of a step is direct, the second is captured, and later runs replay the capture.
    """

    supports_runtime_search_params = False
    device_frames = True
    stride = STRIDE

    def __init__(self, artifact: Artifact, device: CudaDevice, graphs: GraphSet) -> None:
        self.artifact, self.device, self.graphs = artifact, device, graphs
        self.name, self.supports_window_offsets = graphs.name, graphs.indexed_references
        self._buffers: FrameBuffers | None = None
        self._resize: DeviceResize | None = None
        self._no_resize = ""  # reason why frames are resized on the CPU
        self._number = 0
        self._deferred = self._from_host = False  # the newest frame is not encoded yet; it comes from the host
        self._staging: PinnedBuffer | None = None  # features between device and host
        self._on_host: tuple[int, np.ndarray] | None = None  # frame number and host copy of the newest features
        self._on_cpu: OnnxRuntimeBackend | None = None
        self._frame_copy: PinnedBuffer | None = None

    @property
    def on_cpu(self) -> OnnxRuntimeBackend:
        """Backend on the CPU for the same artifact, opened at the first use."""
        if self._on_cpu is None:
            self._on_cpu = OnnxRuntimeBackend(self.artifact, fused=not cpu.unavailable())
        return self._on_cpu

    def frame_on_host(self, frame: Any) -> np.ndarray:
        """Return a copy of a frame on the device, [H, W, 3] uint8. Raises InputError for anything else."""
        source = _on_device(frame)
        if self._frame_copy is None or self._frame_copy.buffer.shape != source.shape:
            self._frame_copy = self.device.share(source.shape, np.uint8)
        self._wait_for_stream_of(frame)
        self.device.copy(self._frame_copy.buffer, source)
        self.device.download(self._frame_copy)
        self.device.wait()
        return self._frame_copy.host.copy()

    def encode(self, frame: Any, working: tuple[int, int] | None = None) -> DeviceFeatures:
        """Encode a frame [H, W, 3] uint8, BGR, contiguous, a NumPy array or on the device; resize it on the device.

        Without a compiler for the resize kernel, a NumPy array is resized on the CPU, which is logged once.
        """
        on_device = None if isinstance(frame, np.ndarray) else _on_device(frame)
        height, width = (frame if on_device is None else on_device).shape[:2]
        size = height, width
        working = working or size
        self._check_frame(working)
        if working != size and not self._can_resize():
            if on_device is not None:
                raise InputError(
                    f"expected frames on the GPU in the working size {working[1]}x{working[0]}, got"
                    f" {size[1]}x{size[0]}, which cannot be resized ({self._no_resize}); resize them on the GPU, or"
                    " set short_side to 0"
                )
            frame, size = resize(frame, working), working
        self.device.wait()  # the last upload from this buffer must be complete
        buffers = self._buffers_for(size, working)
        if on_device is None:
            buffers.source.host[0] = frame
        else:
            self._wait_for_stream_of(frame)
            self.device.copy(buffers.source.buffer, on_device)
            self.device.wait()  # the caller may overwrite its frame
        self._deferred, self._from_host = True, on_device is None
        self._number += 1
        return DeviceFeatures(self._number, buffers.features.shape[-2:], self)  # type: ignore[arg-type]

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> DeviceMemory:
        """Allocate an empty memory. Raises InputError for sizes beyond those of the graphs."""
        graphs = self.graphs
        for what, value, limit, option in (
            ("mask channels", num_channels, graphs.num_channels, "--objects"),
            ("reference frames", settings.num_reference_frames, graphs.num_reference_frames, "--reference-frames"),
        ):
            if limit is not None and value > limit:
                raise InputError(
                    f"expected at most {limit} {what}, which the engines are built for, got {value}; build them with"
                    f" corrflow-export engine {option} {value}, or track with another backend"
                )
        for what, value, limit in (
            ("slots of memory", len(SlotAllocator(settings)), graphs.num_slots),
            ("windows to search", max_windows(settings), graphs.num_windows),
        ):
            if limit is not None and value > limit:
                raise InputError(
                    f"expected at most {limit} {what}, which the engines are built for, got {value}; build them from an"
                    " artifact with these settings, or track with another backend"
                )
        return DeviceMemory(self, settings, num_channels, graphs.num_channels or num_channels, cells)

    def propagate(self, query: DeviceFeatures, memory: DeviceMemory, plan: SearchPlan) -> np.ndarray:
        """Return soft masks [N, h, w] float32, read-only; search parameters are built into the graphs."""
        self.check_size(query, memory)
        buffers = self._buffers
        assert buffers is not None, "features exist only with buffers"
        inputs = memory.inputs(plan)
        deferred, from_host = self._deferred, self._from_host
        graph = self.graphs.propagate()

        def step() -> None:
            if deferred:
                self._encode(buffers, from_host)
            if memory.windows is not None:
                self.device.upload(memory.windows)
            graph.enqueue({"query": buffers.features, **inputs, "labels": memory.soft_masks.buffer})
            self.device.download(memory.soft_masks)

        addresses = tuple((name, buffer.pointer, buffer.shape) for name, buffer in inputs.items())
        self._run(memory, (buffers, addresses, deferred, deferred and from_host), step)
        self._deferred = False
        self.device.wait()
        return memory.result()

    def encoded(self, features: DeviceFeatures) -> Buffer:
        """Enqueue deferred encoding, and return the buffer of the features [1, C, h, w]."""
        self._check_newest(features)
        assert self._buffers is not None, "features exist only with buffers"
        if self._deferred:
            self._encode(self._buffers, self._from_host)
            self._deferred = False
        return self._buffers.features

    def on_device(self, features: DeviceFeatures | np.ndarray) -> Buffer:
        """Return features on the device, [1, C, h, w]; uploaded features are valid until the next upload."""
        if isinstance(features, DeviceFeatures):
            return self.encoded(features)
        staging = self._staging_for((1, *features.shape))
        self.device.wait()  # the last upload from this buffer must be complete
        staging.host[0] = features
        self.device.upload(staging)
        return staging.buffer

    def on_host(self, features: DeviceFeatures) -> np.ndarray:
        """Return a copy of features, [C, h, w] float32, read-only; repeated calls share one copy."""
        source = self.encoded(features)
        if self._on_host is None or self._on_host[0] != features.number:
            staging = self._staging_for(source.shape)
            self.device.copy(staging.buffer, source)
            self.device.download(staging)
            self.device.wait()
            copy = staging.host[0].astype(np.float32)
            copy.flags.writeable = False
            self._on_host = features.number, copy
        return self._on_host[1]

    def check_size(self, features: DeviceFeatures | np.ndarray, memory: DeviceMemory) -> None:
        """Raise CorrflowError for features of an older frame, or of another size than the memory."""
        if isinstance(features, DeviceFeatures):
            self._check_newest(features)
            cells = features.cells
        else:
            cells = features.shape[1:]
        if cells != memory.cells:
            raise CorrflowError(
                f"expected features of {list(memory.cells)} cells, as the memory has them, got {list(cells)};"
                " start again at the new size"
            )

    def close(self) -> None:
        """Release graphs, buffers and device."""
        self.device.wait()
        self._buffers = self._staging = self._frame_copy = None
        if self._on_cpu is not None:
            self._on_cpu.close()
        self.graphs.close()
        self.device.close()

    def _wait_for_stream_of(self, frame: Any) -> None:
        """Let later work wait for the stream that writes a frame on the device."""
        stream = getattr(frame, "__cuda_array_interface__", {}).get("stream")
        if stream is not None:
            self.device.wait_for(int(stream))

    def _encode(self, buffers: FrameBuffers, from_host: bool) -> None:
        """Enqueue upload, resize and encoding."""
        if from_host:
            self.device.upload(buffers.source)
        if buffers.frame is not buffers.source.buffer:
            assert self._resize is not None, "compiled before the buffers were allocated"
            self._resize(buffers.source.buffer, buffers.frame)
        self.graphs.encode().enqueue({"frame": buffers.frame, "features": buffers.features})

    def _run(self, memory: DeviceMemory, key: tuple[Any, ...], step: Callable[[], None]) -> None:
        """Run a step: directly the first time, because it may allocate, which a capture forbids; then captured."""
        if not self.graphs.supports_cuda_graph or key not in memory.captured:
            step()
            memory.captured[key] = None
            return
        launch = memory.captured[key]
        if launch is None:
            launch = memory.captured[key] = self.device.capture_graph(step)
        launch()

    def _buffers_for(self, size: tuple[int, int], working: tuple[int, int]) -> FrameBuffers:
        """Return the buffers for these sizes, allocated if the sizes have changed."""
        buffers = self._buffers
        if buffers is None or (buffers.source.buffer.shape[1:3], buffers.frame.shape[1:3]) != (size, working):
            cells = -(-working[0] // STRIDE), -(-working[1] // STRIDE)
            features = self.device.allocate((1, self.artifact.channels, *cells), self.graphs.dtype)
            source = self.device.share((1, *size, 3), np.uint8)
            frame = source.buffer if size == working else self.device.allocate((1, *working, 3), np.uint8)
            buffers = self._buffers = FrameBuffers(source, frame, features)
        return buffers

    def _staging_for(self, shape: tuple[int, ...]) -> PinnedBuffer:
        """Return the staging buffer of features, allocated if the shape has changed."""
        if self._staging is None or self._staging.buffer.shape != shape:
            self._staging = self.device.share(shape, self.graphs.dtype)
        return self._staging

    def _can_resize(self) -> bool:
        """Return True if the device can resize frames; compile the kernel at the first call."""
        if self._resize is None and not self._no_resize:
            try:
                self._resize = DeviceResize(self.device)
            except CorrflowError as error:
                self._no_resize = str(error).partition(";")[0]
                logger.warning("frames are resized on the CPU: %s", error)
        return self._resize is not None

    def _check_frame(self, working: tuple[int, int]) -> None:
        """Raise InputError for a working size that the graphs are not built for."""
        fixed = self.graphs.frame
        if fixed is not None and working != fixed:
            size = f"{working[0]}x{working[1]}"
            if 0 < self.artifact.settings.short_side < min(working):
                size += f" --short-side {min(working)}"
            raise InputError(
                f"expected frames of {fixed[1]}x{fixed[0]}, which the engines are built for, got"
                f" {working[1]}x{working[0]}; build them with corrflow-export engine --size {size}, or track with"
                " another backend"
            )

    def _check_newest(self, features: DeviceFeatures) -> None:
        """Raise CorrflowError for features of an older frame."""
        if features.number != self._number:
            raise CorrflowError(
                f"expected the features of the newest frame ({self._number}), got those of frame {features.number};"
                " use features before the next frame is encoded"
            )


def _on_device(frame: Any) -> Buffer:
    """Wrap a frame [H, W, 3] uint8 on the device without a copy. Raises InputError for anything else."""
    interface = getattr(frame, "__cuda_array_interface__", None)
    if interface is None:
        raise InputError(f"expected a frame as a NumPy array or an array on the GPU, got {type(frame).__name__}")
    shape, kind, strides = tuple(interface["shape"]), interface["typestr"], interface.get("strides")
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != "|u1":
        raise InputError(f"expected a frame [H, W, 3] uint8, BGR, on the GPU, got {kind} {list(shape)}; convert it")
    if strides is not None and tuple(strides) != (shape[1] * 3, 3, 1):
        raise InputError(f"expected a contiguous frame on the GPU, got strides {list(strides)}; copy it first")
    return Buffer(int(interface["data"][0]), shape, np.dtype(np.uint8), frame)
