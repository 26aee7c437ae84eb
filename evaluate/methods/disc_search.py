"""Search of the published label propagation (CRW, VFS, HVC): discs of cells of 8 pixels, and the whole first frame.

These methods are evaluated with features of unit length and stride 8, so encoders of any stride get cells of 8 pixels.
Features of 4 pixels are averaged over 2x2 cells. Features of an encoder in ONNX format are interpolated. A search on
cells of 4 pixels would compute 16 times as many scores, and no published figure would be comparable.

The windows of LocalSoftCopy are squares. Here the op gets each row of cells as an image of its own. Then a window is a
span of a row, and spans of different lengths form a disc. Ties go to the earlier frame, row and column, as in the op.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

from corrflow.errors import InputError
from corrflow.evaluate.methods.encoders import OnnxEncoderBackend
from corrflow.evaluate.methods.methods import FeatureExtractor, OnnxFeatures
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.spec import Attributes, SearchWindow
from corrflow.runtime.backends.base import Backend, CpuBackend
from corrflow.runtime.backends.memory import SlotMemory
from corrflow.runtime.backends.onnx_encoder import unit_length
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings

DISC_STRIDE = 8
"""Side of a cell in pixels."""

_SCALE = 32767.0
"""Factor from channels of unit features to 16-bit integers. It is the same for all frames, so that equal features have
equal scores; the error of a score is below 0.001, and typically 0.00002."""


@dataclass(frozen=True)
class DiscSearch:
    """Features of an encoder on cells of 8 pixels, whose masks `DiscBackend` propagates.

    first_frame_whole: search the whole first frame; otherwise a disc, as in the recent frames
    """

    encoder: FeatureExtractor
    first_frame_whole: bool

    def describe(self) -> dict[str, Any]:
        first = "whole" if self.first_frame_whole else "disc"
        return {**self.encoder.describe(), "search": {"stride": DISC_STRIDE, "window": "disc", "first_frame": first}}

    def open(self, settings: TrackingSettings, threads: int) -> Backend:
        if isinstance(self.encoder, OnnxFeatures):
            backend: Backend = OnnxEncoderBackend(self.encoder.encoder, settings, threads, DISC_STRIDE)
        else:
            backend = self.encoder.open(settings, threads)
        return DiscBackend(backend, self.first_frame_whole, threads)


class RowMemory(SlotMemory):
    """Memory with S slots, in which each row of cells is an image of its own.

    words:      [S * h, D, 1, w] int32, two channels in each
    soft_masks: [S * h, N, 1, w] float32
    """

    def __init__(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int], channels: int) -> None:
        """Allocate the slots of these settings; cells: (h, w); channels: C."""
        super().__init__(settings)
        self._rows, columns = cells
        count = len(self._slots) * self._rows
        self.words = np.empty((count, cpu.packed_depth(channels, 16), 1, columns), np.int32)
        self.soft_masks = np.empty((count, num_channels, 1, columns), np.float32)

    def add_frame(self, features: np.ndarray, soft_masks: np.ndarray) -> None:
        """Store the next frame: features [C, h, w] of unit length, soft masks [N, h, w], both float32."""
        slot = self._slots.allocate()
        if slot is not None:
            own = slice(slot * self._rows, (slot + 1) * self._rows)
            self.words[own] = _packed_rows(features)
            self.soft_masks[own] = soft_masks.transpose(1, 0, 2)[:, :, None]


class DiscBackend(CpuBackend):
    """Backend that searches discs with the features of another backend.

    A radius r has the cells closer than r to the query: dy² + dx² < r². Dilation is ignored.
    """

    supports_runtime_search_params, supports_window_offsets = True, False
    stride = DISC_STRIDE

    def __init__(self, backend: Backend, first_frame_whole: bool, threads: int) -> None:
        """Search with a backend whose stride divides 8. Raises InputError where the fused kernel was not built."""
        if cpu.unavailable():
            raise InputError(cpu.unavailable())
        self._backend, self._first_frame_whole, self._threads = backend, first_frame_whole, threads
        self.name, self.artifact = f"{backend.name}, disc search", backend.artifact
        self._channels = 0

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> np.ndarray:
        """Encode a frame: [C, ceil(h / 8), ceil(w / 8)] float32 of unit length."""
        features = np.asarray(self._backend.encode(frame, working))
        pooled = self.stride // self._backend.stride
        channels, rows, columns = features.shape
        features = np.pad(features, ((0, 0), (0, -rows % pooled), (0, -columns % pooled)), mode="edge")
        blocks = features.reshape(channels, -(-rows // pooled), pooled, -(-columns // pooled), pooled)
        self._channels = channels
        return unit_length(blocks.mean((2, 4)))

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> RowMemory:
        return RowMemory(settings, num_channels, cells, self._channels)

    def propagate(self, query: np.ndarray, memory: RowMemory, plan: SearchPlan) -> np.ndarray:
        """Propagate soft masks [N, h, w] float32 to a frame with features [C, h, w]."""
        _, rows, columns = query.shape
        whole = {reference.slot for reference in memory.references if self._first_frame_whole and reference.frame == 0}
        frames = [
            (window.frame * rows, None if window.frame in whole else plan.params.window(window.window)[0])
            for window in plan.windows
        ]
        # A span's index into the attributes is its reach to either side.
        spans = Attributes(tuple(range(columns)), (1,), plan.params.top_k, plan.params.temperature)
        keys = cpu.PackedFeatures(memory.words, np.full(len(memory.words), _SCALE, np.float32), 16)
        soft_masks = np.empty((memory.num_channels, rows, columns), np.float32)
        for y, words in enumerate(_packed_rows(query)):
            searched = [span for first, radius in frames for span in _spans(first, radius, y, rows, columns)]
            packed = cpu.PackedFeatures(words, np.asarray(_SCALE, np.float32), 16)
            copied = cpu.packed_soft_copy(packed, keys, memory.soft_masks, spans, self._threads, references=searched)
            soft_masks[:, y] = copied[:, 0]
        return soft_masks

    def close(self) -> None:
        """Release the other backend."""
        self._backend.close()


def _spans(first: int, radius: int | None, y: int, rows: int, columns: int) -> list[SearchWindow]:
    """Return the spans of one frame that queries of row y search; radius: None for the whole frame.

    first: index of the frame's first row
    """
    if radius is None:
        return [SearchWindow(first + row, columns - 1) for row in range(rows)]
    return [
        SearchWindow(first + row, min(columns, isqrt(radius**2 - (row - y) ** 2 - 1)))
        for row in range(max(0, y - radius + 1), min(rows, y + radius))
    ]


def _packed_rows(features: np.ndarray) -> np.ndarray:
    """Pack unit features [C, h, w] float32 to the words [h, ceil(C / 2), 1, w] int32 of each row."""
    channels, rows, columns = features.shape
    pairs = np.zeros((rows, -(-channels // 2), columns, 2), np.int16)
    scaled = np.rint(features * np.float32(_SCALE)).astype(np.int16)
    pairs[..., 0] = scaled[::2].transpose(1, 0, 2)
    pairs[:, : channels // 2, :, 1] = scaled[1::2].transpose(1, 0, 2)
    return pairs.view(np.int32).reshape(rows, -1, 1, columns)
