"""Tracking through partial occlusion: a vertical bar crosses the object from left to right.

The object reappears as a small component behind the bar, like background components that a tracker picks up. The
tracker has to keep the first and drop the second. The bar is a strip of another image over the frame's full height.
It moves relative to the object, also where the camera moves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.full_occlusion import foreground
from corrflow.evaluate.metrics.masks import region_similarity
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

_BEGIN = 4  # first frame with the bar
_MIN_WIDTH = 16  # pixels


@dataclass(frozen=True)
class PartialOcclusion:
    """Bar that crosses the object until frame `frames`; its width is relative to sqrt(object area).

    Raises InputError for a bar that hides nothing or everything.
    """

    width: float = 0.4
    frames: int = 48

    def __post_init__(self) -> None:
        if not 0 < self.width < 2 or self.frames <= _BEGIN:
            raise InputError(
                f"expected a bar narrower than two objects and more than {_BEGIN} frames, got {self.width:g} and"
                f" {self.frames}; change --width or --frames"
            )


def partially_occluded_frames(
    sequence: MaskSequence, texture: np.ndarray, occlusion: PartialOcclusion
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield frames [H, W, 3] uint8, BGR, with the bar, and the true mask [H, W] bool of the visible pixels."""
    count = min(occlusion.frames, len(sequence))
    width = 0
    for index in range(count):
        image, true = sequence.image(index).copy(), foreground(sequence, index)
        width = width or max(_MIN_WIDTH, int(occlusion.width * np.sqrt(true.sum())))
        columns = np.flatnonzero(true.any(0))
        if index >= _BEGIN and len(columns):
            # Position of the bar relative to the object's box, from -1 (left of the box) to 1 (right of the box).
            position = (index - _BEGIN) / (count - _BEGIN) * 2 - 1
            centre = (columns[0] + columns[-1]) / 2 + position * ((columns[-1] - columns[0]) / 2 + width) * 1.2
            left, right = np.clip([int(centre - width / 2), int(centre - width / 2) + width], 0, true.shape[1])
            occluder = cv2.resize(texture, true.shape[::-1], interpolation=cv2.INTER_AREA)
            image[:, left:right], true[:, left:right] = occluder[:, left:right], False
        yield image, true


def score_partial_occlusion(
    tracker: Tracker, sequence: MaskSequence, texture: np.ndarray, occlusion: PartialOcclusion
) -> float:
    """Track all objects of the first frame as one object, and return the mean J of the later frames.

    Raises InputError for a sequence that is too short.
    """
    if len(sequence) <= _BEGIN:
        raise InputError(f"expected more than {_BEGIN} frames in {sequence.name}, got {len(sequence)}; leave it out")
    overlaps = []
    for index, (image, true) in enumerate(partially_occluded_frames(sequence, texture, occlusion)):
        if index == 0:
            tracker.start(image, [MaskObject(1, true)])
        else:
            overlaps.append(region_similarity(tracker.step(image).mask == 1, true))
    return float(np.mean(overlaps))


def run_partial_occlusion(
    tracker: Tracker, sequences: Sequence[MaskSequence], occlusion: PartialOcclusion
) -> list[float]:
    """Score the sequences, and print J of each sequence and the mean."""
    scores: list[float] = []
    for index, sequence in enumerate(sequences):
        texture = sequences[(index + 1) % len(sequences)].image(0)
        begin = time.monotonic()
        scores.append(score_partial_occlusion(tracker, sequence, texture, occlusion))
        print(f"{sequence.name:20} J {100 * scores[-1]:5.1f} {time.monotonic() - begin:6.1f} s")
    print(f"mean J: {100 * np.mean(scores):.1f}")
    return scores
