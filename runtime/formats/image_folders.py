"""Folders of images: a black and white mask for each object, and cut-outs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np

from corrflow.atomic_files import check_writable, write_file
from corrflow.runtime.formats.base import Sink, identity_texts
from corrflow.runtime.types import FrameResult, ObjectResult


class BinaryMaskSink(Sink):
    """Writer of OBJECT/FRAME.png for each mask object: [H, W] uint8, 255 on the object and 0 elsewhere."""

    def __init__(self, folder: str | Path) -> None:
        """Create the folder. Raises InputError where nothing can be written to it."""
        self._folder = Path(folder)
        check_writable(self._folder / "mask.png")

    def write(self, result: FrameResult) -> None:
        for obj, folder in _folders(result):
            mask = (result.mask == obj.id).astype(np.uint8) * 255
            save_image(os.path.join(self._folder, folder, f"{result.frame.name}.png"), mask)

    def close(self) -> None:
        pass


class CutoutSink(Sink):
    """Writer of OBJECT/FRAME.png for each visible mask object: its box of the frame, transparent around it."""

    def __init__(self, folder: str | Path) -> None:
        """Create the folder. Raises InputError where nothing can be written to it."""
        self._folder = Path(folder)
        check_writable(self._folder / "cutout.png")

    def write(self, result: FrameResult) -> None:
        for obj, folder in _folders(result):
            if obj.box is not None:
                x0, y0, x1, y1 = obj.box
                alpha = (result.mask[y0:y1, x0:x1] == obj.id).astype(np.uint8) * 255
                cutout = np.dstack([result.frame.image[y0:y1, x0:x1], alpha])  # BGRA
                save_image(os.path.join(self._folder, folder, f"{result.frame.name}.png"), cutout)

    def close(self) -> None:
        pass


def _folders(result: FrameResult) -> list[tuple[ObjectResult, str]]:
    """Return the mask objects with the name of their folder: the identity in the labels, else the id.

    A text that is no name of a folder everywhere gives way to the id.
    """
    masks = [obj for obj in result.objects if obj.points is None]
    return [
        (obj, text if re.fullmatch(r"[\w#][\w #.-]{0,99}(?<![ .])", text) else f"id {obj.id}")
        for obj, text in zip(masks, identity_texts(masks), strict=True)
    ]


def save_image(path: str, image: np.ndarray) -> None:
    """Write [H, W] grey, [H, W, 3] BGR or [H, W, 4] BGRA, uint8, in the format of the path's suffix."""
    write_file(path, cv2.imencode(os.path.splitext(path)[1], image)[1].tobytes())  # JPEG at OpenCV's quality 95
