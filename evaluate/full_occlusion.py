"""How well lost objects are noticed and found again: data sets with a plank put over the object for some frames.

The plank is a piece of another picture, larger than the object's box on every side, so that nothing of it is seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from rich.console import Console

from corrflow.errors import InputError
from corrflow.evaluate.datasets.masks import VOID, MaskSequence
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import with_settings
from corrflow.runtime.tracking.occlusion import OcclusionSettings
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

FALSE_PIXELS = 200
"""A mask of more pixels than this while the object is hidden is false."""

FOUND_WITHIN, FOUND_OVERLAP = 10, 0.5
"""Frames after the object reappears within which its mask has to overlap the truth by this (J) to be found again."""

_MARGIN = 12  # pixels that the plank reaches beyond the object's box


@contextmanager
def opened_tracker(artifact: str, short_side: int | None, redetect: bool, threads: int) -> Iterator[Tracker]:
    """A tracker with an artifact, by path or name, on the best back end; it refuses to start where it cannot watch."""
    loaded = load_artifact(resolve_model(artifact))
    backend = open_backend("auto", loaded, threads)
    try:
        yield Tracker(backend, with_settings(loaded.settings, short_side), OcclusionSettings() if redetect else None)
    finally:
        backend.close()


def inside(sequence: MaskSequence, index: int) -> np.ndarray:
    """Where any object is on that frame: [H, W] bool."""
    annotation = sequence.annotation(index)
    return (annotation > 0) & (annotation < VOID)


@dataclass(frozen=True)
class Occlusion:
    """Frames [begin, begin + hidden) of a sequence are covered; frames up to `after` later are tracked."""

    begin: int = 8
    hidden: int = 8
    after: int = FOUND_WITHIN

    @property
    def frames(self) -> int:
        return self.begin + self.hidden + self.after


@dataclass(frozen=True)
class PresenceScore:
    """What happened to one object.

    found_after:  frames from its reappearance to the first good mask, 0 for at once; None where there was none
    false_frames: frames with a false mask while it was hidden
    missed:       frames before the plank in which it was taken for lost
    overlap:      mean J before the plank
    """

    sequence: str
    found_after: int | None
    false_frames: int
    missed: int
    overlap: float


def occluded_frames(
    sequence: MaskSequence, plank: np.ndarray, occlusion: Occlusion
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures [H, W, 3] uint8, BGR, with the plank on them, and the true masks [H, W] bool of all objects."""
    for index in range(min(occlusion.frames, len(sequence))):
        image, true = sequence.image(index).copy(), inside(sequence, index)
        if occlusion.begin <= index < occlusion.begin + occlusion.hidden and true.any():
            height, width = true.shape
            texture = cv2.resize(plank, (width, height), interpolation=cv2.INTER_AREA)
            rows, columns = np.flatnonzero(true.any(1)), np.flatnonzero(true.any(0))
            top, bottom = max(0, rows[0] - _MARGIN), rows[-1] + 1 + _MARGIN
            left, right = max(0, columns[0] - _MARGIN), columns[-1] + 1 + _MARGIN
            image[top:bottom, left:right] = texture[top:bottom, left:right]
        yield image, true


def score_occlusion(tracker: Tracker, sequence: MaskSequence, plank: np.ndarray, occlusion: Occlusion) -> PresenceScore:
    """Track all objects of the first frame as one. Raises InputError where the sequence is too short."""
    if len(sequence) < occlusion.frames:
        raise InputError(
            f"expected {occlusion.frames} frames in {sequence.name}, got {len(sequence)}; hide the object earlier"
        )
    found_after: int | None = None
    false_frames = missed = 0
    overlaps: list[float] = []
    again = occlusion.begin + occlusion.hidden
    for index, (image, true) in enumerate(occluded_frames(sequence, plank, occlusion)):
        if index == 0:
            tracker.start(image, [MaskObject(1, true)])
            continue
        tracks = tracker.step(image)
        found = tracks.mask == 1
        overlap = float((found & true).sum() / max(1, (found | true).sum()))
        if index < occlusion.begin:
            overlaps.append(overlap)
            missed += not tracks.objects[0].visible
        elif index < again:
            false_frames += int(found.sum()) > FALSE_PIXELS
        elif found_after is None and overlap >= FOUND_OVERLAP:
            found_after = index - again
    return PresenceScore(sequence.name, found_after, false_frames, missed, float(np.mean(overlaps)))


def run_presence(
    sequences: Sequence[MaskSequence],
    artifact: str,
    short_side: int | None,
    occlusion: Occlusion,
    redetect: bool,
    threads: int,
) -> list[PresenceScore]:
    """corrflow-eval presence: a line for each sequence, then the two figures."""
    if min(occlusion.begin, occlusion.hidden) < 1:
        raise InputError("expected at least one frame before the plank and one under it, got fewer; give more")
    console = Console()
    scores: list[PresenceScore] = []
    with opened_tracker(artifact, short_side, redetect, threads) as tracker:
        for index, sequence in enumerate(sequences):
            plank = sequences[(index + 1) % len(sequences)].image(0)[:, ::-1]
            begin = time.monotonic()
            scores.append(score_occlusion(tracker, sequence, plank, occlusion))
            _say(console, scores[-1], occlusion, time.monotonic() - begin)
    found = sum(score.found_after is not None for score in scores)
    false = sum(score.false_frames for score in scores)
    hidden, seen = occlusion.hidden * len(scores), (occlusion.begin - 1) * len(scores)
    console.print(f"found again within {occlusion.after} frames: {found} of {len(scores)}")
    console.print(f"false masks while hidden: {false} of {hidden} frames")
    console.print(f"taken for lost while visible: {sum(score.missed for score in scores)} of {seen} frames")
    return scores


def _say(console: Console, score: PresenceScore, occlusion: Occlusion, seconds: float) -> None:
    after = "never" if score.found_after is None else f"after {score.found_after}"
    console.print(
        f"{score.sequence:20} J before {100 * score.overlap:5.1f}  false {score.false_frames:2} of {occlusion.hidden}"
        f"  lost while visible {score.missed:2}  found {after:9} {seconds:6.1f} s",
        highlight=False,
    )
