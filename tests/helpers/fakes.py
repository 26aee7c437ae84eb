"""Fake CUDA runtime with memory in NumPy arrays; loaded by the fixture `fakes` of conftest.py.

The fake is stricter than a GPU. The stream runs nothing before a wait, and unwritten memory is NaN. An address outside
allocated memory is an error, as is allocating or waiting during a capture.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from corrflow.runtime.backends.cuda_device import Buffer

Work = Callable[[], None]
NOT_WHILE_CAPTURING = 900


class Cuda:
    """Used part of cuda.bindings.runtime, with the same names and order of arguments."""

    cudaStreamNonBlocking, cudaHostAllocDefault, cudaHostAllocMapped = 1, 0, 2
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, integrated: bool = False, name: str = "Fake GPU", major: int = 8, minor: int = 7) -> None:
        self.properties = SimpleNamespace(
            name=name.encode(), major=major, minor=minor, integrated=int(integrated), canMapHostMemory=1
        )
        self.memory: dict[int, np.ndarray] = {}
        self.pending: list[Work] = []
        self.capture: list[Work] | None = None
        self.graphs: dict[int, list[Work]] = {}
        self.launched = self.captured = self.allocated = self.waited_for = 0
        self.copied: list[int] = []

    def push(self, work: Work) -> None:
        """Append work to the stream, or to the current capture."""
        (self.pending if self.capture is None else self.capture).append(work)

    def run(self) -> None:
        """Run all pending work."""
        pending, self.pending = self.pending, []
        for work in pending:
            work()

    def check(self, pointer: int, size: int) -> None:
        """Assert that an address range is allocated."""
        inside = any(base <= pointer and pointer + size <= base + len(block) for base, block in self.memory.items())
        assert inside, f"{size} bytes at {pointer:#x} are not allocated"

    def cudaGetDeviceCount(self) -> tuple[int, int | None]:
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

    def cudaMalloc(self, size) -> tuple[int, int | None]:
        if self.capture is not None:
            return NOT_WHILE_CAPTURING, None
        block = np.full(size, 0xFF, np.uint8)
        self.memory[block.ctypes.data] = block
        self.allocated += 1
        return 0, block.ctypes.data

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
        if self.capture is not None:
            return (NOT_WHILE_CAPTURING,)
        self.waited_for = stream
        self.run()
        return (0,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.capture = []
        return (0,)

    def cudaStreamEndCapture(self, stream):
        capture, self.capture = self.capture, None
        assert capture is not None
        self.captured += 1
        self.graphs[self.captured] = capture
        return 0, self.captured

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


def view(cuda: Cuda, pointer: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array in the fake's memory; assert that all of it is allocated."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    cuda.check(pointer, size)
    raw: Any = (ctypes.c_uint8 * size).from_address(pointer)
    return np.frombuffer(raw, dtype).reshape(shape)


def core(cuda: Cuda, run: Callable[..., None]) -> Any:
    """Return the used part of cuda.core. A launch calls run(source, entry_point, config, *arguments) on the stream.

    `compiled` lists (source, architecture) of compiled kernels.
    """
    compiled: list[tuple[str, str]] = []

    def program(source: str, language: str, options: Any) -> Any:
        def compile_source(target: str) -> Any:
            assert (language, target, options.std) == ("c++", "cubin", "c++17")
            compiled.append((source, options.arch))
            return SimpleNamespace(get_kernel=lambda name: (source, name))

        return SimpleNamespace(compile=compile_source)

    def launch(stream: Any, config: Any, kernel: tuple[str, str], *arguments: Any) -> None:
        assert stream == ("stream", 77)
        for each in arguments:
            assert isinstance(each, int | ctypes.c_int32), "pointers are ints, sizes are 32 bits"
        values = [each.value if isinstance(each, ctypes.c_int32) else each for each in arguments]
        cuda.push(lambda: run(*kernel, config, *values))

    return SimpleNamespace(
        compiled=compiled,
        Device=lambda: SimpleNamespace(set_current=lambda: None),
        LaunchConfig=lambda grid, block: SimpleNamespace(grid=grid, block=block),
        Program=program,
        ProgramOptions=lambda std, arch: SimpleNamespace(std=std, arch=arch),
        Stream=SimpleNamespace(from_handle=lambda handle: ("stream", handle)),
        launch=launch,
    )


class Streamed:
    """GraphSet of ONNX Runtime CPU sessions that run on the stream of a `Cuda`."""

    supports_cuda_graph = True

    def __init__(self, graphs: Any, cuda: Cuda, **fixed: Any) -> None:
        self._graphs, self._cuda = graphs, cuda
        self.name, self.dtype = "fake", graphs.dtype
        self.indexed_references = graphs.indexed_references
        self.frame: tuple[int, int] | None = fixed.pop("frame", None)
        self.num_reference_frames: int | None = fixed.pop("num_reference_frames", None)
        self.num_channels: int | None = fixed.pop("num_channels", None)
        self.num_slots: int | None = fixed.pop("num_slots", None)
        self.num_windows: int | None = fixed.pop("num_windows", None)
        assert not fixed, f"unknown sizes: {fixed}"
        self.runs: list[str] = []

    def encode(self) -> _StreamedGraph:
        return _StreamedGraph(self, "encode", self._graphs.encode())

    def propagate(self) -> _StreamedGraph:
        return _StreamedGraph(self, "propagate", self._graphs.propagate())

    def close(self) -> None:
        self._graphs.close()

    def push(self, name: str, graph: Any, tensors: dict[str, Buffer]) -> None:
        def run() -> None:
            for tensor in tensors.values():
                self._cuda.check(tensor.pointer, tensor.bytes)
            self.runs.append(name)
            graph.enqueue(tensors)

        self._cuda.push(run)


class _StreamedGraph:
    def __init__(self, streamed: Streamed, name: str, graph: Any) -> None:
        self._streamed, self._name, self._graph = streamed, name, graph

    def enqueue(self, tensors: dict[str, Buffer]) -> None:
        self._streamed.push(self._name, self._graph, dict(tensors))


def tensorrt(cuda: Cuda, version: str = "11.4.0", takes_plugin: bool = True, wrong: float = 0.0) -> Any:
    """Return the used part of the module tensorrt. An "engine" is an ONNX file that ONNX Runtime runs on the CPU.

    takes_plugin: the parser uses the plugin for the node; wrong: error that is added to propagated soft masks
    """
    import onnx
    import onnxruntime

    onnx_type: dict[Any, Any] = {
        onnx.TensorProto.FLOAT: np.float32,
        onnx.TensorProto.FLOAT16: np.float16,
        onnx.TensorProto.UINT8: np.uint8,
        onnx.TensorProto.INT32: np.int32,
    }
    seen = SimpleNamespace(flags=[], caches=[], models=[], verbosity=[])

    class IProfiler:
        pass

    class Context:
        def __init__(self, engine: Engine) -> None:
            self._engine, self.profiler = engine, None
            self._addresses: dict[str, int] = {}

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == 77
            addresses = dict(self._addresses)

            def run() -> None:
                inputs = {name: self.tensor(name, addresses) for name in self._engine.inputs}
                outputs: Any = self._engine.session.run(None, inputs)
                for name, value in zip(self._engine.outputs, outputs, strict=True):
                    self.tensor(name, addresses)[...] = value + (wrong if name == "labels" else 0)
                if self.profiler is not None:
                    self.profiler.report_layer_time("layer a", 0.25)
                    self.profiler.report_layer_time("layer b", 1.5)

            cuda.push(run)
            return True

        def tensor(self, name: str, addresses: dict[str, int]) -> np.ndarray:
            return view(cuda, addresses[name], *self._engine.tensors[name])

    class Engine:
        def __init__(self, content: bytes) -> None:
            model = onnx.load_model_from_string(content)
            self.plugin = takes_plugin and any(node.domain == "corrflow" for node in model.graph.node)
            self.tensors = {
                value.name: (
                    tuple(size.dim_value for size in value.type.tensor_type.shape.dim),
                    onnx_type[value.type.tensor_type.elem_type],
                )
                for value in (*model.graph.input, *model.graph.output)
            }
            self.inputs = [value.name for value in model.graph.input]
            self.outputs = [value.name for value in model.graph.output]
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            self.num_io_tensors = len(self.tensors)

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.tensors[name][0]

        def get_tensor_dtype(self, name: str) -> Any:
            return self.tensors[name][1]

        def create_execution_context(self) -> Context:
            return Context(self)

        def create_engine_inspector(self) -> Any:
            layers = [{"Name": "x", "LayerType": "PluginV3" if self.plugin else "Convolution"}]
            return SimpleNamespace(get_engine_information=lambda kind: json.dumps({"Layers": layers}))

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            return Engine(content[4:]) if content[:4] == b"FAKE" else None

    class Parser:
        num_errors = 0

        def __init__(self, network: Any, logger: Any) -> None:
            self._network = network

        def parse(self, content: bytes) -> bool:
            self._network.content = content
            seen.models.append(onnx.load_model_from_string(content))
            return True

    class Config:
        profiling_verbosity = None

        def create_timing_cache(self, content: bytes) -> Any:
            seen.caches.append(content)
            return SimpleNamespace(serialize=lambda: bytearray(content + b"t"))

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            pass

        def create_network(self, flags: int) -> Any:
            seen.flags.append(flags)
            return SimpleNamespace()

        def create_builder_config(self) -> Config:
            return Config()

        def build_serialized_network(self, network: Any, config: Config) -> bytearray:
            seen.verbosity.append(config.profiling_verbosity)
            return bytearray(b"FAKE" + network.content)

    class Logger:
        ERROR = 1

        def __init__(self, severity: int) -> None:
            pass

    return SimpleNamespace(
        __version__=version,
        seen=seen,
        Builder=Builder,
        IProfiler=IProfiler,
        LayerInformationFormat=SimpleNamespace(JSON=1),
        Logger=Logger,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        OnnxParser=Parser,
        ProfilingVerbosity=SimpleNamespace(DETAILED=2),
        Runtime=Runtime,
        nptype=lambda kind: kind,
    )
