"""NVIDIA GPU: memory, copies, one stream, CUDA graphs and kernels. Needs cuda-bindings, but no torch.

All operations go to one stream in order, and are complete when `wait` returns.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy.cuda.compiler import REMEDY, compile_source, cuda_core, older_driver

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Buffer:
    """Contiguous memory on the device: address, shape and type. `owner` keeps the memory allocated."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: Any = field(repr=False, compare=False)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def first(self, count: int) -> Buffer:
        """Return the first `count` entries along axis 0."""
        return Buffer(self.pointer, (count, *self.shape[1:]), self.dtype, self.owner)

    def entry(self, index: int) -> Buffer:
        """Return entry `index` along axis 0, with an axis of length one."""
        entry_bytes = self.bytes // self.shape[0]
        return Buffer(self.pointer + index * entry_bytes, (1, *self.shape[1:]), self.dtype, self.owner)

    def batch(self) -> Buffer:
        """Return the buffer with a leading axis of length one."""
        return Buffer(self.pointer, (1, *self.shape), self.dtype, self.owner)


@dataclass(frozen=True)
class PinnedBuffer:
    """Page-locked memory on the host and its counterpart on the device.

    mapped: both are the same memory, on a GPU that shares memory with the CPU; nothing is copied
    """

    host: np.ndarray
    buffer: Buffer
    mapped: bool


