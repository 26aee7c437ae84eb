"""Training pairs of the pixel-level objective: two crops of one image, and the cells that show the same place.

A pair is a pure function of the seed and the pair's number, as clips are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from corrflow.train.config import TrainConfig
from corrflow.train.data.clips import ClipCache, Videos

TRIES = 10
MIN_SIDE = 16
"""Smallest side of a crop in pixels of its image."""
MAX_ASPECT = 4 / 3


@dataclass(frozen=True)
class Pairs:
    """Pairs of crops.

    crops:     [B, 2, S, S, 3] uint8, RGB
    positives: for each pair [P, 2] int64, flat cell numbers in the first and in the second crop of the same place
    """

    crops: np.ndarray
    positives: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, part: slice) -> Pairs:
        return Pairs(self.crops[part], self.positives[part])


class PairSampler:
    """Sampler of pairs from frames of videos and from images.

    images: cache of images, from which `config.image_share` of the pairs are made, or None
    stride: pixels between cells, which decides the positives
    """

    def __init__(self, videos: Videos, images: ClipCache | None, config: TrainConfig, stride: int) -> None:
        self.videos, self.images, self.config = videos, images, config
        self.cells = config.pair_crop // stride

    def pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pair `number` of the run: crops [2, S, S, 3] uint8, RGB, and positives [P, 2]."""
        config = self.config
        generator = np.random.default_rng([config.seed, number, 4])
        first, second = pair_of_images(self.videos, self.images, config, number, config.pair_gap, generator)
        for _ in range(TRIES):
            boxes = [random_box(first.shape[:2], config.min_crop_area, generator) for _ in range(2)]
            positives = same_place(boxes[0], boxes[1], self.cells, config.positive_distance)
            if len(positives):
                break
        crops = [resized(image, box, config.pair_crop) for image, box in zip((first, second), boxes, strict=True)]
        return np.stack(crops), positives

    def pairs(self, numbers: Iterable[int]) -> Pairs:
        """Return the pairs of `numbers`."""
        crops, positives = zip(*(self.pair(number) for number in numbers), strict=True)
        return Pairs(np.stack(crops), list(positives))


def pair_of_images(
    videos: Videos,
    images: ClipCache | None,
    config: TrainConfig,
    number: int,
    largest_gap: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images [h, w, 3] uint8, BGR of pair `number`: one image twice, or two frames of a clip.

    images: cache of images, from which `config.image_share` of the pairs are made, or None
    largest_gap: largest number of frames between two frames of a clip
    """
    if generator.random() < (config.image_share if images is not None else 0.0):
        assert images is not None
        image = images.frame(int(generator.integers(images.starts[-1])))
        return image, image
    gap = int(generator.integers(largest_gap + 1))
    # The pairs of a step read the shards that its clips read.
    clip_number = number * config.batch // config.pairs
    ends = videos.sample(clip_number, gap + 1, generator, (0, gap))
    if gap and generator.random() < 0.5:
        ends.reverse()
    return ends[0], ends[1]


def random_box(size: tuple[int, ...], min_area: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Sample a crop (x, y, width, height) in pixels of an image of `size` (height, width).

    Its area is uniform from `min_area` to 1 of the image's, its aspect log-uniform from 3/4 to 4/3.
    """
    rows, columns = size
    limit = math.log(MAX_ASPECT)
    width = height = min(rows, columns)
    for _ in range(TRIES):
        area, aspect = rows * columns * generator.uniform(min_area, 1), math.exp(generator.uniform(-limit, limit))
        sides = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if MIN_SIDE <= sides[0] <= columns and MIN_SIDE <= sides[1] <= rows:
            width, height = sides
            break
    return int(generator.integers(columns - width + 1)), int(generator.integers(rows - height + 1)), width, height


def same_place(
    first: tuple[int, int, int, int], second: tuple[int, int, int, int], cells: int, distance: float
) -> np.ndarray:
    """Return the pairs of cells of two crops whose centres are closer than `distance` diagonals of the larger cell.

    first, second: crops (x, y, width, height) of one image, each with `cells` x `cells` cells
    Returns [P, 2] int64, flat cell numbers in the first and in the second crop, in ascending order.
    """
    limit = (distance * max(math.hypot(box[2], box[3]) for box in (first, second)) / cells) ** 2
    centres = (np.arange(cells) + 0.5) / cells
    columns, rows = (
        np.square((first[axis] + centres * first[axis + 2])[:, None] - (second[axis] + centres * second[axis + 2]))
        for axis in (0, 1)
    )
    # Only rows and only columns that are close enough by themselves: 1/1000 of all combinations.
    (y, v), (x, u) = np.nonzero(rows < limit), np.nonzero(columns < limit)
    near = rows[y, v][:, None] + columns[x, u] < limit
    one, other = (y[:, None] * cells + x)[near], (v[:, None] * cells + u)[near]
    order = np.lexsort((other, one))
    return np.stack([one[order], other[order]], 1)


def resized(image: np.ndarray, box: tuple[int, int, int, int], side: int) -> np.ndarray:
    """Cut out a box of [h, w, 3] uint8, BGR, and resize the cut to [side, side, 3] uint8, RGB."""
    x, y, width, height = box
    shrinks = width * height > side * side
    cut = image[y : y + height, x : x + width]
    crop = cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    # OpenCV swaps channels ten times faster than a copy of a reversed view, and other threads run meanwhile.
    return cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
