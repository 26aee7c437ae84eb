"""Small data sets in the layout of DAVIS."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from corrflow.runtime.video.overlay import davis_palette


def save_mask(mask: np.ndarray, path: Path) -> None:
    """A mask [H, W] uint8 of object ids as an indexed PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    picture.putpalette(davis_palette().tobytes())
    picture.save(path)


def add_davis_sequence(root: Path, name: str, masks: list[np.ndarray], split: str = "val") -> None:
    """A sequence of flat pictures with these masks, listed in ImageSets/2017/<split>.txt."""
    for index, mask in enumerate(masks):
        save_mask(mask, root / "Annotations" / "480p" / name / f"{index:05d}.png")
        picture = root / "JPEGImages" / "480p" / name / f"{index:05d}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(picture), np.full((*mask.shape, 3), (10 * index % 256, 60, 200), np.uint8))
    listed = root / "ImageSets" / "2017" / f"{split}.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    with listed.open("a") as file:
        file.write(f"{name}\n")
