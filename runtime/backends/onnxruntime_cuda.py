"""ONNX Runtime on an NVIDIA GPU: the artifact's own graphs, bound to memory that stays on the device."""

from __future__ import annotations

import platform

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.artifacts.artifact import ENCODE, ENCODE_FP32, PROPAGATE, REFERENCES, Artifact
from corrflow.runtime.backends.cuda_device import Buffer, CudaDevice
from corrflow.runtime.backends.gpu import DeviceBackend

_PROVIDER = "CUDAExecutionProvider"


def unavailable() -> str:
    """Why ONNX Runtime has no GPU here, with the remedy; empty where it says that it has one."""
    import onnxruntime

    if _PROVIDER in onnxruntime.get_available_providers():
        return ""
    where = "NVIDIA's wheel for your JetPack (PyPI has none)" if platform.machine() == "aarch64" else "onnxruntime-gpu"
    return (
        f"expected an onnxruntime with CUDA, got {onnxruntime.__version__} without it; pip uninstall onnxruntime, then"
        f" pip install {where}"
    )


def open_onnxruntime_cuda(artifact: Artifact) -> DeviceBackend:
    """The back end. Raises InputError where ONNX Runtime has no CUDA, or there is no GPU for it."""
    if reason := unavailable():
        raise InputError(reason)
    device = CudaDevice()
    # On our stream, so that copies and graphs are in order without waiting in between.
    provider = (_PROVIDER, {"device_id": "0", "user_compute_stream": str(device.stream)})
    return DeviceBackend(artifact, device, OnnxRuntimePrograms(artifact, provider, "cuda"))


class OnnxRuntimePrograms:
    """Fulfils `device_backend.GraphSet`, in float32 and for any size.

    provider: an execution provider with its options; memory: what ONNX Runtime calls the memory that it works in,
    "cuda" or "cpu". Raises InputError where the provider refuses to start, which ONNX Runtime itself only warns of.
    """

    storage = np.dtype(np.float32)
    supports_cuda_graph = False  # ONNX Runtime allocates and waits as it likes
    frame: tuple[int, int] | None = None
    references: int | None = None
    slots: int | None = None
    rows: int | None = None
    labels: int | None = None

    def __init__(self, artifact: Artifact, provider: tuple[str, dict[str, str]], memory: str) -> None:
        import onnxruntime

        self.name = f"onnxruntime-{memory}, ONNX function"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Where encode.onnx is of 8 bits for the CPU's sake, the original is beside it.
        encode = artifact.files.get(ENCODE_FP32, artifact.files[ENCODE])
        self._programs: list[_Session] = []
        for content in (encode, artifact.files[PROPAGATE]):
            try:
                session = onnxruntime.InferenceSession(content, options, providers=[provider])
            except Exception as error:  # onnxruntime's own exceptions share no base class
                raise InputError(
                    f"{artifact.name}: onnxruntime {onnxruntime.__version__} refuses the graphs on {memory}"
                    f" ({str(error).splitlines()[0]}); export the artifact again, or use another back end"
                ) from error
            if session.get_providers()[0] != provider[0]:
                raise InputError(
                    f"expected onnxruntime {onnxruntime.__version__} to start {provider[0]}, got"
                    f" {session.get_providers()[0]} instead; install the CUDA and cuDNN that it wants, and let the"
                    " loader find them (LD_LIBRARY_PATH)"
                )
            self._programs.append(_Session(session, memory))
        self.named = REFERENCES in self._programs[1].inputs

    def encode(self) -> _Session:
        return self._programs[0]

    def propagate(self) -> _Session:
        return self._programs[1]

    def close(self) -> None:
        self._programs.clear()


class _Session:
    """Fulfils `device_backend.Program`. Nothing is copied: inputs and outputs are bound by address."""

    def __init__(self, session, memory: str) -> None:
        self._session, self._memory = session, memory
        self.inputs = [entry.name for entry in session.get_inputs()]
        self._outputs = [entry.name for entry in session.get_outputs()]

    def enqueue(self, tensors: dict[str, Buffer]) -> None:
        binding = self._session.io_binding()
        for bind, names in ((binding.bind_input, self.inputs), (binding.bind_output, self._outputs)):
            for name in names:
                tensor = tensors[name]
                bind(name, self._memory, 0, tensor.dtype.type, tensor.shape, tensor.pointer)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise CorrflowError(f"onnxruntime failed: {str(error).splitlines()[0]}") from error
