"""A back end whose features and memory stay on the GPU: frames go in, soft labels come out.

What runs the graphs is handed in (`GraphSet`): engines of TensorRT, or sessions of ONNX Runtime.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy.spec import padded_references
from corrflow.runtime.artifacts.artifact import REFERENCES, Artifact
from corrflow.runtime.backends.cuda_device import Buffer, CudaDevice, PinnedBuffer
from corrflow.runtime.backends.cuda_resize import DeviceShrink
from corrflow.runtime.backends.memory import SlotAllocator
from corrflow.runtime.backends.resize import shrink
from corrflow.runtime.backends.search_plan import ReferenceFrame, SearchPlan
from corrflow.runtime.settings import STRIDE, TrackingSettings, max_windows

logger = logging.getLogger("corrflow")


class Program(Protocol):
    """A graph that is ready to run."""

    def enqueue(self, tensors: dict[str, Buffer]) -> None:
        """Put it on the device's stream. Inputs and outputs by the graph's names, of the sizes that it wants."""
        ...


class GraphSet(Protocol):
    """The graphs of an artifact on one device.

    name:       for people
    storage:    type of features and labels
    supports_cuda_graph: whether a program can be part of a CUDA graph
    named:      whether what is propagated from is named: the whole memory goes in, and which of its slots are searched,
                moved how far; otherwise the references alone, side by side
    frame, references, labels: (H, W), the most references and the one N that the programs are built for; None for any
    slots, rows: where they are named, the one K and M that the programs are built for; None for any
    """

    name: str
    storage: np.dtype
    supports_cuda_graph: bool
    named: bool
    frame: tuple[int, int] | None
    references: int | None
    slots: int | None
    rows: int | None
    labels: int | None

    def encode(self) -> Program:
        """frame [1, H, W, 3] uint8, BGR -> features [1, C, h, w]."""
        ...

    def propagate(self) -> Program:
        """query [1, C, h, w], keys [1, K, C, h, w], values [1, K, N, h, w] -> labels [1, N, h, w].

        Where references are named, references [M, 4] int32 go in as well.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class FrameBuffers:
    """Where frames of one size are, as they are given and as they are tracked, and their features.

    given: [1, H, W, 3] uint8; frame: [1, h, w, 3] uint8, the same memory where nothing is shrunk
    """

    given: PinnedBuffer
    frame: Buffer
    features: Buffer


@dataclass(frozen=True)
class DeviceFeatures:
    """The features of frame `number`. There is room for one frame: they are good until the next one is encoded.

    np.asarray brings them to the host, [C, h, w] float32, where they stay.
    """

    number: int
    cells: tuple[int, int]
    backend: DeviceBackend = field(repr=False, compare=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.backend.on_host(self), dtype, copy=copy)


@dataclass
class _Labels:
    """Where labels pass between host and device, and those that were last handed out."""

    shared: PinnedBuffer
    returned: np.ndarray | None = None


