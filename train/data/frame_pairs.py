"""Training pairs of the frame-level objective: crops of two frames of a clip, or of one image, in changed colours.

A pair is a pure function of the seed and the pair's number, as clips are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

from corrflow.train.config import TrainConfig
from corrflow.train.data.clips import ClipCache, Videos
from corrflow.train.data.pairs import pair_of_images, random_box, resized

MIN_AREA = 0.2
"""Smallest crop, as a fraction of the image's area: much smaller crops seldom show the same object."""

# Changes of colour as in SimSiam (Chen and He, 2021): probability and size.
JITTERED, JITTER, HUE = 0.8, 0.4, 0.1
GREY = 0.2
BLURRED, LARGEST_SIGMA = 0.5, 2.0 / 224

LUMA = np.array([0.299, 0.587, 0.114])


class FramePairSampler:
    """Sampler of pairs of frames from videos, and of pairs of crops from images.

    images: cache of images, from which `config.image_share` of the pairs are made, or None
    """

    def __init__(self, videos: Videos, images: ClipCache | None, config: TrainConfig) -> None:
        self.videos, self.images, self.config = videos, images, config

    def pair(self, number: int) -> np.ndarray:
        """Return pair `number` of the run: crops [2, S, S, 3] uint8, RGB."""
        config = self.config
        generator = np.random.default_rng([config.seed, number, 5])
        images = pair_of_images(self.videos, self.images, config, number, config.frame_gap, generator)
        crops = []
        for image in images:
            crop = resized(image, random_box(image.shape[:2], MIN_AREA, generator), config.pair_crop)
            mirrored = cv2.flip(crop, 1) if generator.random() < 0.5 else crop
            crops.append(change_colours(mirrored, generator))
        return np.stack(crops)

    def pairs(self, numbers: Iterable[int]) -> np.ndarray:
        """Return the pairs of `numbers`: crops [B, 2, S, S, 3] uint8, RGB."""
        return np.stack([self.pair(number) for number in numbers])


def change_colours(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation, hue and sharpness of [S, S, 3] uint8, RGB at random."""
    matrix, brightness, contrast = np.eye(3), 1.0, 1.0
    if generator.random() < JITTERED:
        brightness, contrast, saturation = generator.uniform(1 - JITTER, 1 + JITTER, 3)
        matrix = _saturation(saturation) @ _hue(generator.uniform(-HUE, HUE))
    if generator.random() < GREY:
        matrix = _saturation(0.0) @ matrix
    # Contrast is about the image's mean lightness.
    offset = (1 - contrast) * brightness * float(LUMA @ cv2.mean(image)[:3])
    changed = cv2.transform(image, np.column_stack([contrast * brightness * matrix, np.full(3, offset)]))
    if generator.random() < BLURRED:
        changed = cv2.GaussianBlur(changed, (0, 0), generator.uniform(0.05, 1) * LARGEST_SIGMA * len(image))
    return changed


def _saturation(factor: float) -> np.ndarray:
    """Return the [3, 3] map of colours that multiplies their distance from grey."""
    return factor * np.eye(3) + (1 - factor) * np.tile(LUMA, (3, 1))


def _hue(turns: float) -> np.ndarray:
    """Return the [3, 3] rotation of colours about the grey axis."""
    cosine, sine = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns) / math.sqrt(3)
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    return cosine * np.eye(3) + sine * cross + (1 - cosine) / 3
