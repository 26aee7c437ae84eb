"""How well objects are followed past a post: data sets with a narrow strip that crosses the object from front to back.

What comes out on the other side is at first a small piece apart from the rest, as are bits of background that a tracker
takes along; a tracker has to keep the one and drop the other. The strip is part of another picture, from top to bottom
of the frame, and moves with respect to the object whether the object or the camera moves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from rich.console import Console

from corrflow.errors import InputError
from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.full_occlusion import inside, opened_tracker
from corrflow.evaluate.metrics.masks import region_similarity
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

_BEGIN = 4  # frames before the post sets out
_NARROWEST = 16  # pixels


@dataclass(frozen=True)
class Post:
    """How wide it is, as a share of the root of the object's area, and for how many frames an object is tracked."""

    width: float = 0.4
    frames: int = 48


def frames_past_a_post(
    sequence: MaskSequence, texture: np.ndarray, post: Post
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures [H, W, 3] uint8, BGR, with the post on them, and true masks [H, W] bool of what shows."""
    count = min(post.frames, len(sequence))
    width = 0
    for index in range(count):
        image, true = sequence.image(index).copy(), inside(sequence, index)
        width = width or max(_NARROWEST, int(post.width * np.sqrt(true.sum())))
        columns = np.flatnonzero(true.any(0))
        if index >= _BEGIN and len(columns):
            # From -1 to 1: from just before the object's box to just behind it.
            way = (index - _BEGIN) / (count - _BEGIN) * 2 - 1
            centre = (columns[0] + columns[-1]) / 2 + way * ((columns[-1] - columns[0]) / 2 + width) * 1.2
            left, right = np.clip([int(centre - width / 2), int(centre - width / 2) + width], 0, true.shape[1])
            other = cv2.resize(texture, true.shape[::-1], interpolation=cv2.INTER_AREA)
            image[:, left:right], true[:, left:right] = other[:, left:right], False
        yield image, true


def score_past_a_post(tracker: Tracker, sequence: MaskSequence, texture: np.ndarray, post: Post) -> float:
    """Mean J after the first frame, all of whose objects are tracked as one. Raises InputError for a short sequence."""
    if len(sequence) <= _BEGIN:
        raise InputError(f"expected more than {_BEGIN} frames in {sequence.name}, got {len(sequence)}; leave it out")
    overlaps = []
    for index, (image, true) in enumerate(frames_past_a_post(sequence, texture, post)):
        if index == 0:
            tracker.start(image, [MaskObject(1, true)])
        else:
            overlaps.append(region_similarity(tracker.step(image).mask == 1, true))
    return float(np.mean(overlaps))


def run_posts(
    sequences: Sequence[MaskSequence], artifact: str, short_side: int | None, post: Post, redetect: bool, threads: int
) -> list[float]:
    """corrflow-eval post: a line with J for each sequence, then the mean."""
    if not 0 < post.width < 2 or post.frames <= _BEGIN:
        raise InputError(
            f"expected a post narrower than two objects and more than {_BEGIN} frames, got {post.width:g} and"
            f" {post.frames}"
        )
    console = Console()
    scores: list[float] = []
    with opened_tracker(artifact, short_side, redetect, threads) as tracker:
        for index, sequence in enumerate(sequences):
            texture = sequences[(index + 1) % len(sequences)].image(0)
            begin = time.monotonic()
            scores.append(score_past_a_post(tracker, sequence, texture, post))
            seconds = time.monotonic() - begin
            console.print(f"{sequence.name:20} J {100 * scores[-1]:5.1f} {seconds:6.1f} s", highlight=False)
    console.print(f"mean J past a post: {100 * np.mean(scores):.1f}", highlight=False)
    return scores