class DeviceMemory:
    """Fulfils `backend.Memory`, on the device. Labels that `propagate` has just returned are not sent back to it."""

    def __init__(
        self, backend: DeviceBackend, settings: TrackingSettings, labels: int, padded: int, cells: tuple[int, int]
    ) -> None:
        device, programs = backend.device, backend.programs
        self._backend, self._labels, self.cells = backend, labels, cells
        self.slots = SlotAllocator(settings)
        held = programs.slots or len(self.slots)
        self._keys = device.allocate((held, backend.artifact.channels, *cells), programs.storage)
        self._values = device.allocate((held, padded, *cells), programs.storage)
        # The channels that only fill up are zeros here, so they are zeros in the ring and in all that is copied.
        self._soft = _Labels(device.share((1, padded, *cells), programs.storage))
        self._gathered: tuple[Buffer, Buffer] | None = None
        # At one address for good, so that a recorded step stays true while what is in it changes.
        self.names = device.share((programs.rows or max_windows(settings), 4), np.int32) if programs.named else None
        self.recorded: dict[Any, Callable[[], None] | None] = {}  # None where it has run once, unrecorded

    @property
    def soft(self) -> PinnedBuffer:
        """Where labels pass between host and device."""
        return self._soft.shared

    @property
    def num_channels(self) -> int:
        return self._labels

    def add_frame(self, features: DeviceFeatures | np.ndarray, soft_masks: np.ndarray) -> None:
        self._backend.check_fits(features, self)
        if soft_masks.shape != (self._labels, *self.cells):
            raise CorrflowError(
                f"expected labels {[self._labels, *self.cells]} to add_frame, got {list(soft_masks.shape)}; make a memory"
                " of that size"
            )
        slot = self.slots.allocate()
        if slot is None:
            return
        device = self._backend.device
        device.copy(self._keys.entry(slot), self._backend.on_device(features))
        if soft_masks is not self._soft.returned:
            device.wait()  # what was last sent from these bytes has to have arrived
            self.soft.host[0, : self._labels] = soft_masks
            device.upload(self.soft)
            self._soft.returned = None
        device.copy(self._values.entry(slot), self.soft.buffer)

    @property
    def references(self) -> list[ReferenceFrame]:
        return self.slots.references

    def searched(self, plan: SearchPlan) -> dict[str, Buffer]:
        """Return the inputs of a propagation by the graph's names; indexed references are not uploaded yet.

        Keys [1, K, C, h, w] and values [1, K, N, h, w] are all slots where references are indexed, and otherwise the
        references alone, in place where they are the first slots. Raises CorrflowError for an empty memory, and for a
        plan that moves windows where the programs move none.
        """
        if not plan.windows:
            raise CorrflowError("expected a memory with a frame in it, got an empty one; add a frame first")
        if self.names is None:
            if plan.moves:
                raise CorrflowError(
                    f"expected programs that take references by index, got {self._backend.name}; export"
                    f" {self._backend.artifact.name} again"
                )
            keys, values = self._side_by_side(plan.slots)
            return {"keys": keys.batch(), "values": values.batch()}
        named = plan.windows
        rows = named if self._backend.programs.rows is None else padded_references(named, len(self.names.host))
        # These bytes are free: `propagate` has waited for the upload of those before.
        self.names.host[: len(rows)] = rows
        names = self.names.buffer.first(len(rows))
        return {"keys": self._keys.batch(), "values": self._values.batch(), REFERENCES: names}

    def _side_by_side(self, slots: list[int]) -> tuple[Buffer, Buffer]:
        """Keys [K, C, h, w] and values [K, N, h, w] of these slots, which are ascending."""
        count = len(slots)
        if count == slots[-1] + 1:
            return self._keys.first(count), self._values.first(count)
        device = self._backend.device
        if self._gathered is None:
            keys, values = (device.allocate(ring.shape, ring.dtype) for ring in (self._keys, self._values))
            self._gathered = keys, values
        for target, source in zip(self._gathered, (self._keys, self._values), strict=True):
            for place, slot in enumerate(slots):
                device.copy(target.entry(place), source.entry(slot))
        keys, values = self._gathered
        return keys.first(count), values.first(count)

    def result(self) -> np.ndarray:
        """What was propagated, [N, h, w] float32. Read-only, for the device's copy to be its twin."""
        returned = self._soft.returned = self.soft.host[0, : self._labels].astype(np.float32)
        returned.flags.writeable = False
        return returned


