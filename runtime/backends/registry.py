"""Backends by name, and the choice among them."""

from __future__ import annotations

import logging

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import Artifact
from corrflow.runtime.backends.base import Backend

logger = logging.getLogger("corrflow")

# onnxruntime copies labels with the fused kernel where that was built, onnx-function always with propagate.onnx.
BACKENDS = ("auto", "tensorrt", "onnxruntime-cuda", "onnxruntime", "onnx-function")


_BEST_FIRST = ("tensorrt", "onnxruntime-cuda", "onnxruntime")


def open_backend(name: str, artifact: Artifact, threads: int = 0) -> Backend:
    """The back end of that name; "auto" takes the best that works, and logs which and why the better ones do not.

    threads: CPU threads, 0 for as many as there are cores. Raises InputError, with the reason and the remedy, for an
    unknown name and for a back end that was asked for by name and does not work.
    """
    if name not in BACKENDS:
        raise InputError(f"expected a back end among {', '.join(BACKENDS)}, got {name!r}; choose one of those")
    for candidate in _BEST_FIRST if name == "auto" else (name,):
        try:
            backend = _open(candidate, artifact, threads)
        except CorrflowError as error:
            if name != "auto" or candidate == _BEST_FIRST[-1]:
                raise  # nothing else is left
            logger.info("not %s: %s", candidate, error)
        else:
            logger.info("back end: %s", backend.name)
            return backend
    raise AssertionError("the last candidate has been returned or has raised")


def _open(name: str, artifact: Artifact, threads: int) -> Backend:
    if name == "tensorrt":
        from corrflow.runtime.backends.tensorrt import open_tensorrt

        return open_tensorrt(artifact)
    if name == "onnxruntime-cuda":
        from corrflow.runtime.backends.onnxruntime_cuda import open_onnxruntime_cuda

        return open_onnxruntime_cuda(artifact)
    from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend

    reason = "asked for the ONNX function" if name == "onnx-function" else cpu.unavailable()
    if reason:
        logger.info("no fused kernel: %s", reason)
    return OnnxRuntimeBackend(artifact, threads, fused=not reason)
