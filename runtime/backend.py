"""What computes: one small protocol, and the choice among those who fulfil it."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np

from corrflow.plugins.errors import InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.runtime.artifact import Artifact, TrackingSettings

logger = logging.getLogger("corrflow")

# onnxruntime copies labels with the fused kernel where that was built, onnx-function always with propagate.onnx.
BACKENDS = ("auto", "onnxruntime", "onnx-function")

# Features and the memory belong to the back end that made them: they may live on another device.
Features = Any


class Memory(Protocol):
    """References of one group of objects: features with soft labels. Bytes held do not grow with the stream."""

    def remember(self, features: Features, labels: np.ndarray) -> None:
        """Store the next frame: labels [N, h, w] float32. What the settings do not need any longer is overwritten."""
        ...

    def searched_with(self, attributes: Attributes) -> Memory:
        """The same references as they are now, searched otherwise; for back ends that take any attributes."""
        ...

    @property
    def labels(self) -> int:
        """N, the number of label channels."""
        ...


class Backend(Protocol):
    """Encodes frames and propagates labels.

    any_attributes: whether it searches with any attributes, and not only with those built into propagate.onnx
    """

    name: str
    artifact: Artifact
    any_attributes: bool

    def encode(self, frame: np.ndarray) -> Features:
        """Features of a frame [H, W, 3] uint8, BGR, as it is: nothing is resized here."""
        ...

    def new_memory(self, settings: TrackingSettings, labels: int, cells: tuple[int, int]) -> Memory:
        """An empty memory that keeps the references of these settings, with `labels` channels."""
        ...

    def propagate(self, query: Features, memory: Any) -> np.ndarray:
        """Soft labels [N, h, w] float32 of a frame, copied from a memory that this back end made."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


def open_backend(name: str, artifact: Artifact, threads: int = 0) -> Backend:
    """The back end of that name; "auto" takes the best that works and logs which.

    threads: CPU threads, 0 for as many as there are cores. Raises InputError for an unknown name.
    """
    if name not in BACKENDS:
        raise InputError(f"expected a back end among {', '.join(BACKENDS)}, got {name!r}; choose one of those")
    from corrflow.runtime.onnxruntime_backend import OnnxRuntimeBackend

    reason = "asked for the ONNX function" if name == "onnx-function" else cpu.unavailable()
    backend = OnnxRuntimeBackend(artifact, threads, fused=not reason)
    logger.info("back end: %s%s", backend.name, reason and f" ({reason})")
    return backend