class DeviceBackend:
    """Fulfils `backend.Backend`. Frames may also be on the device already (__cuda_array_interface__).

    Encoding is put off until it is known what follows, so that a whole step (frame in, shrunk, encoded, propagated,
    labels out) is one CUDA graph. A step runs once as it is, then it is recorded, then the record is run.
    """

    supports_runtime_search_params = False
    device_frames = True

    def __init__(self, artifact: Artifact, device: CudaDevice, programs: GraphSet) -> None:
        self.artifact, self.device, self.programs = artifact, device, programs
        self.name, self.supports_window_offsets = programs.name, programs.named
        self._room: FrameBuffers | None = None
        self._shrink: DeviceShrink | None = None
        self._no_shrink = ""  # why frames are shrunk on the CPU after all
        self._number = 0
        self._staged = self._on_host = False  # whether the newest frame is still to be encoded, and from which side
        self._staging: PinnedBuffer | None = None  # where features pass between the device and the host
        self._fetched: tuple[int, np.ndarray] | None = None  # the newest on the host, by their frame's number

    def encode(self, frame: Any, working: tuple[int, int] | None = None) -> DeviceFeatures:
        """[H, W, 3] uint8, BGR, a NumPy array or on the device, contiguous; shrunk on the device.

        Where that needs a compiler which is missing, a NumPy array is shrunk on the CPU, which is logged once.
        """
        on_device = None if isinstance(frame, np.ndarray) else _on_device(frame)
        height, width = (frame if on_device is None else on_device).shape[:2]
        given = height, width
        working = working or given
        self._check_frame(working)
        if working != given and not self._shrinks():
            if on_device is not None:
                raise InputError(
                    f"expected frames on the GPU at the size they are tracked at, {working[1]}x{working[0]}, got"
                    f" {given[1]}x{given[0]}, and cannot shrink them ({self._no_shrink}); shrink them there, or set"
                    " rows to 0"
                )
            frame, given = shrink(frame, working), working
        self.device.wait()  # the frame before may still be on its way out of these bytes
        room = self._room_for(given, working)
        if on_device is None:
            room.given.host[0] = frame
        else:
            stream = getattr(frame, "__cuda_array_interface__", {}).get("stream")
            if stream is not None:
                self.device.wait_for(int(stream))
            self.device.copy(room.given.buffer, on_device)
            self.device.wait()  # the caller may overwrite its frame
        self._staged, self._on_host = True, on_device is None
        self._number += 1
        return DeviceFeatures(self._number, room.features.shape[-2:], self)  # type: ignore[arg-type]

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> DeviceMemory:
        """Raises InputError for more labels or references than the programs are built for."""
        programs = self.programs
        for what, asked, most, option in (
            ("label channels", num_channels, programs.labels, "--objects"),
            ("references", settings.num_reference_frames, programs.references, "--references"),
        ):
            if most is not None and asked > most:
                raise InputError(
                    f"expected at most {most} {what}, which the engines are built for, got {asked}; build them with"
                    f" corrflow-export engine {option} {asked}, or track with another back end"
                )
        for what, asked, most in (
            ("slots of memory", len(SlotAllocator(settings)), programs.slots),
            ("windows to search", max_windows(settings), programs.rows),
        ):
            if most is not None and asked > most:
                raise InputError(
                    f"expected at most {most} {what}, which the engines are built for, got {asked}; build them from an"
                    " artifact with these settings, or track with another back end"
                )
        return DeviceMemory(self, settings, num_channels, programs.labels or num_channels, cells)

    def propagate(self, query: DeviceFeatures, memory: DeviceMemory, plan: SearchPlan) -> np.ndarray:
        """Return soft masks [N, h, w] float32, read-only; search parameters are those built into the programs."""
        self.check_fits(query, memory)
        room = self._room
        assert room is not None, "there are features"
        searched = memory.searched(plan)
        staged, on_host = self._staged, self._on_host
        program = self.programs.propagate()

        def step() -> None:
            if staged:
                self._encode(room, on_host)
            if memory.names is not None:
                self.device.upload(memory.names)
            program.enqueue({"query": room.features, **searched, "labels": memory.soft.buffer})
            self.device.download(memory.soft)

        given = tuple((name, buffer.pointer, buffer.shape) for name, buffer in searched.items())
        self._run(memory, (room, given, staged, staged and on_host), step)
        self._staged = False
        self.device.wait()
        return memory.result()

    def encoded(self, features: DeviceFeatures) -> Buffer:
        """Where these features are once the stream gets there, [1, C, h, w]."""
        self._check_newest(features)
        assert self._room is not None, "there are features"
        if self._staged:
            self._encode(self._room, self._on_host)
            self._staged = False
        return self._room.features

    def on_device(self, features: DeviceFeatures | np.ndarray) -> Buffer:
        """As `encoded`, of features that may be on the host; those are there until the next are asked for."""
        if isinstance(features, DeviceFeatures):
            return self.encoded(features)
        passage = self._passage_of((1, *features.shape))
        self.device.wait()  # what was last sent from these bytes has to have arrived
        passage.host[0] = features
        self.device.upload(passage)
        return passage.buffer

    def on_host(self, features: DeviceFeatures) -> np.ndarray:
        """A copy of these features, [C, h, w] float32, read-only; one for however many ask."""
        source = self.encoded(features)
        if self._fetched is None or self._fetched[0] != features.number:
            passage = self._passage_of(source.shape)
            self.device.copy(passage.buffer, source)
            self.device.download(passage)
            self.device.wait()
            copy = passage.host[0].astype(np.float32)
            copy.flags.writeable = False
            self._fetched = features.number, copy
        return self._fetched[1]

    def check_fits(self, features: DeviceFeatures | np.ndarray, memory: DeviceMemory) -> None:
        """Raise CorrflowError for features that are gone or of another size than the memory."""
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
        self.device.wait()
        self._room = self._staging = None
        self.programs.close()
        self.device.close()

    def _encode(self, room: FrameBuffers, on_host: bool) -> None:
        if on_host:
            self.device.upload(room.given)
        if room.frame is not room.given.buffer:
            assert self._shrink is not None, "asked for before there was room"
            self._shrink(room.given.buffer, room.frame)
        self.programs.encode().enqueue({"frame": room.frame, "features": room.features})

    def _run(self, memory: DeviceMemory, key: tuple[Any, ...], step: Callable[[], None]) -> None:
        """Run a step, recorded from the second time on: the first may allocate, which a record cannot hold."""
        if not self.programs.supports_cuda_graph or key not in memory.recorded:
            step()
            memory.recorded[key] = None
            return
        launch = memory.recorded[key]
        if launch is None:
            launch = memory.recorded[key] = self.device.record(step)
        launch()

    def _room_for(self, given: tuple[int, int], working: tuple[int, int]) -> FrameBuffers:
        room = self._room
        if room is None or (room.given.buffer.shape[1:3], room.frame.shape[1:3]) != (given, working):
            cells = -(-working[0] // STRIDE), -(-working[1] // STRIDE)
            features = self.device.allocate((1, self.artifact.channels, *cells), self.programs.storage)
            shared = self.device.share((1, *given, 3), np.uint8)
            frame = shared.buffer if given == working else self.device.allocate((1, *working, 3), np.uint8)
            room = self._room = FrameBuffers(shared, frame, features)
        return room

    def _passage_of(self, shape: tuple[int, ...]) -> PinnedBuffer:
        if self._staging is None or self._staging.buffer.shape != shape:
            self._staging = self.device.share(shape, self.programs.storage)
        return self._staging

    def _shrinks(self) -> bool:
        """Whether the device shrinks frames; makes it ready to when it is first asked."""
        if self._shrink is None and not self._no_shrink:
            try:
                self._shrink = DeviceShrink(self.device)
            except CorrflowError as error:
                self._no_shrink = str(error).partition(";")[0]
                logger.warning("frames are shrunk on the CPU: %s", error)
        return self._shrink is not None

    def _check_frame(self, working: tuple[int, int]) -> None:
        """Raise InputError for a size that the programs are not built for."""
        fixed = self.programs.frame
        if fixed is not None and working != fixed:
            built_in = self.artifact.settings.short_side
            size = f"{working[0]}x{working[1]}" + (
                f" --short-side {min(working)}" if 0 < built_in < min(working) else ""
            )
            raise InputError(
                f"expected frames of {fixed[1]}x{fixed[0]}, which the engines are built for, got"
                f" {working[1]}x{working[0]}; build them with corrflow-export engine --size {size}, or track with"
                " another back end"
            )

    def _check_newest(self, features: DeviceFeatures) -> None:
        if features.number != self._number:
            raise CorrflowError(
                f"expected the features of the newest frame ({self._number}), got those of frame {features.number};"
                " use features before the next frame is encoded"
            )


def _on_device(frame: Any) -> Buffer:
    """A frame [H, W, 3] uint8 on the device, as it is. Raises InputError for anything else."""
    given = getattr(frame, "__cuda_array_interface__", None)
    if given is None:
        raise InputError(f"expected a frame as a NumPy array or an array on the GPU, got {type(frame).__name__}")
    shape, kind, strides = tuple(given["shape"]), given["typestr"], given.get("strides")
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != "|u1":
        raise InputError(f"expected a frame [H, W, 3] uint8, BGR, on the GPU, got {kind} {list(shape)}; convert it")
    if strides is not None and tuple(strides) != (shape[1] * 3, 3, 1):
        raise InputError(f"expected a contiguous frame on the GPU, got strides {list(strides)}; copy it first")
    return Buffer(int(given["data"][0]), shape, np.dtype(np.uint8), frame)
