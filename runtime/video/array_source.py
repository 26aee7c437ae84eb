"""Frames from Python: arrays or PIL images, in any iterable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND
from corrflow.runtime.types import Frame
from corrflow.runtime.video.source import FrameSource


class ArraySource(FrameSource):
    """Frames of an iterable, read once; times are those of the nominal frame rate."""

    name = "frames"
    frames_per_second: Fraction | None = None

    def __init__(self, frames: Iterable[Any]) -> None:
        """Start reading.

        frames: arrays [H, W, 3] uint8 in BGR, grey arrays [H, W] uint8, or PIL images

        Raises InputError for a single image.
        """
        if isinstance(frames, np.ndarray) and frames.ndim == 3 and frames.shape[2] == 3:
            raise InputError(f"expected frames [T, H, W, 3], got one image {list(frames.shape)}; put it into a list")
        self.frame_count: int | None = len(frames) if hasattr(frames, "__len__") else None  # type: ignore[arg-type]
        self._frames = self._read(iter(frames))

    def _read(self, frames: Iterator[Any]) -> Iterator[Frame]:
        for index, value in enumerate(frames):
            time = index / float(NOMINAL_FRAMES_PER_SECOND)
            yield Frame(_bgr(value), index, time, f"{index:05d}")

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def close(self) -> None:
        self._frames = iter(())


def _bgr(value: Any) -> np.ndarray:
    """Return an array or a PIL image as [H, W, 3] uint8, BGR."""
    if hasattr(value, "convert") and hasattr(value, "getbands"):  # a PIL image, without importing Pillow
        return np.ascontiguousarray(np.asarray(value.convert("RGB"))[..., ::-1])
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        if value.ndim == 2:
            return np.repeat(value[..., None], 3, 2)
        if value.ndim == 3 and value.shape[2] == 3:
            return value
    got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
    raise InputError(f"expected frames as [H, W, 3] uint8 (BGR) arrays or PIL images, got {got}; convert them")