class CudaDevice:
    """First GPU, through the CUDA runtime. Raises InputError without bindings, driver or GPU.

    gpu: name; compute_capability: for example "8.7"; stream: handle of the stream, for other libraries
    runtime, core: replacements of cuda.bindings.runtime and cuda.core in tests; core is None without kernels
    """

    def __init__(self, runtime: Any = None, core: Any = None) -> None:
        self._find_core: Callable[[], Any] = cuda_core if runtime is None else lambda: core
        if runtime is None:
            try:
                runtime = importlib.import_module("cuda.bindings.runtime")
            except ImportError as error:
                raise InputError(
                    f"expected CUDA's Python bindings to use a GPU, found none ({error}); {REMEDY}"
                ) from error
        self._cuda = runtime
        code, count = runtime.cudaGetDeviceCount()
        if int(code) or not count:
            if older := older_driver():
                raise InputError(older)
            reason = self._reason(code) if int(code) else "the driver counts none"
            raise InputError(
                f"expected an NVIDIA GPU and its driver, found none ({reason}); install the driver,"
                " restart after an update of it, and give a container its GPU (--gpus all)"
            )
        self._call("cudaSetDevice", 0)
        properties = self._call("cudaGetDeviceProperties", 0)
        name = properties.name
        self.gpu = (name.decode() if isinstance(name, bytes) else str(name)).strip("\0 ")
        self.compute_capability = f"{properties.major}.{properties.minor}"
        self._maps = bool(properties.integrated) and bool(properties.canMapHostMemory)
        self._stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    def allocate(self, shape: Sequence[int], dtype: Any) -> Buffer:
        """Allocate device memory without initialisation; it is freed with the last buffer that refers to it."""
        kind = np.dtype(dtype)
        pointer = int(self._call("cudaMalloc", math.prod(shape) * kind.itemsize))
        return Buffer(pointer, tuple(shape), kind, _Owner(self._cuda.cudaFree, pointer))

    def share(self, shape: Sequence[int], dtype: Any) -> PinnedBuffer:
        """Allocate page-locked zeros on the host, and a counterpart on the device without initialisation."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        flags = self._cuda.cudaHostAllocMapped if self._maps else self._cuda.cudaHostAllocDefault
        pointer = int(self._call("cudaHostAlloc", size, flags))
        owner = _Owner(self._cuda.cudaFreeHost, pointer)
        host = np.asarray(_Bytes(pointer, size, owner)).view(kind).reshape(shape)
        host[...] = 0
        if not self._maps:
            return PinnedBuffer(host, self.allocate(shape, kind), False)
        alias = int(self._call("cudaHostGetDevicePointer", pointer, 0))
        return PinnedBuffer(host, Buffer(alias, tuple(shape), kind, owner), True)

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copy from device to device; both buffers have the same number of bytes."""
        assert target.bytes == source.bytes, (target, source)
        self._copy(target.pointer, source.pointer, source.bytes)

    def upload(self, shared: PinnedBuffer) -> None:
        """Enqueue a copy from host to device; the host memory is read when the stream gets there."""
        if not shared.mapped:
            self._copy(shared.buffer.pointer, shared.host.ctypes.data, shared.buffer.bytes)

    def download(self, shared: PinnedBuffer) -> None:
        """Enqueue a copy from device to host; read the host memory after `wait`."""
        if not shared.mapped:
            self._copy(shared.host.ctypes.data, shared.buffer.pointer, shared.buffer.bytes)

    def wait(self) -> None:
        """Block until all operations on the stream are complete."""
        self._call("cudaStreamSynchronize", self._stream)

    def wait_for(self, stream: int) -> None:
        """Block until all operations on another stream, by its handle, are complete."""
        self._call("cudaStreamSynchronize", stream)

    def capture_graph(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the operations of `work` as a CUDA graph without running them; the result runs the graph.

        Raises CorrflowError for operations that cannot be captured.
        """
        cuda = self._cuda
        self._call("cudaStreamBeginCapture", self._stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            cuda.cudaStreamEndCapture(self._stream)  # otherwise the stream stays unusable
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        launchable = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        owner = _Owner(cuda.cudaGraphExecDestroy, launchable)

        def launch() -> None:
            self._call("cudaGraphLaunch", owner.handle, self._stream)

        return launch

    def kernel(self, source: str, entry_point: str) -> Callable[..., None]:
        """Compile a CUDA C++ kernel for this GPU, and return its launch function.

        The function takes blocks and threads per block as (x, y, z) and the arguments: buffers are passed by address,
        integers as int32. Raises InputError without cuda-core or its compiler, CorrflowError for a wrong source.
        """
        core = self._find_core()
        if core is None:
            raise InputError(f"expected cuda-core to compile kernels, found none; {REMEDY}")
        try:
            core.Device().set_current()
            compiled = compile_source(source, f"sm_{self.compute_capability.replace('.', '')}", core=core)
            kernel, stream = compiled.get_kernel(entry_point), core.Stream.from_handle(self.stream)
        except CorrflowError:
            raise
        except Exception as error:  # cuda-core has no common base class for errors
            raise CorrflowError(f"the GPU failed to load {entry_point}: {error}; see corrflow-doctor") from error

        def launch(blocks: Size, threads: Size, *arguments: Buffer | int) -> None:
            values = (each.pointer if isinstance(each, Buffer) else ctypes.c_int32(each) for each in arguments)
            core.launch(stream, core.LaunchConfig(grid=blocks, block=threads), kernel, *values)

        return launch

    def close(self) -> None:
        """Destroy the stream after its last operation."""
        if self.stream:
            self.wait()
            self._call("cudaStreamDestroy", self._stream)
            self.stream = 0

    def _copy(self, target: int, source: int, size: int) -> None:
        # The driver derives the direction from the addresses.
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *results = getattr(self._cuda, name)(*arguments)
        if int(code):
            raise CorrflowError(f"the GPU failed: {name} says {self._reason(code)}; see corrflow-doctor")
        return results[0] if results else None

    def _reason(self, code: Any) -> str:
        text = self._cuda.cudaGetErrorString(code)[1]
        return text.decode() if isinstance(text, bytes) else str(text)


class _Owner:
    """Owner of a resource, which is freed with the last reference."""

    def __init__(self, free: Callable[[Any], Any], handle: Any) -> None:
        self.handle = handle
        weakref.finalize(self, free, handle)


class _Bytes:
    """Array interface of bytes at an address, for NumPy."""

    def __init__(self, pointer: int, size: int, owner: _Owner) -> None:
        self._owner = owner
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (pointer, False), "version": 3}
