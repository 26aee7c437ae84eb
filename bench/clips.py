"""Clips of the benchmarks: the demo clip as a video file, and a video in a loop."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from corrflow.runtime.formats.overlay_video import VideoSink
from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND
from corrflow.runtime.types import Frame, FrameResult
from corrflow.runtime.video.demo_clip import DEMO_FRAMES_PER_SECOND, render_demo_clip
from corrflow.runtime.video.open_source import FrameSource, VideoSource


def write_demo(folder: Path, size: tuple[int, int], frames: int) -> tuple[Path, np.ndarray]:
    """Write the demo clip as a video file of a size (height, width); return its path and first mask [H, W] bool."""
    path, first = folder / "demo.mp4", None
    with VideoSink(path, DEMO_FRAMES_PER_SECOND) as sink:
        for index, (image, mask) in enumerate(render_demo_clip(frames, size)):
            first = mask if first is None else first
            sink.write(FrameResult(np.zeros(size, np.uint8), (), Frame(image, index, 0.0, f"{index:05d}")))
    assert first is not None
    return path, first


class LoopedVideo(FrameSource):
    """Video file in a loop, `frames` frames long and decoded in every round.

    size: (height, width) to resize frames to; None for the size of the video
    """

    def __init__(self, path: Path, frames: int, size: tuple[int, int] | None = None) -> None:
        self.name = path.stem
        self.frame_count: int | None = frames
        self.frames_per_second: Fraction | None = NOMINAL_FRAMES_PER_SECOND
        self._frames = islice(self._play(path, size), frames)

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def close(self) -> None:
        self._frames = iter(())

    @staticmethod
    def _play(path: Path, size: tuple[int, int] | None) -> Iterator[Frame]:
        index = 0
        while True:
            with VideoSource(path) as video:
                for frame in video:
                    image = frame.image
                    if size is not None and image.shape[:2] != size:
                        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
                    yield Frame(image, index, float(index), f"{index:05d}")
                    index += 1
