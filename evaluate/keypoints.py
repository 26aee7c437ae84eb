"""Keypoints of one labelled video: tracked with every method from some labelled frames, scored on all others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from corrflow.errors import InputError
from corrflow.evaluate.datasets.labelled_videos import LabelledVideo
from corrflow.evaluate.masks import Method
from corrflow.evaluate.methods.point_trackers import TrackedVideo, track_video
from corrflow.evaluate.metrics.keypoints import (
    HIDDEN_BELOW,
    PCK_SHARES,
    RIGHT_SHARE,
    KeypointScore,
    body_length,
    errors_of,
    keypoint_score,
    pck_over_time,
)
from corrflow.evaluate.reports.report import REPORT_VERSION
from corrflow.evaluate.reports.result_store import program
from corrflow.evaluate.workers import frame_done, run_jobs


@dataclass(frozen=True)
class _Job:
    method: Method
    video: LabelledVideo
    given: tuple[int, ...]


@dataclass(frozen=True)
class KeypointResult:
    """Result of one method on all labelled frames of a video."""

    method: Method
    tracked: TrackedVideo
    errors: np.ndarray
    score: KeypointScore


@dataclass(frozen=True)
class KeypointReport:
    """Scores of all methods on one video.

    given:  rows of the labelled frames that the methods were given
    length: body length in pixels
    """

    video: LabelledVideo
    given: tuple[int, ...]
    length: float
    results: tuple[KeypointResult, ...]

    @property
    def title(self) -> str:
        several = f"{len(self.given)} labelled frames" if len(self.given) > 1 else "one labelled frame"
        return f"{self.video.name}, from {several}"

    @cached_property
    def is_scored(self) -> np.ndarray:
        """[L, K] bool: points of the first given frame, on the frames with labels that were not given."""
        return scored_points(self.video, self.given)

    @cached_property
    def frames(self) -> np.ndarray:
        """[L] indices of the labelled frames."""
        return np.array(self.video.frames)

    def over_time(self, result: KeypointResult, columns: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return frame indices and PCK at 0.2 body lengths of a method.

        columns: indices of the points; None for all
        """
        chosen = slice(None) if columns is None else list(columns)
        rows = self.is_scored.any(1)
        errors, scored = (array[rows][:, chosen] for array in (result.errors, self.is_scored))
        return pck_over_time(errors, scored, self.length, self.frames[rows])

    def by_point(self, result: KeypointResult) -> dict[str, float]:
        """Return PCK at 0.2 body lengths by the name of the point, over all objects."""
        names: dict[str, list[int]] = {}
        for index, (_, point) in enumerate(self.video.names):
            names.setdefault(point, []).append(index)
        return self._shares(result, names)

    def by_object(self, result: KeypointResult) -> dict[str, float]:
        """Return PCK at 0.2 body lengths by the name of the object."""
        return self._shares(result, self.video.objects)

    def _shares(self, result: KeypointResult, groups: dict[str, list[int]]) -> dict[str, float]:
        shown = self.is_scored & self.video.is_visible
        right = shown & (result.errors <= RIGHT_SHARE * self.length)
        return {
            name: float(right[:, group].sum() / shown[:, group].sum())
            for name, group in groups.items()
            if shown[:, group].any()
        }


