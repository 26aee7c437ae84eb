"""Measure what the settings of the keypoint tracker are worth, one at a time.

    python -m corrflow.bench.experiments.keypoint_settings VIDEO LABELS [VIDEO LABELS ...] [--badja JSON ROOT]

Clips are tracked as by `keypoint_confidence`. Printed is the share of right points of each clip and their mean, for the
settings as they are, and with one of them changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import numpy as np

from corrflow.bench.experiments.keypoint_confidence import Clip, clips_of, parser, samples
from corrflow.runtime.tracking.keypoints import crop, keypoint_tracker, refinement, similarity

CHANGES: Sequence[tuple[str, ModuleType, dict[str, object]]] = (
    ("as it is", keypoint_tracker, {}),
    ("no refinement on the pictures", refinement, {"MAX_CORRECTION": 0.0, "MAX_FINE_CORRECTION": 0.0}),
    ("no labelled pictures", refinement, {"MIN_CORRELATION": 1.1}),
    ("labelled pictures from a correlation of 0.7", refinement, {"MIN_CORRELATION": 0.7}),
    ("labelled pictures from a correlation of 0.9", refinement, {"MIN_CORRELATION": 0.9}),
    ("no second stage", keypoint_tracker, {"FINE_SCALE": 0.0}),
    ("second stage up to 5 pixels", refinement, {"MAX_FINE_CORRECTION": 5.0}),
    ("places on the body do not count", keypoint_tracker, {"SHAPE_SPREAD": 100.0}),
    ("places on the body count more", keypoint_tracker, {"SHAPE_SPREAD": 0.2}),
    ("five recent frames", keypoint_tracker, {"RECENT_FRAMES": 5}),
    ("the crop does not turn or scale", similarity, {"MIN_RESIDUAL": 1e9}),
    ("half the room around the points", crop, {"MARGIN": 0.25}),
    ("crops of half the area", crop, {"MAX_AREA": 384 * 192}),
)


@contextmanager
def changed(module: ModuleType, values: dict[str, object]) -> Iterator[None]:
    """Set constants of a module for a while."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def shares(clips: Sequence[Clip], model: str) -> list[float]:
    """Return the share of right points of each clip."""
    return [float(samples(clip, model)[1].mean()) for clip in clips]


def main() -> None:
    """Measure, and print a line for each change."""
    arguments = parser(__doc__).parse_args()
    clips = clips_of(arguments)
    print("setting | " + " | ".join(clip.name for clip in clips) + " | mean")
    for name, module, values in CHANGES:
        with changed(module, values):
            found = shares(clips, arguments.model)
        print(f"{name} | " + " | ".join(f"{100 * one:.1f}" for one in [*found, np.mean(found)]), flush=True)


if __name__ == "__main__":
    main()
