"""Folders of images: a black and white mask for each object, and cut-outs."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from corrflow.atomic_files import check_writable, write_file
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult


class BinaryMaskSink(Sink):
    """Writer of ID/FRAME.png for each mask object: [H, W] uint8, 255 on the object and 0 elsewhere."""

    def __init__(self, folder: str | Path) -> None:
        """Create the folder. Raises InputError where nothing can be written to it."""
        self._folder = Path(folder)
        check_writable(self._folder / "mask.png")

    def write(self, result: FrameResult) -> None:
        for obj in result.objects:
            if obj.points is None:
                mask = (result.mask == obj.id).astype(np.uint8) * 255
                save_image(os.path.join(self._folder, str(obj.id), f"{result.frame.name}.png"), mask)

    def close(self) -> None:
        pass


class CutoutSink(Sink):
    """Writer of ID/FRAME.png for each visible mask object: the object's box of the frame, transparent around it."""

    def __init__(self, folder: str | Path) -> None:
        """Create the folder. Raises InputError where nothing can be written to it."""
        self._folder = Path(folder)
        check_writable(self._folder / "cutout.png")

    def write(self, result: FrameResult) -> None:
        for obj in result.objects:
            if obj.box is not None:
                x0, y0, x1, y1 = obj.box
                alpha = (result.mask[y0:y1, x0:x1] == obj.id).astype(np.uint8) * 255
                cutout = np.dstack([result.frame.image[y0:y1, x0:x1], alpha])  # BGRA
                save_image(os.path.join(self._folder, str(obj.id), f"{result.frame.name}.png"), cutout)

    def close(self) -> None:
        pass


def save_image(path: str, image: np.ndarray) -> None:
    """Write [H, W] grey, [H, W, 3] BGR or [H, W, 4] BGRA, uint8, in the format of the path's suffix."""
    write_file(path, cv2.imencode(os.path.splitext(path)[1], image)[1].tobytes())  # JPEG at OpenCV's quality 95
