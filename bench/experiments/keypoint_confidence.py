"""Fit the weights of keypoint confidence to labelled video.

    python -m corrflow.bench.experiments.keypoint_confidence VIDEO LABELS [VIDEO LABELS ...] [--badja JSON ROOT]

Every clip is tracked from some of its frames, each forward for `LENGTH` frames. The weights fitted to all clips are
printed. Two expected calibration errors follow for each clip: with weights fitted to the others, and with those of all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corrflow.evaluate.datasets.labelled_videos import open_labelled_video
from corrflow.evaluate.datasets.points import open_badja
from corrflow.evaluate.metrics.keypoints import RIGHT_SHARE, body_length, calibration
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.tracking.keypoints.keypoint_tracker import KeypointTracker
from corrflow.runtime.video.open_source import open_source

STARTS, LENGTH = 3, 150
RIDGE, STEPS = 1e-3, 50


@dataclass(frozen=True)
class Clip:
    """Labelled clip.

    images:  opens the frames [H, W, 3] uint8, BGR
    points:  [T, K, 2] pixels; NaN where not visible or not labelled
    objects: indices of each object's points
    lengths: [T] body length in pixels; NaN for a frame without labels
    """

    name: str
    images: Callable[[], Iterable[np.ndarray]]
    points: np.ndarray
    objects: list[list[int]]
    lengths: np.ndarray


def clip_of_video(source: str, labels: Path) -> Clip:
    """Open a video with its labels."""
    video = open_labelled_video(source, labels)
    count = video.frames[-1] + 1
    points, lengths = np.full((count, len(video.names), 2), np.nan), np.full(count, np.nan)
    points[list(video.frames)] = video.points
    objects = list(video.objects.values())
    lengths[list(video.frames)] = body_length(video.points, objects)

    def images() -> Iterator[np.ndarray]:
        with open_source(source) as frames:
            yield from (frame.image for frame in frames)

    return Clip(video.name, images, points, objects, lengths)


def clips_of_badja(annotations: Path, root: Path) -> list[Clip]:
    """Open the videos of BADJA, whose body length is the root of the true mask's area."""
    clips = []
    for video in open_badja(annotations, root):
        assert video.areas is not None
        lengths = np.sqrt(video.areas)
        visible = video.visible & np.isfinite(lengths)[:, None]
        points = np.where(visible[..., None], video.joints, np.nan)
        clips.append(Clip(video.name, video.images, points, [list(range(points.shape[1]))], lengths))
    return clips


def samples(clip: Clip, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Track a clip: terms of the regression [N, 5], and [N] bool, True for right points."""
    backend = open_backend("auto", load_artifact(resolve_model(model)), 1)
    labelled = np.flatnonzero(np.isfinite(clip.lengths))
    starts = labelled[(np.arange(STARTS) * len(labelled) / STARTS).astype(int)].tolist()
    active: list[tuple[int, list[int], KeypointTracker]] = []
    terms, right = [], []
    for index, image in enumerate(clip.images()):
        if index >= len(clip.points):
            break
        active = [one for one in active if index <= one[0] + LENGTH]
        for _, columns, tracker in active:
            points, _ = tracker.step(image)
            if np.isfinite(clip.lengths[index]):
                distance = np.linalg.norm(points - clip.points[index, columns], axis=1)
                assert tracker.evidence is not None
                terms.append(tracker.evidence.terms)
                right.append(distance <= RIGHT_SHARE * clip.lengths[index])
        if index in starts:
            for columns in clip.objects:
                own = [column for column in columns if np.isfinite(clip.points[index, column]).all()]
                if own:
                    settings = backend.artifact.settings
                    active.append((index, own, KeypointTracker(backend, settings, image, clip.points[index, own])))
    backend.close()
    return np.concatenate(terms), np.concatenate(right)


def fitted(clips: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Fit the weights by Newton's method; every clip counts alike."""
    terms, right, weights = [], [], []
    for own, is_right in clips:
        terms.append(own)
        right.append(is_right)
        weights.append(np.full(len(own), 1 / len(own)))
    x, y, w = np.concatenate(terms), np.concatenate(right).astype(float), np.concatenate(weights)
    w, solution = w / w.sum(), np.zeros(x.shape[1])
    for _ in range(STEPS):
        probability = 1 / (1 + np.exp(-x @ solution))
        gradient = x.T @ (w * (probability - y)) + RIDGE * solution
        curvature = (x * (w * probability * (1 - probability))[:, None]).T @ x + RIDGE * np.eye(len(solution))
        solution -= np.linalg.solve(curvature, gradient)
    return solution


def error(weights: np.ndarray, terms: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error of a clip."""
    return calibration(1 / (1 + np.exp(-terms @ weights)), right).expected_error


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of the clips' arguments."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("pairs", nargs="+", metavar="VIDEO LABELS")
    options.add_argument("--badja", nargs=2, type=Path, metavar=("JSON", "ROOT"))
    options.add_argument("--model", default="quarter")
    return options


def clips_of(arguments: argparse.Namespace) -> list[Clip]:
    """Open the clips of a command."""
    pairs = zip(arguments.pairs[::2], arguments.pairs[1::2], strict=True)
    clips = [clip_of_video(source, Path(labels)) for source, labels in pairs]
    return clips + (clips_of_badja(*arguments.badja) if arguments.badja else [])


def main() -> None:
    """Fit, and print."""
    arguments = parser(__doc__).parse_args()
    clips = clips_of(arguments)
    found = {clip.name: samples(clip, arguments.model) for clip in clips}
    weights = fitted(found.values())
    print("peak, correlation, from label, displacement, bias:", weights.round(2).tolist())
    for name, own in found.items():
        others = fitted(one for other, one in found.items() if other != name) if len(found) > 1 else weights
        left_out, of_all = error(others, *own), error(weights, *own)
        share = own[1].mean()
        print(f"{name}: {len(own[1])} points, right {share:.3f}, error {left_out:.3f} left out, {of_all:.3f} of all")
    everything = [np.concatenate(parts) for parts in zip(*found.values(), strict=True)]
    print(f"all points: error {error(weights, *everything):.3f}")


if __name__ == "__main__":
    main()
