"""Redetection after full occlusion: an occluder covers the whole object for some frames of a sequence.

The occluder is a piece of another image. It is larger than the object's box on every side.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.evaluate.datasets.masks import VOID, MaskSequence
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

MIN_FALSE_PIXELS = 200
"""Pixels above which a mask of a hidden object counts as false."""

REDETECTED_WITHIN, REDETECTED_OVERLAP = 10, 0.5
"""Frames after the occlusion within which J has to reach this overlap for a redetection."""

_MARGIN = 12  # pixels of the occluder beyond the object's box


def foreground(sequence: MaskSequence, index: int) -> np.ndarray:
    """Read the pixels of all objects on frame `index`: [H, W] bool."""
    annotation = sequence.annotation(index)
    return (annotation > 0) & (annotation < VOID)


@dataclass(frozen=True)
class FullOcclusion:
    """Occlusion of the frames [begin, begin + hidden); `after` more frames are tracked.

    Raises InputError for fewer than two frames before the occlusion or no hidden frame. The first frame is the prompt.
    """

    begin: int = 8
    hidden: int = 8
    after: int = REDETECTED_WITHIN

    def __post_init__(self) -> None:
        if self.begin < 2 or self.hidden < 1:
            raise InputError(
                f"expected at least two frames before the occlusion and one hidden frame, got {self.begin} and"
                f" {self.hidden}; raise --begin or --hidden"
            )

    @property
    def end(self) -> int:
        """First frame after the occlusion."""
        return self.begin + self.hidden

    @property
    def frames(self) -> int:
        """Number of tracked frames."""
        return self.end + self.after


@dataclass(frozen=True)
class RedetectionScore:
    """Score of one sequence, whose objects are tracked as one object.

    redetected_after: frames from the end of the occlusion to the first good mask; None without a good mask
    false_frames:     hidden frames with a false mask
    false_losses:     frames before the occlusion on which the object was lost
    overlap:          mean J before the occlusion
    """

    sequence: str
    redetected_after: int | None
    false_frames: int
    false_losses: int
    overlap: float


def fully_occluded_frames(
    sequence: MaskSequence, texture: np.ndarray, occlusion: FullOcclusion
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield frames [H, W, 3] uint8, BGR, with the occluder, and the true mask [H, W] bool of all objects."""
    for index in range(min(occlusion.frames, len(sequence))):
        image, true = sequence.image(index).copy(), foreground(sequence, index)
        if occlusion.begin <= index < occlusion.end and true.any():
            height, width = true.shape
            occluder = cv2.resize(texture, (width, height), interpolation=cv2.INTER_AREA)
            rows, columns = np.flatnonzero(true.any(1)), np.flatnonzero(true.any(0))
            top, bottom = max(0, rows[0] - _MARGIN), rows[-1] + 1 + _MARGIN
            left, right = max(0, columns[0] - _MARGIN), columns[-1] + 1 + _MARGIN
            image[top:bottom, left:right] = occluder[top:bottom, left:right]
        yield image, true


def score_full_occlusion(
    tracker: Tracker, sequence: MaskSequence, texture: np.ndarray, occlusion: FullOcclusion
) -> RedetectionScore:
    """Track all objects of the first frame as one object. Raises InputError for a sequence that is too short."""
    if len(sequence) < occlusion.frames:
        raise InputError(
            f"expected {occlusion.frames} frames in {sequence.name}, got {len(sequence)}; hide the object earlier"
        )
    redetected_after: int | None = None
    false_frames = false_losses = 0
    overlaps: list[float] = []
    for index, (image, true) in enumerate(fully_occluded_frames(sequence, texture, occlusion)):
        if index == 0:
            tracker.start(image, [MaskObject(1, true)])
            continue
        result = tracker.step(image)
        predicted = result.mask == 1
        overlap = float((predicted & true).sum() / max(1, (predicted | true).sum()))
        if index < occlusion.begin:
            overlaps.append(overlap)
            false_losses += not result.objects[0].visible
        elif index < occlusion.end:
            false_frames += int(predicted.sum()) > MIN_FALSE_PIXELS
        elif redetected_after is None and overlap >= REDETECTED_OVERLAP:
            redetected_after = index - occlusion.end
    return RedetectionScore(sequence.name, redetected_after, false_frames, false_losses, float(np.mean(overlaps)))


def run_full_occlusion(
    tracker: Tracker, sequences: Sequence[MaskSequence], occlusion: FullOcclusion
) -> list[RedetectionScore]:
    """Score the sequences, and print a line for each sequence and the totals."""
    scores: list[RedetectionScore] = []
    for index, sequence in enumerate(sequences):
        texture = sequences[(index + 1) % len(sequences)].image(0)[:, ::-1]
        begin = time.monotonic()
        score = score_full_occlusion(tracker, sequence, texture, occlusion)
        seconds = time.monotonic() - begin
        after = "never" if score.redetected_after is None else f"after {score.redetected_after}"
        print(
            f"{score.sequence:20} J before {100 * score.overlap:5.1f}  false masks {score.false_frames:2} of"
            f" {occlusion.hidden}  false losses {score.false_losses:2}  redetected {after:9} {seconds:6.1f} s"
        )
        scores.append(score)
    redetected = sum(score.redetected_after is not None for score in scores)
    false_frames = sum(score.false_frames for score in scores)
    false_losses = sum(score.false_losses for score in scores)
    print(f"redetected within {occlusion.after} frames: {redetected} of {len(scores)} sequences")
    print(f"false masks of hidden objects: {false_frames} of {occlusion.hidden * len(scores)} frames")
    print(f"false losses of visible objects: {false_losses} of {(occlusion.begin - 1) * len(scores)} frames")
    return scores
