"""Points of JHMDB, BADJA and TAP-Vid: tracked with every method, and scored by each data set's measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from corrflow.errors import InputError
from corrflow.evaluate.datasets.points import TAPVID_SIDE, JointSequence, PointVideo
from corrflow.evaluate.masks import Method
from corrflow.evaluate.methods.point_trackers import inside, track_points
from corrflow.evaluate.metrics.points import (
    TapVidScore,
    badja_share,
    box_sizes,
    correct_points,
    instance_sizes,
    mean_share,
    share_per_joint,
    tapvid_score,
)
from corrflow.evaluate.reports.report import REPORT_VERSION, score_table
from corrflow.evaluate.reports.result_store import program
from corrflow.evaluate.workers import frame_done, run_jobs
from corrflow.runtime.types import MIN_POINT_CONFIDENCE

ALPHAS = (0.1, 0.2)
STRIDED_EVERY = 5


@dataclass(frozen=True)
class PointJob:
    """One method on one video.

    mode:   TAP-Vid's query mode
    native: track at the video's own size
    """

    method: Method
    video: JointSequence | PointVideo
    mode: str = ""
    native: bool = False


@dataclass(frozen=True)
class PointReport:
    """Scores of each method by its label.

    videos: scores of each video, one for each measure
    means:  scores over all videos
    facts:  options of the evaluation as JSON values
    """

    title: str
    measures: tuple[str, ...]
    videos: dict[str, dict[str, list[float]]]
    means: dict[str, list[float]]
    methods: tuple[Method, ...]
    facts: dict[str, Any]


# --- tracking --------------------------------------------------------------------------------------------------


def track_joints(job: PointJob) -> tuple[np.ndarray, np.ndarray]:
    """Track a sequence's joints: positions [T, P, 2] and lost [T, P]; runs in a worker process.

    Joints that are hidden on the first frame, or outside the frame, cannot be prompted and are lost on all frames.
    """
    video = job.video
    assert isinstance(video, JointSequence)
    first = video.joints[0]
    prompted = inside(first, next(video.images()).shape[:2]) & video.visible[0]
    positions = np.full(video.joints.shape, np.nan)
    lost = np.ones(video.visible.shape, bool)
    if prompted.any():
        tracked = track_points(job.method, video.images(), {0: first[prompted]})
        for index, (points, confidence) in enumerate(tracked):
            positions[index, prompted], lost[index, prompted] = points, confidence <= 0
            frame_done()
    return positions, lost


def track_queries(job: PointJob) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Track the queries of a TAP-Vid video; runs in a worker process.

    Returns the frames [Q] and points [Q] of the queries, positions [Q, T, 2] at 256x256 pixels, and
    confidences [Q, T], which are 0 before the query.
    """
    video = job.video
    assert isinstance(video, PointVideo)
    images = video.images(None if job.native else TAPVID_SIDE)
    height, width = images[0].shape[:2]
    scale = np.array([width, height], np.float64)
    # TAP-Vid's origin is the corner of the first pixel; the tracker's origin is its centre.
    pixels = (video.points * scale - 0.5).clip(-0.5, scale - 0.5)
    points, frames = video.occluded.shape
    queries = [
        (int(np.argmin(video.occluded[point])), point) for point in range(points) if not video.occluded[point].all()
    ]
    if job.mode == "strided":
        queries = [
            (frame, point)
            for frame in range(0, frames, STRIDED_EVERY)
            for point in range(points)
            if not video.occluded[point, frame]
        ]
    queries.sort()
    query_frames = np.array([frame for frame, _ in queries], int)
    query_points = np.array([point for _, point in queries], int)
    positions = np.full((len(queries), frames, 2), np.nan)
    confidences = np.zeros((len(queries), frames))

    def track(order: Sequence[int], prompts: Mapping[int, np.ndarray], rows: np.ndarray) -> None:
        tracked = track_points(job.method, (images[t] for t in order), prompts)
        for frame, (found, confidence) in zip(order, tracked, strict=True):
            prompted = rows[: len(found)]
            positions[prompted, frame], confidences[prompted, frame] = found, confidence

    if job.mode == "strided":
        for frame in np.unique(query_frames):
            rows = np.flatnonzero(query_frames == frame)
            prompts = {0: pixels[query_points[rows], frame]}
            track(range(frame, frames), prompts, rows)
            track(range(frame, -1, -1), prompts, rows)
    elif len(queries):
        prompts = {int(frame): pixels[query_points[query_frames == frame], frame] for frame in np.unique(query_frames)}
        track(range(frames), prompts, np.arange(len(queries)))
    for _ in range(frames):
        frame_done()
    return query_frames, query_points, (positions + 0.5) / scale * TAPVID_SIDE, confidences


