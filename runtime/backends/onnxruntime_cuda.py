"""ONNX Runtime on an NVIDIA GPU: the graphs of the artifact, bound to device memory."""

from __future__ import annotations

import platform

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.artifacts.artifact import ENCODE, PROPAGATE, REFERENCES, Artifact
from corrflow.runtime.backends.cuda_device import Buffer, CudaDevice
from corrflow.runtime.backends.gpu import DeviceBackend

_PROVIDER = "CUDAExecutionProvider"


def unavailable() -> str:
    """Return the reason why ONNX Runtime has no GPU support, with the remedy; empty if it has."""
    import onnxruntime

    if _PROVIDER in onnxruntime.get_available_providers():
        return ""
    where = "NVIDIA's wheel for your JetPack (PyPI has none)" if platform.machine() == "aarch64" else "onnxruntime-gpu"
    return (
        f"expected an onnxruntime with CUDA, got {onnxruntime.__version__} without it; pip uninstall onnxruntime, then"
        f" pip install {where}"
    )


def open_onnxruntime_cuda(artifact: Artifact) -> DeviceBackend:
    """Open the backend. Raises InputError without CUDA in ONNX Runtime, or without a GPU."""
    if reason := unavailable():
        raise InputError(reason)
    device = CudaDevice()
    # On the device's stream, so that copies and graphs run in order without waiting.
    provider = (_PROVIDER, {"device_id": "0", "user_compute_stream": str(device.stream)})
    return DeviceBackend(artifact, device, OnnxRuntimeGraphs(artifact, provider, "cuda"))


class OnnxRuntimeGraphs:
    """`gpu.GraphSet` of ONNX Runtime sessions, in float32 and for any size.

    provider: execution provider with options; memory: ONNX Runtime's name of its memory, "cuda" or "cpu". Raises
    InputError if the provider does not start, for which ONNX Runtime only logs a warning.
    """

    dtype = np.dtype(np.float32)
    supports_cuda_graph = False  # ONNX Runtime allocates and waits during a run
    frame: tuple[int, int] | None = None
    num_reference_frames: int | None = None
    num_slots: int | None = None
    num_windows: int | None = None
    num_channels: int | None = None

    def __init__(self, artifact: Artifact, provider: tuple[str, dict[str, str]], memory: str) -> None:
        import onnxruntime

        self.name = f"onnxruntime-{memory}, ONNX function"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        encode = artifact.with_float_encoder().files[ENCODE]  # encode.onnx may be the 8-bit encoder for CPUs
        self._graphs: list[_Session] = []
        for content in (encode, artifact.files[PROPAGATE]):
            try:
                session = onnxruntime.InferenceSession(content, options, providers=[provider])
            except Exception as error:  # onnxruntime's own exceptions share no base class
                raise InputError(
                    f"{artifact.name}: onnxruntime {onnxruntime.__version__} refuses the graphs on {memory}"
                    f" ({str(error).splitlines()[0]}); export the artifact again, or use another backend"
                ) from error
            if session.get_providers()[0] != provider[0]:
                raise InputError(
                    f"expected onnxruntime {onnxruntime.__version__} to start {provider[0]}, got"
                    f" {session.get_providers()[0]} instead; install the CUDA and cuDNN that it wants, and let the"
                    " loader find them (LD_LIBRARY_PATH)"
                )
            self._graphs.append(_Session(session, memory))
        self.indexed_references = REFERENCES in self._graphs[1].inputs

    def encode(self) -> _Session:
        """Return the graph that encodes."""
        return self._graphs[0]

    def propagate(self) -> _Session:
        """Return the graph that propagates."""
        return self._graphs[1]

    def close(self) -> None:
        """Release the sessions."""
        self._graphs.clear()


class _Session:
    """`gpu.Graph` of a session; inputs and outputs are bound by address, without copies."""

    def __init__(self, session, memory: str) -> None:
        self._session, self._memory = session, memory
        self.inputs = [entry.name for entry in session.get_inputs()]
        self._outputs = [entry.name for entry in session.get_outputs()]

    def enqueue(self, tensors: dict[str, Buffer]) -> None:
        """Run the session on the device's stream. Raises CorrflowError if it fails."""
        binding = self._session.io_binding()
        for bind, names in ((binding.bind_input, self.inputs), (binding.bind_output, self._outputs)):
            for name in names:
                tensor = tensors[name]
                bind(name, self._memory, 0, tensor.dtype.type, tensor.shape, tensor.pointer)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise CorrflowError(f"onnxruntime failed: {str(error).splitlines()[0]}") from error
