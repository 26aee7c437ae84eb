"""Track the points of JHMDB, BADJA and TAP-Vid with a method, and score where they are found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from rich.table import Table
from rich.text import Text

from corrflow.errors import InputError
from corrflow.evaluate.datasets.points import RASTER, JointSequence, PointVideo
from corrflow.evaluate.masks import ALL_CORES, Method
from corrflow.evaluate.methods.methods import FlowWarp, Identity, TrackerMethod
from corrflow.evaluate.metrics.points import (
    badja_share,
    box_sizes,
    correct_points,
    instance_sizes,
    mean_share,
    share_per_joint,
    tapvid_score,
)
from corrflow.evaluate.reports.report import REPORT_VERSION, WIDEST_TABLE
from corrflow.evaluate.reports.result_store import program
from corrflow.evaluate.workers import frame_done, run_jobs
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MIN_POINT_PEAK, KeypointsObject

ALPHAS = (0.1, 0.2)
STRIDED_EVERY = 5
_MOST_QUERY_FRAMES = 255


@dataclass(frozen=True)
class PointJob:
    """One method on one video; mode is TAP-Vid's query mode, native keeps the video's own size."""

    method: Method
    video: JointSequence | PointVideo
    threads: int
    mode: str = ""
    native: bool = False


@dataclass(frozen=True)
class PointReport:
    """Scores of each method by name: for each video, and over all. rows: what each video was scored on, JSON-ready."""

    title: str
    measures: tuple[str, ...]
    videos: dict[str, dict[str, list[float]]]
    means: dict[str, list[float]]
    methods: tuple[Method, ...]
    facts: dict[str, Any]


# --- following points ------------------------------------------------------------------------------------------


def follow(
    method: Method, images: Iterable[np.ndarray], given: dict[int, np.ndarray], threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places [P, 2] float64 and confidences [P] of all points given so far, frame after frame.

    given: points [p, 2] by the index of the frame that they are given on; P counts them in the order of those frames

    Raises InputError for a method that cannot follow points.
    """
    maker = method.maker
    if isinstance(maker, TrackerMethod):
        yield from _follow_tracker(maker, images, given, threads)
    elif isinstance(maker, (Identity, FlowWarp)):
        yield from _follow_flow(images, given, isinstance(maker, FlowWarp))
    else:
        raise InputError(f"expected a method that follows points, got {method.label}")


