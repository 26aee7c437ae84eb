"""A CUDA runtime whose memory is NumPy arrays. Loaded through the fixture `fakes` of conftest.py.

It is strict where a GPU is forgiving or silent: the stream runs nothing before it is waited for, what was never written
is NaN, an address outside live memory is an error, and so is allocating or waiting while work is recorded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from corrflow.runtime.device import Buffer

Work = Callable[[], None]
NOT_WHILE_RECORDING = 900


class Cuda:
    """What of cuda.bindings.runtime is used, by the same names and in the same order of arguments."""

    cudaStreamNonBlocking, cudaHostAllocDefault, cudaHostAllocMapped = 1, 0, 2
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, integrated: bool = False, name: str = "Fake GPU", major: int = 8, minor: int = 7) -> None:
        self.properties = SimpleNamespace(
            name=name.encode(), major=major, minor=minor, integrated=int(integrated), canMapHostMemory=1
        )
        self.memory: dict[int, np.ndarray] = {}
        self.pending: list[Work] = []
        self.recording: list[Work] | None = None
        self.graphs: dict[int, list[Work]] = {}
        self.launched = self.recorded = self.allocated = self.waited_for = 0
        self.copied: list[int] = []

    def push(self, work: Work) -> None:
        """Onto the stream, or into what is being recorded."""
        (self.pending if self.recording is None else self.recording).append(work)

    def run(self) -> None:
        pending, self.pending = self.pending, []
        for work in pending:
            work()

    def check(self, pointer: int, size: int) -> None:
        inside = any(base <= pointer and pointer + size <= base + len(held) for base, held in self.memory.items())
        assert inside, f"{size} bytes at {pointer:#x} are not in live memory"

    def cudaGetDeviceCount(self):
        return 0, 1

    def cudaSetDevice(self, index):
        return (0,)

    def cudaGetDeviceProperties(self, index):
        return 0, self.properties

    def cudaGetErrorString(self, code):
        return 0, f"error {int(code)}".encode()

    def cudaStreamCreateWithFlags(self, flags):
        return 0, 77

    def cudaStreamDestroy(self, stream):
        return (0,)

    def cudaMalloc(self, size):
        if self.recording is not None:
            return NOT_WHILE_RECORDING, None
        held = np.full(size, 0xFF, np.uint8)
        self.memory[held.ctypes.data] = held
        self.allocated += 1
        return 0, held.ctypes.data

    def cudaFree(self, pointer):
        self.run()
        del self.memory[pointer]
        return (0,)

    def cudaHostAlloc(self, size, flags):
        return self.cudaMalloc(size)

    cudaFreeHost = cudaFree

    def cudaHostGetDevicePointer(self, pointer, flags):
        assert self.properties.integrated and pointer in self.memory
        return 0, pointer

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        def copy() -> None:
            self.check(target, size)
            self.check(source, size)
            self.copied.append(size)
            ctypes.memmove(target, source, size)

        self.push(copy)
        return (0,)

    def cudaStreamSynchronize(self, stream):
        if self.recording is not None:
            return (NOT_WHILE_RECORDING,)
        self.waited_for = stream
        self.run()
        return (0,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream):
        recorded, self.recording = self.recording, None
        assert recorded is not None
        self.recorded += 1
        self.graphs[self.recorded] = recorded
        return 0, self.recorded

    def cudaGraphInstantiate(self, graph, flags):
        return 0, graph

    def cudaGraphDestroy(self, graph):
        return (0,)

    def cudaGraphExecDestroy(self, graph):
        del self.graphs[graph]
        return (0,)

    def cudaGraphLaunch(self, graph, stream):
        self.launched += 1
        self.pending += self.graphs[graph]
        return (0,)


class Streamed:
    """Programs of ONNX Runtime's CPU sessions that wait for their turn on the stream of a `Cuda`."""

    recordable = True

    def __init__(self, programs: Any, cuda: Cuda, **fixed: Any) -> None:
        self._programs, self._cuda = programs, cuda
        self.name, self.storage = "fake", programs.storage
        self.frame, self.references, self.labels = (fixed.get(name) for name in ("frame", "references", "labels"))
        self.runs: list[str] = []

    def encode(self) -> _Turn:
        return _Turn(self, "encode", self._programs.encode())

    def propagate(self, references: int) -> _Turn:
        return _Turn(self, f"propagate-{references}", self._programs.propagate(references))

    def close(self) -> None:
        self._programs.close()

    def push(self, name: str, program: Any, tensors: dict[str, Buffer]) -> None:
        def run() -> None:
            for tensor in tensors.values():
                self._cuda.check(tensor.pointer, tensor.bytes)
            self.runs.append(name)
            program.enqueue(tensors)

        self._cuda.push(run)


class _Turn:
    def __init__(self, streamed: Streamed, name: str, program: Any) -> None:
        self._streamed, self._name, self._program = streamed, name, program

    def enqueue(self, tensors: dict[str, Buffer]) -> None:
        self._streamed.push(self._name, self._program, dict(tensors))
