"""A tracker that counts the frames it encodes, which is what tracking costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.tracking.tracker import Tracker


class Counting(OnnxRuntimeBackend):
    encoded = 0

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> np.ndarray:
        self.encoded += 1
        return super().encode(frame, working)


@contextmanager
def counting_tracker(artifact: Path) -> Iterator[Tracker]:
    """A tracker whose back end is a `Counting` one."""
    backend = Counting(load_artifact(artifact), 1, fused=not cpu.unavailable())
    yield Tracker(backend)
    backend.close()
