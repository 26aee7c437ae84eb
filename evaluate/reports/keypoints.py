"""Files of a report on keypoints: a self-contained page, JSON, and a CSV of all points."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.atomic_files import write_file
from corrflow.evaluate.keypoints import (
    KeypointReport,
    KeypointResult,
    keypoint_measures,
    keypoints_as_json,
    measure_text,
)
from corrflow.evaluate.metrics.keypoints import HIDDEN_BELOW, RIGHT_SHARE
from corrflow.evaluate.reports.charts import SERIES_COLOURS, bar_chart, line_chart, reliability_chart
from corrflow.evaluate.reports.html import as_facts
from corrflow.evaluate.reports.keypoint_frames import worst_pictures
from corrflow.evaluate.reports.result_store import program
from corrflow.html_template import render_html

REPORT_FILES = ("report.html", "report.json", "points.csv")
WORST_FRAMES = 4
MAX_OBJECT_CHARTS = 12

_TEMPLATE = Path(__file__).with_name("templates") / "keypoint_report.html.j2"


def write_keypoint_files(report: KeypointReport, folder: Path) -> list[Path]:
    """Write the page, JSON and CSV of a report to a folder, and return their paths."""
    texts = (
        keypoint_page(report),
        json.dumps(keypoints_as_json(report), indent=1, default=str) + "\n",
        points_csv(report),
    )
    paths = [folder / name for name in REPORT_FILES]
    for path, text in zip(paths, texts, strict=True):
        write_file(path, text)
    return paths


def keypoint_page(report: KeypointReport) -> str:
    """Render the page of a report."""
    results, video = report.results, report.video
    score = results[0].score
    given = [video.frames[row] for row in report.given]
    objects = list(video.objects)
    by_point = {result.method.label: report.by_point(result) for result in results}
    by_object = {result.method.label: report.by_object(result) for result in results}
    scored_points = int(video.is_visible[report.given[0]].sum())
    points = list(dict.fromkeys(name for shares in by_point.values() for name in shares))
    names = ", ".join(map(str, given[:12])) + (f" and {len(given) - 12} more" if len(given) > 12 else "")
    return render_html(
        _TEMPLATE,
        title=f"Points of {report.title}",
        colours=SERIES_COLOURS,
        summary=(
            f"{len(objects)} {'object' if len(objects) == 1 else 'objects'} with {scored_points} scored points;"
            f" {int(report.is_scored.any(1).sum())} scored frames with {score.count} visible and {score.hidden_count}"
            f" hidden points. Labels given: frame {names}. Body length: {report.length:.1f} pixels."
        ),
        methods=[_method(index, result) for index, result in enumerate(results)],
        measures=list(keypoint_measures(results[0])),
        right_share=RIGHT_SHARE,
        hidden_below=HIDDEN_BELOW,
        over_time=line_chart(
            [(result.method.label, *report.over_time(result)) for result in results], "frame", (1000, 320), given
        ),
        over_time_of_objects={
            name: line_chart(
                [(result.method.label, *report.over_time(result, columns)) for result in results],
                "frame",
                (420, 230),
                given,
            )
            for name, columns in list(video.objects.items())[:MAX_OBJECT_CHARTS]
            if len(objects) > 1
        },
        left_out=max(0, len(objects) - MAX_OBJECT_CHARTS),
        by_point=bar_chart(
            points,
            [(label, [shares.get(name, math.nan) for name in points]) for label, shares in by_point.items()],
            (1000, 320),
        ),
        by_object=[(name, [shares.get(name) for shares in by_object.values()]) for name in objects],
        reliability=[(result.method.label, _reliability(index, result)) for index, result in enumerate(results)],
        worst=list(worst_pictures(report, WORST_FRAMES).items()),
        program=as_facts(program()),
    )


def _method(index: int, result: KeypointResult) -> dict[str, Any]:
    """Return the values of one method's card, row and details."""
    measures = keypoint_measures(result)
    facts = dict(result.method.predictor.describe())
    facts = {name: value for name, value in facts.items() if name not in ("settings", "tracking")} | (
        facts.get("settings") or {}
    )
    return {
        "label": result.method.label,
        "colour": index % SERIES_COLOURS,
        "right": measure_text("PCK", result.score.pck_right),
        "measures": {name: measure_text(name, value) for name, value in measures.items()},
        "shares": {
            name: 0.0 if math.isnan(value) else value for name, value in measures.items() if name.startswith("PCK")
        },
        "notes": result.method.notes,
        "facts": as_facts(({"protocol": result.method.protocol} if result.method.protocol else {}) | facts),
    }


def _reliability(index: int, result: KeypointResult) -> dict[str, Any]:
    bins = result.score.calibration
    # A chart has one method; the series before it are empty, so that the method keeps its colour.
    empty = ("", np.zeros(0), np.zeros(0), np.zeros(0))
    own = (result.method.label, bins.confidences, bins.right, bins.counts)
    chart = reliability_chart([*[empty] * index, own], "reported confidence", (420, 300))
    return chart | {"expected_error": measure_text("ECE", bins.expected_error)}


def points_csv(report: KeypointReport) -> str:
    """Return a table of all labelled points of the first frame: truth, tracked position, confidence and error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("method", "frame", "object", "point", "given", "true_x", "true_y", "x", "y", "confidence", "error")
    writer.writerow(names)
    video = report.video
    given = set(report.given)
    columns = np.flatnonzero(video.is_visible[report.given[0]]).tolist()
    for result in report.results:
        for row, frame in enumerate(video.frames):
            for k in columns:
                if video.is_labelled[row, k]:
                    numbers = (*video.points[row, k], *result.tracked.positions[row, k])
                    confidence, error = result.tracked.confidences[row, k], result.errors[row, k]
                    texts = [f"{value:.3f}" if math.isfinite(value) else "" for value in (*numbers, confidence, error)]
                    writer.writerow((result.method.label, frame, *video.names[k], int(row in given), *texts))
    return text.getvalue()
