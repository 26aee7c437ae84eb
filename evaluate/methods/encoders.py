"""Backends for features other than a model's own: raw Lab patches, and any encoder in ONNX format.

Both put their features on the tracker's cells of 4x4 pixels, so that all encoders are compared under one protocol.
"""

from __future__ import annotations

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import Artifact
from corrflow.runtime.backends.base import CpuBackend
from corrflow.runtime.backends.memory import MemoryRing
from corrflow.runtime.backends.onnx_encoder import OnnxEncoder, OnnxEncoderSession, unit_length
from corrflow.runtime.backends.resize import resize
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import STRIDE, TrackingSettings

LAB_PATCH = 3
"""Side of a raw patch in cells."""


class FeatureBackend(CpuBackend):
    """Backend whose features [C, h, w] a subclass computes, and whose masks the fused CPU kernel propagates.

    Raises InputError where the kernel was not built.
    """

    supports_runtime_search_params = supports_window_offsets = True
    stride = STRIDE

    def __init__(self, name: str, settings: TrackingSettings, files: dict[str, bytes], threads: int) -> None:
        if cpu.unavailable():
            raise InputError(cpu.unavailable())
        self.name = name
        self.artifact = Artifact(name, files, channels=0, settings=settings, provenance={})
        self._threads = threads
        self._channels = 0

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> np.ndarray:
        """Encode a frame [H, W, 3] uint8, BGR: [C, ceil(h / 4), ceil(w / 4)] float32 of unit length.

        working: size (h, w) to resize the frame to; None for the frame's own size
        """
        frame = frame if working is None else resize(frame, working)
        features = np.ascontiguousarray(self.features(frame), np.float32)
        self._channels = len(features)
        return features

    def features(self, frame: np.ndarray) -> np.ndarray:
        """Compute the features of a frame of working size."""
        raise NotImplementedError

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> MemoryRing:
        return MemoryRing(settings, num_channels, cells, self._channels)

    def propagate(self, query: np.ndarray, memory: MemoryRing, plan: SearchPlan) -> np.ndarray:
        """Propagate soft masks [N, h, w] float32 to a frame with features [C, h, w]."""
        batch = query[None], memory.features[None], memory.soft_masks[None]
        return cpu.local_soft_copy(*batch, plan.params, self._threads, references=plan.windows)[0]

    def close(self) -> None: ...


class LabBackend(FeatureBackend):
    """Raw colours as features: the baseline without any learning.

    The 108 numbers of a cell are the Lab patch of 3x3 cells around it, averaged over 2x2 pixels. Zero is mid-grey.
    """

    def features(self, frame: np.ndarray) -> np.ndarray:
        rows, columns = (-(-side // STRIDE) for side in frame.shape[:2])
        below, right = rows * STRIDE - frame.shape[0], columns * STRIDE - frame.shape[1]
        extended = cv2.copyMakeBorder(frame, 0, below, 0, right, cv2.BORDER_REPLICATE)
        lab = cv2.cvtColor(extended.astype(np.float32) / 255, cv2.COLOR_BGR2LAB) - np.array([50, 0, 0], np.float32)
        halves = cv2.resize(lab, (2 * columns, 2 * rows), interpolation=cv2.INTER_AREA)
        rim = LAB_PATCH - 1
        padded = cv2.copyMakeBorder(halves, rim, rim, rim, rim, cv2.BORDER_REPLICATE)
        shifted = [
            padded[y : y + 2 * rows : 2, x : x + 2 * columns : 2]
            for y in range(2 * LAB_PATCH)
            for x in range(2 * LAB_PATCH)
        ]
        return unit_length(np.concatenate(shifted, 2).transpose(2, 0, 1))


class OnnxEncoderBackend(FeatureBackend):
    """Backend with the features of an `OnnxEncoder` on ONNX Runtime (CPU), interpolated to cells of `stride` pixels."""

    def __init__(self, encoder: OnnxEncoder, settings: TrackingSettings, threads: int, stride: int = STRIDE) -> None:
        super().__init__(encoder.path.stem, settings, {encoder.path.name: encoder.content}, threads)
        self.stride = stride
        self._session = OnnxEncoderSession(encoder, threads)

    def features(self, frame: np.ndarray) -> np.ndarray:
        return unit_length(self._session.maps(frame[None]).on_cells(frame.shape[:2], self.stride)[0])
