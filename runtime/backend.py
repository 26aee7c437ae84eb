"""What computes: one small protocol, and the choice among those who fulfil it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from corrflow.plugins.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.runtime.artifact import Artifact, TrackingSettings

logger = logging.getLogger("corrflow")

# onnxruntime copies labels with the fused kernel where that was built, onnx-function always with propagate.onnx.
BACKENDS = ("auto", "tensorrt", "onnxruntime-cuda", "onnxruntime", "onnx-function")
_BEST_FIRST = ("tensorrt", "onnxruntime-cuda", "onnxruntime")

# Features and the memory belong to the back end that made them: they may live on another device. np.asarray brings
# features to the host, [C, h, w] float32, and a memory takes them back from there.
Features = Any


class Memory(Protocol):
    """References of one group of objects: features with soft labels. Bytes held do not grow with the stream."""

    def remember(self, features: Features, labels: np.ndarray) -> None:
        """Store the next frame: labels [N, h, w] float32. What the settings do not need any longer is overwritten.

        features: of any frame, as they were encoded or as np.asarray has brought them to the host
        """
        ...

    def searched_with(self, attributes: Attributes) -> Memory:
        """The same references as they are now, searched otherwise; for back ends that take any attributes."""
        ...

    def aimed(self, aims: Mapping[int, Sequence[tuple[int, int]]]) -> Memory:
        """The same references as they are now, those of a frame once for each of its moves (down, right), in cells.

        Frames are counted from the first remembered; for back ends that move windows.
        """
        ...

    @property
    def frames(self) -> list[int]:
        """The frames that are references for the next one, counted from the first remembered."""
        ...

    @property
    def labels(self) -> int:
        """N, the number of label channels."""
        ...


class Backend(Protocol):
    """Encodes frames and propagates labels.

    any_attributes: whether it searches with any attributes, and not only with those built into propagate.onnx
    moves_windows: whether the windows of its references can be moved, and so follow the objects
    device_frames: whether frames may be on a GPU already (__cuda_array_interface__)
    """

    name: str
    artifact: Artifact
    any_attributes: bool
    moves_windows: bool
    device_frames: bool

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> Features:
        """Features of a frame [H, W, 3] uint8, BGR, shrunk by area to the working size (height, width); None: as it is.

        No side of the working size is longer than the frame's.
        """
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
        from corrflow.runtime.tensorrt_backend import open_tensorrt

        return open_tensorrt(artifact)
    if name == "onnxruntime-cuda":
        from corrflow.runtime.onnxruntime_cuda_backend import open_onnxruntime_cuda

        return open_onnxruntime_cuda(artifact)
    from corrflow.runtime.onnxruntime_backend import OnnxRuntimeBackend

    reason = "asked for the ONNX function" if name == "onnx-function" else cpu.unavailable()
    if reason:
        logger.info("no fused kernel: %s", reason)
    return OnnxRuntimeBackend(artifact, threads, fused=not reason)
