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
    stride:                         side of a cell in pixels of the resized frame, `settings.STRIDE` for every artifact
    """

    name: str
    artifact: Artifact
    supports_runtime_search_params: bool
    supports_window_offsets: bool
    device_frames: bool
    stride: int

    @property
    def on_cpu(self) -> Backend:
        """The backend itself, or one on the CPU for the same artifact, which closes with it."""
        ...

    def frame_on_host(self, frame: Any) -> np.ndarray:
        """Return a frame that lies on the device as an array [H, W, 3] uint8."""
        ...

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


class CpuBackend:
    """Parts of a backend that are the same for all on the CPU."""

    device_frames = False

    @property
    def on_cpu(self) -> Any:
        """The backend itself."""
        return self

    def frame_on_host(self, frame: np.ndarray) -> np.ndarray:
        """Return the frame, which is an array."""
        return frame
