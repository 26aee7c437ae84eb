"""Videos and images of a texture that pans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np


def panning_texture(seed: int, frames: int) -> Iterator[np.ndarray]:
    """Pictures [64, 96, 3] uint8 of a coloured texture that pans by 3 pixels a frame."""
    scene = cv2.resize(np.random.default_rng(seed).integers(0, 256, (14, 40, 3), np.uint8), (400, 140))
    for t in range(frames):
        yield np.array(scene[20:84, 3 * t : 3 * t + 96], np.uint8)


def write_panning_video(path: Path, seed: int, frames: int = 24) -> None:
    """That texture at 12 frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for picture in panning_texture(seed, frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))


def write_panning_images(folder: Path, seed: int) -> None:
    """Twelve pictures of that texture."""
    folder.mkdir(parents=True)
    for t, picture in enumerate(panning_texture(seed, 12)):
        cv2.imwrite(str(folder / f"{t:02d}.png"), picture)
