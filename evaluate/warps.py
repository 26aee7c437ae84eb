"""Points of known truth on the sequences of a data set of masks, scored as TAP-Vid scores its points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.datasets.point_truth import REAL_FRAMES, WarpSettings, real_video, warped_video
from corrflow.evaluate.masks import Method
from corrflow.evaluate.metrics.keypoints import HIDDEN_BELOW
from corrflow.evaluate.metrics.points import TapVidScore
from corrflow.evaluate.points import PointJob, PointReport, score_queries, tapvid_report
from corrflow.evaluate.workers import run_jobs


@dataclass(frozen=True)
class _Job:
    method: Method
    sequence: MaskSequence
    settings: WarpSettings
    is_real: bool


def evaluate_warps(
    sequences: Sequence[MaskSequence],
    methods: Sequence[Method],
    settings: WarpSettings,
    is_real: bool = False,
    workers: int = 1,
    show_progress: bool = False,
) -> PointReport:
    """Track and score points of known truth in every sequence, at the frames' own size.

    is_real: True for real frames with points of consistent flow, in place of synthetic motion

    A point counts as reported occluded below a confidence of one half.
    """
    jobs = [_Job(method, sequence, settings, is_real) for method in methods for sequence in sequences]
    total = sum(min(REAL_FRAMES, len(job.sequence)) if is_real else settings.frames for job in jobs)
    scores = {
        (job.method.label, job.sequence.name): score
        for job, score in run_jobs(_run, jobs, workers, total, show_progress)
    }
    facts = {"truth": "consistent flow" if is_real else "synthetic motion", **asdict(settings)}
    title = f"{'consistent flow of real frames' if is_real else 'synthetic motion'}, scored at 256x256"
    names = [sequence.name for sequence in sequences]
    return tapvid_report(title, names, methods, scores, facts | {"hidden_below_confidence": HIDDEN_BELOW})


def _run(job: _Job) -> TapVidScore:
    """Make, track and score the video of a sequence; runs in a worker process."""
    video = (real_video if job.is_real else warped_video)(job.sequence, job.settings)
    # The largest number below the threshold, because the score counts confidences up to a number.
    return score_queries(PointJob(job.method, video, "first", native=True), HIDDEN_BELOW - 1e-9)