def given_rows(count: int, labelled: int) -> tuple[int, ...]:
    """Return the rows of the labelled frames that a method is given: `labelled` of `count`, evenly spread from 0 on.

    Raises InputError where no frame would be left to score.
    """
    if not 1 <= labelled < count:
        raise InputError(
            f"expected --labelled from 1 to {count - 1}, as {count} frames are labelled, got {labelled}; give fewer"
        )
    return tuple(number * count // labelled for number in range(labelled))


def scored_points(video: LabelledVideo, given: Sequence[int]) -> np.ndarray:
    """Return [L, K] bool: points of the first given frame, on the frames with labels that were not given."""
    scored = video.is_labelled & video.is_visible[given[0]]
    scored[list(given)] = False
    return scored


def evaluate_keypoints(
    video: LabelledVideo,
    methods: Sequence[Method],
    labelled: int = 1,
    length: float | None = None,
    workers: int = 1,
    show_progress: bool = False,
) -> KeypointReport:
    """Track a video with every method from `labelled` of its labelled frames, and score all others.

    length: body length in pixels; None for that of the labels

    Raises InputError for a number of frames that leaves none to score, and for labels without a body length.
    """
    given = given_rows(len(video.frames), labelled)
    length = body_length(video.points, list(video.objects.values())) if length is None else length
    if not (math.isfinite(length) and length > 0):
        raise InputError(
            "expected objects of two points or more, whose box is the body length, got single points; give"
            " --body-length"
        )
    scored = scored_points(video, given)
    rows = np.flatnonzero(scored.any(1))
    if not len(rows):
        raise InputError(f"expected labels of the first frame's points on other frames of {video.name}, got none")
    frames = np.array(video.frames)
    first, last = frames[given[0]], frames[rows[-1]]
    is_late = frames >= first + (last - first + 1) * 2 / 3
    jobs = [_Job(method, video, given) for method in methods]
    results = {}
    total = int(last - first + 1) * len(methods)
    for job, tracked in run_jobs(_run, jobs, workers, total, show_progress):
        errors = errors_of(tracked.positions, video.points)
        score = keypoint_score(errors, tracked.confidences, scored, length, is_late)
        results[job.method.label] = KeypointResult(job.method, tracked, errors, score)
    return KeypointReport(video, given, length, tuple(results[method.label] for method in methods))


def _run(job: _Job) -> TrackedVideo:
    """Track a video; runs in a worker process."""
    video = job.video
    prompts = {video.frames[row]: prompts for row in job.given if (prompts := video.prompts(row))}
    ids = {name: number for number, name in enumerate(video.objects, 1)}
    keys = [(ids[name], point) for name, point in video.names]
    return track_video(job.method, video.source, prompts, video.frames, keys, frame_done)


def keypoint_measures(result: KeypointResult) -> dict[str, float]:
    """Return the measures of a table and of report.json by their names."""
    score, (cpu, wall) = result.score, result.tracked.seconds
    return {
        **{f"PCK@{share:g}": value for share, value in zip(PCK_SHARES, score.pck, strict=True)},
        f"PCK@{RIGHT_SHARE:g} last third": score.pck_late,
        "median error px": score.median_error,
        "ECE": score.calibration.expected_error,
        "hidden found": score.hidden_found,
        "visible as hidden": score.visible_hidden,
        "CPU ms per frame": 1000 * cpu,
        "frames/s": 1 / wall if wall else float("nan"),
    }


def measure_text(name: str, value: float) -> str:
    """Return the text of a measure in a table: percent, pixels, milliseconds or frames."""
    if not math.isfinite(value):
        return "-"
    if name == "ECE":
        return f"{value:.3f}"
    if name == "CPU ms per frame" or name == "frames/s" or name == "median error px":
        return f"{value:.1f}"
    return f"{100 * value:.1f}"


_HEADINGS = {
    f"PCK@{RIGHT_SHARE:g} last third": f"PCK@{RIGHT_SHARE:g}\nlast third",
    "median error px": "median\nerror px",
    "hidden found": "hidden\nfound",
    "visible as hidden": "visible\nas hidden",
    "CPU ms per frame": "CPU ms\nper frame",
}


def keypoint_table(report: KeypointReport) -> Table:
    """Build the table of all methods: shares in percent, ECE from 0 to 1."""
    shown = report.results[0].score
    table = Table(title=report.title)
    table.add_column("method", no_wrap=True)
    measures = {result.method.label: keypoint_measures(result) for result in report.results}
    for name in measures[report.results[0].method.label]:
        table.add_column(Text(_HEADINGS.get(name, name)), justify="right", no_wrap=True)
    for label, values in measures.items():
        table.add_row(Text(label), *(measure_text(name, value) for name, value in values.items()))
    frames = int(report.is_scored.any(1).sum())
    table.caption = Text(
        f"{frames} scored frames, {shown.count} visible points, {shown.hidden_count} hidden; body length"
        f" {report.length:.1f} pixels"
    )
    return table


def keypoints_as_json(report: KeypointReport) -> dict[str, Any]:
    """Convert a report to JSON values: fractions from 0 to 1, None where there is nothing to measure."""
    video = report.video
    return {
        "version": REPORT_VERSION,
        "title": report.title,
        "video": video.source,
        "given_frames": [video.frames[row] for row in report.given],
        "scored_frames": int(report.is_scored.any(1).sum()),
        "body_length": report.length,
        "hidden_below_confidence": HIDDEN_BELOW,
        "program": program(),
        "methods": [
            {
                "label": result.method.label,
                "protocol": result.method.protocol,
                "description": result.method.predictor.describe(),
                **_plain(keypoint_measures(result)),
                "visible_points": result.score.count,
                "hidden_points": result.score.hidden_count,
                "by_point": report.by_point(result),
                "by_object": report.by_object(result),
                "over_time": _lists(*zip(("frame", "PCK@0.2"), report.over_time(result), strict=True)),
                "calibration": _lists(
                    ("count", result.score.calibration.counts),
                    ("confidence", result.score.calibration.confidences),
                    ("right", result.score.calibration.right),
                ),
            }
            for result in report.results
        ],
    }


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _lists(*columns: tuple[str, np.ndarray]) -> dict[str, list[float | None]]:
    return {name: [value if math.isfinite(value) else None for value in array.tolist()] for name, array in columns}