# --- scores ----------------------------------------------------------------------------------------------------


def evaluate_jhmdb(
    sequences: Sequence[JointSequence],
    methods: Sequence[Method],
    workers: int = 1,
    drop_lost: bool = False,
    show_progress: bool = False,
) -> PointReport:
    """Compute PCK over all clips: the fraction of each joint's correct frames, then the mean over joints.

    The prompted first frame is not scored.

    drop_lost: leave lost joints out of the score, as common public code does; otherwise lost joints are wrong
    """
    _check_names(sequences)
    results = _run(track_joints, sequences, methods, workers, show_progress)
    units = {"instance": instance_sizes, "max": box_sizes}
    measures = tuple(f"PCK{name}@{alpha:g}" for name in units for alpha in ALPHAS)
    videos: dict[str, dict[str, list[float]]] = {}
    means = {}
    for method in methods:
        correct: dict[str, list[np.ndarray]] = {measure: [] for measure in measures}
        counted: list[np.ndarray] = []
        videos[method.label] = {}
        for sequence in sequences:
            positions, lost = (array[1:] for array in results[method.label, sequence.name])
            true = sequence.joints[1:]
            counted.append(~lost if drop_lost else np.ones_like(lost))
            for name, unit in units.items():
                for alpha in ALPHAS:
                    within = correct_points(positions, true, alpha * unit(true)) & ~lost
                    correct[f"PCK{name}@{alpha:g}"].append(within)
            videos[method.label][sequence.name] = [
                mean_share(share_per_joint(correct[measure][-1], counted[-1])) for measure in measures
            ]
        total = np.concatenate(counted)
        means[method.label] = [
            mean_share(share_per_joint(np.concatenate(correct[measure]), total)) for measure in measures
        ]
    rule = "lost joints are left out" if drop_lost else "lost joints are wrong"
    return PointReport(f"JHMDB ({rule})", measures, videos, means, tuple(methods), {"lost_joints": rule})


def evaluate_badja(
    sequences: Sequence[JointSequence], methods: Sequence[Method], workers: int = 1, show_progress: bool = False
) -> PointReport:
    """Compute the fraction of visible joints within 0.2 * sqrt(area) in each video, then the mean over videos.

    The annotated frames after the first are scored. Joints that are hidden on the first frame are not scored.
    """
    _check_names(sequences)
    results = _run(track_joints, sequences, methods, workers, show_progress)
    videos: dict[str, dict[str, list[float]]] = {method.label: {} for method in methods}
    for method in methods:
        for sequence in sequences:
            positions, lost = results[method.label, sequence.name]
            assert sequence.areas is not None
            frames = np.flatnonzero(np.isfinite(sequence.areas))[1:]
            positions = np.where(lost[..., None], np.nan, positions)[frames]
            visible = sequence.visible[frames] & sequence.visible[0]
            share = badja_share(positions, sequence.joints[frames], visible, sequence.areas[frames])
            videos[method.label][sequence.name] = [share]
    return PointReport("BADJA", ("PCK@0.2",), videos, _mean_over_videos(videos), tuple(methods), {})


