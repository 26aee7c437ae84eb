"""TensorRT backend: engines that corrflow-export engine has built on this machine."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy.tensorrt.library import require_library
from corrflow.plugins.local_soft_copy.tensorrt_plugin import form_for, register
from corrflow.runtime.artifacts.artifact import Artifact
from corrflow.runtime.backends.cuda_device import Buffer, CudaDevice
from corrflow.runtime.backends.engine_files import (
    ENCODE_ENGINE,
    PROPAGATE_ENGINE,
    Engines,
    EngineSpec,
    check_matches,
    load_engines,
)
from corrflow.runtime.backends.gpu import DeviceBackend


def import_tensorrt() -> Any:
    """Import tensorrt. Raises InputError if the module or its libraries are missing, or if it is too old."""
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise
        raise InputError(
            "expected the Python module tensorrt, found none; JetPack has it (venv --system-site-packages), elsewhere"
            " install the one that fits your CUDA"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"expected TensorRT's libraries, found the module without them ({error}); install those of the module's"
            " version, and let the loader find them (LD_LIBRARY_PATH)"
        ) from error
    if form_for(trt.__version__) == "none":
        raise InputError(f"expected TensorRT 10.3 or later, got {trt.__version__}; update TensorRT")
    return trt


def open_tensorrt(artifact: Artifact, device: CudaDevice | None = None) -> DeviceBackend:
    """Open the backend. Raises InputError without engines for this TensorRT, GPU and artifact."""
    engines = load_engines(artifact)
    trt = import_tensorrt()
    device = device or CudaDevice()
    check_matches(artifact, engines.spec, trt.__version__, device.gpu, device.compute_capability)
    return DeviceBackend(artifact, device, TensorRtGraphs(trt, device, engines))


@functools.cache
def tensorrt_logger(logger_class: Any) -> Any:
    """Return the one trt.Logger of this process. TensorRT keeps the first that it is given, so it must not be freed."""
    return logger_class(logger_class.ERROR)


class TensorRtGraphs:
    """`gpu.GraphSet` of engines; `load_engines` has verified their signature."""

    supports_cuda_graph = True
    indexed_references = True

    def __init__(self, trt: Any, device: CudaDevice, engines: Engines) -> None:
        spec: EngineSpec = engines.spec
        form = "plugin library" if spec.library else "plugin" if spec.plugin else "ONNX function"
        self.name = f"tensorrt {spec.tensorrt}, {spec.precision}, {form}"
        self.dtype = np.dtype(np.float32 if spec.precision == "fp32" else np.float16)
        self.frame: tuple[int, int] | None = spec.frame
        self.num_reference_frames: int | None = spec.num_reference_frames
        self.num_slots: int | None = spec.num_slots
        self.num_windows: int | None = spec.num_windows
        self.num_channels: int | None = spec.num_channels
        if spec.library:
            register(trt, require_library())
        elif spec.plugin and form_for(spec.tensorrt) == "v3":
            register(trt)  # these engines need the plugin when they are loaded; later versions contain the kernel
        self._runtime = trt.Runtime(tensorrt_logger(trt.Logger))
        self.loaded = {
            name: EngineGraph(trt, self._runtime, device, name, engines.contents[name]) for name in spec.names
        }

    def encode(self) -> EngineGraph:
        """Return the engine that encodes."""
        return self.loaded[ENCODE_ENGINE]

    def propagate(self) -> EngineGraph:
        """Return the engine that propagates."""
        return self.loaded[PROPAGATE_ENGINE]

    def close(self) -> None:
        """Release the engines."""
        self.loaded.clear()  # before the runtime that created them


class EngineGraph:
    """`gpu.Graph` of an engine and its execution context.

    tensors: shape and type of each input and output by name
    """

    def __init__(self, trt: Any, runtime: Any, device: CudaDevice, name: str, content: bytes) -> None:
        self._name, self._device = name, device
        self.engine = runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise InputError(f"TensorRT {trt.__version__} refuses {name}; build it again with corrflow-export engine")
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise CorrflowError(f"TensorRT has no room to run {name}; free memory on the GPU, or use smaller frames")
        self.tensors: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        for index in range(self.engine.num_io_tensors):
            tensor = self.engine.get_tensor_name(index)
            kind = np.dtype(trt.nptype(self.engine.get_tensor_dtype(tensor)))
            self.tensors[tensor] = tuple(self.engine.get_tensor_shape(tensor)), kind

    def enqueue(self, tensors: dict[str, Buffer]) -> None:
        """Put a run on the device's stream. Raises CorrflowError for tensors of another shape or type."""
        for name, (shape, kind) in self.tensors.items():
            tensor = tensors[name]
            if (tensor.shape, tensor.dtype) != (shape, kind):  # TensorRT would access memory past its end
                raise CorrflowError(
                    f"{self._name}: expected {name} {kind} {list(shape)}, got {tensor.dtype} {list(tensor.shape)};"
                    " build the engines again"
                )
            self.context.set_tensor_address(name, tensor.pointer)
        if not self.context.execute_async_v3(self._device.stream):
            raise CorrflowError(f"TensorRT failed to run {self._name}; its reason is above")
