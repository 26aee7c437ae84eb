"""Selection of a backend by name."""

from __future__ import annotations

import logging

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import Artifact
from corrflow.runtime.backends.base import Backend

logger = logging.getLogger("corrflow")

# onnxruntime propagates with the fused kernel if it was built; onnx-function always uses propagate.onnx.
BACKENDS = ("auto", "tensorrt", "onnxruntime-cuda", "onnxruntime", "onnx-function")
_BEST_FIRST = ("tensorrt", "onnxruntime-cuda", "onnxruntime")


def open_backend(name: str, artifact: Artifact, threads: int = 0) -> Backend:
    """Open a backend by name; "auto" opens the fastest one that works, and logs why faster ones do not.

    threads: CPU threads, 0 for all cores. Raises InputError with reason and remedy for an unknown name, and for a
    requested backend that does not work.
    """
    if name not in BACKENDS:
        raise InputError(f"expected a backend among {', '.join(BACKENDS)}, got {name!r}; choose one")
    for candidate in _BEST_FIRST if name == "auto" else (name,):
        try:
            backend = _open(candidate, artifact, threads)
        except CorrflowError as error:
            if name != "auto" or candidate == _BEST_FIRST[-1]:
                raise  # no backend is left
            logger.info("not %s: %s", candidate, error)
        else:
            logger.info("backend: %s", backend.name)
            return backend
    raise AssertionError("the last candidate returns or raises")


def _open(name: str, artifact: Artifact, threads: int) -> Backend:
    """Open a backend; libraries are imported only for the requested one."""
    if name == "tensorrt":
        from corrflow.runtime.backends.tensorrt import open_tensorrt

        return open_tensorrt(artifact)
    if name == "onnxruntime-cuda":
        from corrflow.runtime.backends.onnxruntime_cuda import open_onnxruntime_cuda

        return open_onnxruntime_cuda(artifact)
    from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend

    if name == "onnx-function":
        return OnnxRuntimeBackend(artifact, threads, fused=False)
    if cpu.unavailable():
        logger.warning("tracking is slow: %s", cpu.unavailable())
    return OnnxRuntimeBackend(artifact, threads, fused=not cpu.unavailable())
