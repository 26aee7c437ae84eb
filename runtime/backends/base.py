"""What computes: one small protocol, and the choice among those who fulfil it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.runtime.artifacts.artifact import Artifact
from corrflow.runtime.settings import TrackingSettings

# Features and the memory belong to the back end that made them: they may live on another device. np.asarray brings
# features to the host, [C, h, w] float32, and a memory takes them back from there.
Features = Any


class Memory(Protocol):
    """References of one group of objects: features with soft labels. Bytes held do not grow with the stream."""

    def add_frame(self, features: Features, labels: np.ndarray) -> None:
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

    supports_runtime_search_params: whether it searches with any attributes, and not only with those built into propagate.onnx
    supports_window_offsets: whether the windows of its references can be moved, and so follow the objects
    device_frames: whether frames may be on a GPU already (__cuda_array_interface__)
    """

    name: str
    artifact: Artifact
    supports_runtime_search_params: bool
    supports_window_offsets: bool
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
