"""Backend that delegates to another one and records the memories and the search plans of a tracker."""

from __future__ import annotations

from typing import Any

import numpy as np

from corrflow.runtime.backends.base import Backend, CpuBackend, Features, Memory
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings


class RecordingBackend(CpuBackend):
    """Backend of a tracker under test.

    memories: every memory that was made
    plans:    the plan of every propagation
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name, self.artifact = backend.name, backend.artifact
        self.supports_runtime_search_params = backend.supports_runtime_search_params
        self.supports_window_offsets, self.stride = backend.supports_window_offsets, backend.stride
        self.memories: list[Any] = []
        self.plans: list[SearchPlan] = []

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> Features:
        return self._backend.encode(frame, working)

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> Memory:
        self.memories.append(self._backend.new_memory(settings, num_channels, cells))
        return self.memories[-1]

    def propagate(self, query: Features, memory: Any, plan: SearchPlan) -> np.ndarray:
        self.plans.append(plan)
        return self._backend.propagate(query, memory, plan)

    def close(self) -> None:
        self._backend.close()