def _follow_tracker(
    maker: TrackerMethod, images: Iterable[np.ndarray], given: dict[int, np.ndarray], threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    backend = maker.encoder.open(maker.settings, threads)
    if len(given) > _MOST_QUERY_FRAMES:
        raise InputError(f"expected points given on at most {_MOST_QUERY_FRAMES} frames, got {len(given)}")
    try:
        tracker = Tracker(backend, maker.settings)
        for index, image in enumerate(images):
            new = []
            if index in given:
                names = tuple(str(number) for number in range(len(given[index])))
                new = [KeypointsObject(sorted(given).index(index) + 1, given[index].astype(np.float32), names)]
            tracks = tracker.start(image, new) if index == 0 else tracker.step(image)
            # What is given on this frame is where it was given.
            objects = list(tracks.objects) + (list(tracker.add(new).objects) if index and new else [])
            places = [np.zeros((0, 2)), *(item.points for item in objects if item.points is not None)]
            sure = [np.zeros(0), *(item.point_confidence for item in objects if item.point_confidence is not None)]
            yield np.concatenate(places).astype(np.float64), np.asarray(np.concatenate(sure))
    finally:
        backend.close()


def _follow_flow(
    images: Iterable[np.ndarray], given: dict[int, np.ndarray], moves: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    # OpenCV's type stubs do not have it.
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # pyright: ignore[reportAttributeAccessIssue]
    places, before = np.zeros((0, 2)), np.zeros(0, np.uint8)
    for index, image in enumerate(images):
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if moves and index and len(places):
            ahead = flow.calc(before, grey, np.zeros((*grey.shape, 2), np.float32))
            x, y = places.astype(np.float32).T
            places = (
                places
                + cv2.remap(ahead, x[:, None], y[:, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]
            )
        places = np.concatenate([places, given.get(index, np.zeros((0, 2)))])
        before = grey
        # A point that leaves the picture is not seen any longer.
        inside = ((places >= -0.5) & (places <= np.array(grey.shape[::-1]) - 0.5)).all(1)
        yield places, np.asarray(inside, np.float32)


def follow_joints(job: PointJob) -> tuple[np.ndarray, np.ndarray]:
    """Places [T, P, 2] of a sequence's joints, and which are lost [T, P]; runs in a worker process.

    Joints that are not visible in the first frame, or outside of it, cannot be given: they are lost from the start.
    """
    video = job.video
    assert isinstance(video, JointSequence)
    height, width = next(video.images()).shape[:2]
    first = video.joints[0]
    with np.errstate(invalid="ignore"):
        inside = ((first >= -0.5) & (first <= np.array([width, height]) - 0.5)).all(1) & video.visible[0]
    places = np.full(video.joints.shape, np.nan)
    lost = np.ones(video.visible.shape, bool)
    if inside.any():
        found = follow(job.method, video.images(), {0: first[inside]}, job.threads)
        for index, (points, sure) in enumerate(found):
            places[index, inside], lost[index, inside] = points, sure <= MIN_POINT_PEAK
            frame_done()
    return places, lost


def follow_queries(job: PointJob) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """TAP-Vid: query frames [Q], which point each asks for [Q], places [Q, T, 2] on the raster of 256, lost [Q, T]."""
    video = job.video
    assert isinstance(video, PointVideo)
    images = video.images(None if job.native else RASTER)
    height, width = images[0].shape[:2]
    scale = np.array([width, height], np.float64)
    # Raster coordinates begin at the corner of the first pixel; the tracker's at its centre.
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
    asked = np.array([point for _, point in queries], int)
    places = np.full((len(queries), frames, 2), np.nan)
    lost = np.ones((len(queries), frames), bool)

    def run(order: Sequence[int], given: dict[int, np.ndarray], rows: np.ndarray) -> None:
        for step, (found, sure) in enumerate(follow(job.method, (images[t] for t in order), given, job.threads)):
            known = rows[: len(found)]
            places[known, order[step]], lost[known, order[step]] = found, sure <= MIN_POINT_PEAK

    if job.mode == "strided":
        for frame in np.unique(query_frames):
            rows = np.flatnonzero(query_frames == frame)
            start = {0: pixels[asked[rows], frame]}
            run(range(frame, frames), start, rows)
            run(range(frame, -1, -1), start, rows)
    elif len(queries):
        given = {int(frame): pixels[asked[query_frames == frame], frame] for frame in np.unique(query_frames)}
        run(range(frames), given, np.arange(len(queries)))
    for _ in range(frames):
        frame_done()
    return query_frames, asked, (places + 0.5) / scale * RASTER, lost


# --- the data sets' scores -------------------------------------------------------------------------------------


def evaluate_jhmdb(
    sequences: Sequence[JointSequence],
    methods: Sequence[Method],
    workers: int = 1,
    drop_lost: bool = False,
    show_progress: bool = False,
) -> PointReport:
    """PCK over all clips: for each joint the share of frames, then the mean over joints. Frame 0 is given.

    drop_lost: leave lost joints out of the score, as common public code does, in place of counting them as wrong
    """
    _check_names(sequences)
    results = _run(follow_joints, sequences, methods, workers, show_progress)
    units = {"instance": instance_sizes, "max": box_sizes}
    measures = tuple(f"PCK{name}@{alpha:g}" for name in units for alpha in ALPHAS)
    videos: dict[str, dict[str, list[float]]] = {}
    means = {}
    for method in methods:
        correct: dict[str, list[np.ndarray]] = {measure: [] for measure in measures}
        counted: list[np.ndarray] = []
        videos[method.label] = {}
        for sequence in sequences:
            places, lost = (array[1:] for array in results[method.label, sequence.name])
            true = sequence.joints[1:]
            count = ~lost if drop_lost else np.ones_like(lost)
            counted.append(count)
            own = []
            for name, unit in units.items():
                for alpha in ALPHAS:
                    right = correct_points(places, true, alpha * unit(true)) & ~lost
                    correct[f"PCK{name}@{alpha:g}"].append(right)
                    own.append(mean_share(share_per_joint(right, count)))
            videos[method.label][sequence.name] = own
        every = np.concatenate(counted)
        means[method.label] = [
            mean_share(share_per_joint(np.concatenate(correct[measure]), every)) for measure in measures
        ]
    rule = "lost joints are left out" if drop_lost else "lost joints are wrong"
    return PointReport(f"JHMDB ({rule})", measures, videos, means, tuple(methods), {"lost_joints": rule})


def evaluate_badja(
    sequences: Sequence[JointSequence], methods: Sequence[Method], workers: int = 1, show_progress: bool = False
) -> PointReport:
    """Share of visible joints within 0.2 * sqrt(area), over the annotated frames after the first, then over videos.

    Joints that are not visible in the first annotated frame cannot be given and are not scored.
    """
    _check_names(sequences)
    results = _run(follow_joints, sequences, methods, workers, show_progress)
    videos: dict[str, dict[str, list[float]]] = {method.label: {} for method in methods}
    for method in methods:
        for sequence in sequences:
            places, lost = results[method.label, sequence.name]
            assert sequence.areas is not None
            frames = np.flatnonzero(np.isfinite(sequence.areas))[1:]
            places = np.where(lost[..., None], np.nan, places)[frames]
            visible = sequence.visible[frames] & sequence.visible[0]
            share = badja_share(places, sequence.joints[frames], visible, sequence.areas[frames])
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
    """Average Jaccard, share within 1 to 16 pixels and occlusion accuracy of each video, and their means.

    mode:   "first" or "strided"
    native: track at the video's own size and not at 256x256; coordinates are scored on the raster of 256 either way
    """
    jobs = [
        PointJob(method, video, 1 if workers > 1 else ALL_CORES, mode, native) for method in methods for video in videos
    ]
    scores: dict[str, dict[str, list[float]]] = {method.label: {} for method in methods}
    total = sum(len(video.video) for video in videos) * len(methods)
    for job, (query_frames, asked, places, lost) in run_jobs(follow_queries, jobs, workers, total, show_progress):
        video = job.video
        assert isinstance(video, PointVideo)
        score = tapvid_score(query_frames, video.occluded[asked], video.points[asked] * RASTER, lost, places, mode)
        scores[job.method.label][video.name] = list(asdict(score).values())
    ordered = {label: {video.name: found[video.name] for video in videos} for label, found in scores.items()}
    size = "own size" if native else f"{RASTER}x{RASTER}"
    measures = ("AJ", "<d avg", "OA")
    facts = {"queries": mode, "tracked_at": size, "lost_below_confidence": MIN_POINT_PEAK}
    return PointReport(
        f"TAP-Vid ({mode}, {size})", measures, ordered, _mean_over_videos(ordered), tuple(methods), facts
    )


def point_table(report: PointReport) -> Table:
    """One row per video and one for all; every measure in percent for every method.

    With more than `WIDEST_TABLE` methods one row per method, over all videos.
    """
    table = Table(title=report.title)
    if len(report.methods) > WIDEST_TABLE:
        table.add_column(f"all of {len(report.videos[report.methods[0].label])}", no_wrap=True)
        for measure in report.measures:
            table.add_column(measure, justify="right", no_wrap=True)
        for method in report.methods:
            table.add_row(Text(method.label), *map(_percent, report.means[method.label]))
        return table
    table.add_column("video", no_wrap=True)
    for method in report.methods:
        for first, measure in enumerate(report.measures):
            label = method.label if first == 0 else ""
            table.add_column(Text(f"{label}\n{measure}"), justify="right", no_wrap=True)
    labels = [method.label for method in report.methods]
    for video in report.videos[labels[0]]:
        table.add_row(Text(video), *(_percent(value) for label in labels for value in report.videos[label][video]))
    table.add_section()
    table.add_row("all", *(_percent(value) for label in labels for value in report.means[label]))
    return table


def points_as_json(report: PointReport) -> dict[str, Any]:
    """The report as JSON values, shares from 0 to 1, None where a video has nothing to measure."""

    def named(values: list[float]) -> dict[str, float | None]:
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
                "description": method.maker.describe(),
                "all": named(report.means[method.label]),
                "videos": {name: named(values) for name, values in report.videos[method.label].items()},
            }
            for method in report.methods
        ],
    }


def _run(
    run: Any, sequences: Sequence[JointSequence], methods: Sequence[Method], workers: int, show_progress: bool
) -> dict[tuple[str, str], Any]:
    threads = 1 if workers > 1 else ALL_CORES
    jobs = [PointJob(method, sequence, threads) for method in methods for sequence in sequences]
    total = sum(len(sequence.image_paths) for sequence in sequences) * len(methods)
    done = run_jobs(run, jobs, workers, total, show_progress)
    return {(job.method.label, job.video.name): result for job, result in done}


def _mean_over_videos(videos: dict[str, dict[str, list[float]]]) -> dict[str, list[float]]:
    """Of each method and measure; videos with nothing to measure are left out."""
    return {
        label: [mean_share(np.array(values)) for values in zip(*found.values(), strict=True)]
        for label, found in videos.items()
    }


def _check_names(sequences: Sequence[JointSequence]) -> None:
    names = [sequence.name for sequence in sequences]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"expected every video under a name of its own, got {', '.join(twice[:4])} twice")


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"