def evaluate_tapvid(
    videos: Sequence[PointVideo],
    methods: Sequence[Method],
    mode: str,
    workers: int = 1,
    native: bool = False,
    show_progress: bool = False,
) -> PointReport:
    """Compute average Jaccard, fractions within 1 to 16 pixels and occlusion accuracy of each video, and their means.

    mode:   "first" or "strided"
    native: track at the video's own size, not at 256x256 pixels; scores are at 256x256 pixels in both cases
    """
    jobs = [PointJob(method, video, mode, native) for method in methods for video in videos]
    total = sum(len(video.video) for video in videos) * len(methods)
    scores = {
        (job.method.label, job.video.name): score
        for job, score in run_jobs(_score_queries, jobs, workers, total, show_progress)
    }
    size = "own size" if native else f"{TAPVID_SIDE}x{TAPVID_SIDE}"
    facts = {"queries": mode, "tracked_at": size, "lost_below_confidence": MIN_POINT_CONFIDENCE}
    return tapvid_report(f"TAP-Vid ({mode}, {size})", [video.name for video in videos], methods, scores, facts)


def _score_queries(job: PointJob) -> TapVidScore:
    return score_queries(job, MIN_POINT_CONFIDENCE)


def score_queries(job: PointJob, hidden_up_to: float) -> TapVidScore:
    """Track and score the queries of a TAP-Vid video; runs in a worker process.

    hidden_up_to: largest confidence of a point that counts as reported occluded
    """
    video = job.video
    assert isinstance(video, PointVideo)
    query_frames, query_points, positions, confidences = track_queries(job)
    occluded, true = video.occluded[query_points], video.points[query_points] * TAPVID_SIDE
    return tapvid_score(query_frames, occluded, true, confidences <= hidden_up_to, positions, job.mode)


def tapvid_report(
    title: str,
    names: Sequence[str],
    methods: Sequence[Method],
    scores: Mapping[tuple[str, str], TapVidScore],
    facts: dict[str, Any],
) -> PointReport:
    """Return the report of scores by method's label and video's name, in the order of the methods and videos."""
    by_method = {
        method.label: {name: list(asdict(scores[method.label, name]).values()) for name in names} for method in methods
    }
    measures = ("AJ", "<d avg", "OA", "<1 px")
    return PointReport(title, measures, by_method, _mean_over_videos(by_method), tuple(methods), facts)


def point_table(report: PointReport) -> Table:
    """Build the table of all measures in percent; the last row is over all videos."""
    names = list(report.videos[report.methods[0].label])
    rows = {label: [*videos.values(), report.means[label]] for label, videos in report.videos.items()}
    return score_table(
        report.title,
        ("video", *names, f"all of {len(names)}"),
        report.measures,
        {label: [[_percent(value) for value in row] for row in values] for label, values in rows.items()},
    )


def points_as_json(report: PointReport) -> dict[str, Any]:
    """Convert a report to JSON values: fractions from 0 to 1, None where a video has nothing to measure."""

    def by_measure(values: list[float]) -> dict[str, float | None]:
        return {
            measure: None if value != value else value for measure, value in zip(report.measures, values, strict=True)
        }

    return {
        "version": REPORT_VERSION,
        "title": report.title,
        **report.facts,
        "program": program(),
        "methods": [
            {
                "label": method.label,
                "protocol": method.protocol,
                "description": method.predictor.describe(),
                "all": by_measure(report.means[method.label]),
                "videos": {name: by_measure(values) for name, values in report.videos[method.label].items()},
            }
            for method in report.methods
        ],
    }


def _run(
    run: Callable[[PointJob], tuple[np.ndarray, np.ndarray]],
    sequences: Sequence[JointSequence],
    methods: Sequence[Method],
    workers: int,
    show_progress: bool,
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Return the result of every method on every sequence, by (label, sequence name)."""
    jobs = [PointJob(method, sequence) for method in methods for sequence in sequences]
    total = sum(len(sequence.image_paths) for sequence in sequences) * len(methods)
    done = run_jobs(run, jobs, workers, total, show_progress)
    return {(job.method.label, job.video.name): result for job, result in done}


def _mean_over_videos(videos: dict[str, dict[str, list[float]]]) -> dict[str, list[float]]:
    """Return each method's mean of each measure, without videos that have nothing to measure."""
    return {
        label: [mean_share(np.array(values)) for values in zip(*scores.values(), strict=True)]
        for label, scores in videos.items()
    }


def _check_names(sequences: Sequence[JointSequence]) -> None:
    names = [sequence.name for sequence in sequences]
    if len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"expected every video under a name of its own, got {', '.join(repeated[:4])} twice")


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"
