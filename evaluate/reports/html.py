"""Self-contained HTML page of a report: tables, charts, worst frames, settings and hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.metrics.continuity import area_at_end, longest_loss
from corrflow.evaluate.metrics.masks import ObjectScore
from corrflow.evaluate.reports.charts import SERIES_COLOURS, bar_chart, line_chart
from corrflow.evaluate.reports.report import MaskReport, MethodReport, mean_scores, summary
from corrflow.evaluate.reports.worst_frames import comparison_jpeg, worst_frames
from corrflow.html_template import render_html

WORST_FRAMES = 8
DRIFT_POINTS = 50
MAX_CHARACTERS = 400
"""Characters of a fact that the page shows."""

_TEMPLATE = Path(__file__).with_name("templates") / "mask_report.html.j2"


def html_page(
    report: MaskReport, sequences: Sequence[MaskSequence], attributes: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Render the page of a report.

    sequences:  sequences of the report, for the images of worst frames
    attributes: attributes by sequence name; the page has a chart of the mean J of each attribute
    """
    scored = report.methods[0].sequences
    rows = [
        (
            name if len(sequence.objects) == 1 else f"{name} · {object_id}",
            [_row(method.sequences[name].objects[object_id]) for method in report.methods],
        )
        for name, sequence in scored.items()
        for object_id in sequence.objects
    ]
    frames = sum(len(score.frames) for score in _objects(report.methods[0]))
    drifts = [(method.label, *drift(_objects(method))) for method in report.methods]
    return render_html(
        _TEMPLATE,
        title=report.title,
        colours=SERIES_COLOURS,
        summary=f"{len(scored)} sequences, {len(rows)} objects, {frames} scored masks; means are over objects.",
        methods=[_method(index, method) for index, method in enumerate(report.methods)],
        rows=rows,
        drift=line_chart(drifts, "percent of the sequence", (1000, 320)),
        drift_of_sequences={name: _drift_of_sequence(report, name) for name in scored},
        attributes=_attributes(report, attributes or {}),
        worst=[(method.label, _worst(method, sequences)) for method in report.methods if method.masks is not None],
        program=as_facts({**report.program, "decay": "official" if report.official_decay else "right past 256 frames"}),
    )


def _objects(method: MethodReport) -> list[ObjectScore]:
    return [score for sequence in method.sequences.values() for score in sequence.objects.values()]


def _row(score: ObjectScore) -> dict[str, Any]:
    """Return the values of one object in the table; area: "–" where the object is in none of the last frames."""  # noqa: RUF002
    area, loss = area_at_end(score.areas), longest_loss(score.frames, score.areas)
    return {
        "region": score.region.mean,
        "contour": score.contour.mean,
        "area": "–" if area is None else f"{area:.2f}",  # noqa: RUF001
        "loss": str(loss or ""),
    }


def _method(index: int, method: MethodReport) -> dict[str, Any]:
    """Return the values of one method's card and details."""
    scores = {"J": [score.region for score in _objects(method)], "F": [score.contour for score in _objects(method)]}
    measures = {
        f"{name} {measure}": f"{100 * np.mean([getattr(score, measure) for score in of_objects]):.1f}"
        for name, of_objects in scores.items()
        for measure in ("mean", "recall", "decay")
    }
    area, lost, switches, seconds = summary(method.sequences.values()).values()
    measures |= {
        "area at the end": "–" if area is None else f"{area:.2f}",  # noqa: RUF001
        "objects lost": str(lost),
        "identity switches": str(switches),
        "CPU ms per frame": "–" if seconds is None else f"{1000 * seconds:.0f}",  # noqa: RUF001
    }
    facts = {name: value for name, value in method.description.items() if name not in ("settings", "tracking")}
    facts |= method.description.get("settings") or {}
    if reused := sum(score.reused for score in method.sequences.values()):
        facts["cached results"] = f"{reused} of {len(method.sequences)} sequences"
    return {
        "label": method.label,
        "colour": index % SERIES_COLOURS,
        "means": mean_scores(method.sequences.values()),
        "measures": measures,
        "notes": method.notes,
        "facts": as_facts(({"protocol": method.protocol} if method.protocol else {}) | facts),
    }


def drift(scores: Sequence[ObjectScore], points: int = DRIFT_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean J of objects at `points` positions, 0 (first scored frame) to 100 percent (last)."""
    positions = np.linspace(0, 1, points)
    curves = [np.interp(positions, np.linspace(0, 1, len(score.frames)), score.region_similarity) for score in scores]
    return 100 * positions, np.mean(curves, axis=0)


def _drift_of_sequence(report: MaskReport, name: str) -> dict[str, Any]:
    series = []
    for method in report.methods:
        objects = list(method.sequences[name].objects.values())
        frames = np.unique(np.concatenate([score.frames for score in objects]))
        values = np.full((len(objects), len(frames)), np.nan)
        for row, score in zip(values, objects, strict=True):
            row[np.searchsorted(frames, score.frames)] = score.region_similarity
        series.append((method.label, frames, np.nanmean(values, axis=0)))
    return line_chart(series, "frame", (420, 230))


def _attributes(report: MaskReport, attributes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Build the chart of each attribute's mean J, and count sequences without attributes; {} for no attributes."""
    by_attribute: dict[str, list[str]] = {}
    described = [name for name in report.methods[0].sequences if name in attributes]
    for name in described:
        for attribute in set(attributes[name]):
            by_attribute.setdefault(attribute, []).append(name)
    if not by_attribute:
        return {}
    by_attribute = dict(sorted(by_attribute.items()))
    series = [
        (
            method.label,
            [mean_scores([method.sequences[name] for name in names])["J"] for names in by_attribute.values()],
        )
        for method in report.methods
    ]
    labels = [f"{attribute} ({len(names)})" for attribute, names in by_attribute.items()]
    missing = len(report.methods[0].sequences) - len(described)
    return {"chart": bar_chart(labels, series, (1000, 300)), "missing": missing}


def _worst(method: MethodReport, sequences: Sequence[MaskSequence]) -> list[tuple[str, str]]:
    """Return caption and JPEG in base64 of each worst frame."""
    images = []
    for worst in worst_frames(method, WORST_FRAMES):
        several = len(method.sequences[worst.sequence].objects) > 1
        name = f"{worst.sequence}, object {worst.object_id}" if several else worst.sequence
        caption = f"{name}, frame {worst.frame}: J {100 * worst.region_similarity:.1f}"
        images.append((caption, comparison_jpeg(method, sequences, worst)))
    return images


def as_facts(facts: Mapping[str, object]) -> dict[str, str]:
    """Convert facts to text of at most `MAX_CHARACTERS`."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    return {
        name: text
        if len(text) <= MAX_CHARACTERS
        else f"{text[:MAX_CHARACTERS]} … ({len(text)} characters; full text in report.json)"
        for name, text in texts.items()
    }
