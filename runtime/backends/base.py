"""Backend protocol: encode frames, and propagate soft masks from a memory of reference frames."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from corrflow.runtime.artifacts.artifact import Artifact
from corrflow.runtime.backends.search_plan import ReferenceFrame, SearchPlan
from corrflow.runtime.settings import TrackingSettings

# Features and the memory belong to the backend that made them, since they may lie on another device. np.asarray copies
# features to the host, [C, h, w] float32, and a memory accepts them from there.
Features = Any


class Memory(Protocol):
    """Reference frames of one group of objects: features with soft masks. Its size does not grow with the stream."""

    def add_frame(self, features: Features, soft_masks: np.ndarray) -> None:
        """Store the next frame over the oldest one that is no longer needed.

        features:   of any frame, as `encode` or np.asarray returned them
        soft_masks: [N, h, w] float32
        """
        ...

    @property
    def references(self) -> list[ReferenceFrame]:
        """Reference frames of the next frame, by ascending slot."""
        ...

    @property
    def num_channels(self) -> int:
        """N, the number of mask channels."""
        ...


class Backend(Protocol):
    """Encodes frames and propagates soft masks.

    supports_runtime_search_params: the search parameters may differ from those built into propagate.onnx
    supports_window_offsets:        search windows may be shifted, and so follow the objects
    device_frames:                  frames may lie on a GPU (__cuda_array_interface__)
    """

    name: str
    artifact: Artifact
    supports_runtime_search_params: bool
    supports_window_offsets: bool
    device_frames: bool

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> Features:
        """Encode a frame [H, W, 3] uint8, BGR, resized by area to the working size (height, width); None: as it is.

        No side of the working size is longer than the frame's.
        """
        ...

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> Memory:
        """Return an empty memory with the slots of these settings, for soft masks [num_channels, *cells]."""
        ...

    def propagate(self, query: Features, memory: Any, plan: SearchPlan) -> np.ndarray:
        """Return soft masks [N, h, w] float32 of a frame, copied from a memory of this backend as the plan says."""
        ...

    def close(self) -> None:
        """Release everything that the backend holds."""
        ...
