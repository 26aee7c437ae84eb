"""TensorRT: the engines that corrflow-export engine has built on this machine, on memory that stays on the device."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy.tensorrt_plugin import form_for, register
from corrflow.runtime.artifacts.artifact import Artifact
from corrflow.runtime.backends.cuda_device import Buffer, CudaDevice
from corrflow.runtime.backends.engine_files import (
    ENCODE_ENGINE,
    PROPAGATE_ENGINE,
    Engines,
    EngineSpec,
    check_suits,
    load_engines,
)
from corrflow.runtime.backends.gpu import DeviceBackend


def import_tensorrt() -> Any:
    """The module. Raises InputError, with the remedy, where it or its libraries are missing, or it is too old."""
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
    """The back end. Raises InputError where there are no engines, or not ones for this TensorRT, GPU and artifact."""
    engines = load_engines(artifact)
    trt = import_tensorrt()
    device = device or CudaDevice()
    check_suits(artifact, engines.made, trt.__version__, device.gpu, device.compute_capability)
    return DeviceBackend(artifact, device, TensorRtPrograms(trt, device, engines))


class TensorRtPrograms:
    """Fulfils `device_backend.GraphSet` with engines, which are trusted: `load_engines` is what looks at them."""

    supports_cuda_graph = True
    named = True

    def __init__(self, trt: Any, device: CudaDevice, engines: Engines) -> None:
        made: EngineSpec = engines.made
        form = "plugin" if made.plugin else "ONNX function"
        self.name = f"tensorrt {made.tensorrt}, {made.precision}, {form}"
        self.storage = np.dtype(np.float32 if made.precision == "fp32" else np.float16)
        self.frame: tuple[int, int] | None = made.frame
        self.references: int | None = made.references
        self.slots: int | None = made.slots
        self.rows: int | None = made.rows
        self.labels: int | None = made.labels
        if made.plugin and form_for(made.tensorrt) == "v3":
            register(trt)  # such an engine asks for the plugin when it is loaded; later ones have the kernel inside
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.loaded = {
            name: EngineProgram(trt, self._runtime, device, name, engines.contents[name]) for name in made.names
        }

    def encode(self) -> EngineProgram:
        return self.loaded[ENCODE_ENGINE]

    def propagate(self) -> EngineProgram:
        return self.loaded[PROPAGATE_ENGINE]

    def close(self) -> None:
        self.loaded.clear()  # before the runtime that made them


class EngineProgram:
    """Fulfils `device_backend.Program`: an engine and the context that it runs in.

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
        for name, (shape, kind) in self.tensors.items():
            given = tensors[name]
            if (given.shape, given.dtype) != (shape, kind):  # TensorRT would read and write past its end
                raise CorrflowError(
                    f"{self._name}: expected {name} {kind} {list(shape)}, got {given.dtype} {list(given.shape)};"
                    " build the engines again"
                )
            self.context.set_tensor_address(name, given.pointer)
        if not self.context.execute_async_v3(self._device.stream):
            raise CorrflowError(f"TensorRT failed to run {self._name}; its reason is above")
