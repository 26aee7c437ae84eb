"""Folders of pictures that other tools read: one black and white mask for each object, cut-outs, and YouTube-VOS."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from corrflow.atomic_files import prepare_place, save_whole, write_failed
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult


class BinaryMaskSink(Sink):
    """OBJECT/FRAME.png for each mask object, by its id: [H, W] uint8, 255 on the object and 0 elsewhere."""

    def __init__(self, folder: str | Path) -> None:
        """Raises InputError where nothing can be written into the folder."""
        self._folder = Path(folder)
        prepare_place(self._folder / "mask.png")

    def write(self, result: FrameResult) -> None:
        for track in result.objects:
            if track.points is None:
                picture = (result.mask == track.id).astype(np.uint8) * 255
                _save(os.path.join(self._folder, str(track.id), f"{result.frame.name}.png"), picture)

    def close(self) -> None:
        pass


class CutoutSink(Sink):
    """OBJECT/FRAME.png for each mask object in sight: its box of the frame, transparent around the object."""

    def __init__(self, folder: str | Path) -> None:
        """Raises InputError where nothing can be written into the folder."""
        self._folder = Path(folder)
        prepare_place(self._folder / "cutout.png")

    def write(self, result: FrameResult) -> None:
        for track in result.objects:
            if track.box is not None:
                x0, y0, x1, y1 = track.box
                alpha = (result.mask[y0:y1, x0:x1] == track.id).astype(np.uint8) * 255
                picture = np.dstack([result.frame.image[y0:y1, x0:x1], alpha])  # BGRA
                _save(os.path.join(self._folder, str(track.id), f"{result.frame.name}.png"), picture)

    def close(self) -> None:
        pass


def _save(path: str, picture: np.ndarray) -> None:
    """A picture [H, W], [H, W, 3] BGR or [H, W, 4] BGRA, uint8, in the format of the path's suffix."""
    folder, name = os.path.split(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise write_failed(path, error) from None
    save_whole(path, cv2.imencode(os.path.splitext(name)[1], picture)[1].tobytes())  # JPEG at OpenCV's quality 95
