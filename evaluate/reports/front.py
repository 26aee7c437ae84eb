"""Accuracy of models against their price: table, JSON and plot, with the models that others beat in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from corrflow.evaluate.reports.charts import scatter_chart
from corrflow.evaluate.reports.result_store import program
from corrflow.html_template import render_html

FRONT_VERSION = 1

MEASURES = ("J&F", "worst third")
"""Accuracies that are compared with the price, each alone."""

_TEMPLATE = Path(__file__).with_name("templates") / "front.svg.j2"


@dataclass(frozen=True)
class PricedModel:
    """Accuracy and price of one model.

    scores:      0..1, means over data sets; the names are `MEASURES`
    cpu_seconds: per frame, with one thread and one object
    sha256:      hash of the model
    """

    label: str
    scores: dict[str, float]
    cpu_seconds: float
    sha256: str


def beaten_by(model: PricedModel, models: Sequence[PricedModel], measure: str) -> list[str]:
    """Return the labels of the models that are no worse in both accuracy and price, and better in one of them."""
    score, price = model.scores[measure], model.cpu_seconds
    return [
        other.label
        for other in models
        if other.scores[measure] >= score and other.cpu_seconds <= price
        if (other.scores[measure], other.cpu_seconds) != (score, price)
    ]


def front_table(models: Sequence[PricedModel], title: str) -> Table:
    """Build the table, cheapest model first; prices are compared with the first given model."""
    table = Table(title=title)
    table.add_column("model", no_wrap=True)
    for name in (*MEASURES, "CPU ms", f"of {models[0].label}"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for name in MEASURES:
        table.add_column(f"{name}: beaten by", no_wrap=True)
    for model in sorted(models, key=lambda model: model.cpu_seconds):
        table.add_row(
            Text(model.label),
            *(f"{100 * model.scores[name]:.1f}" for name in MEASURES),
            f"{1000 * model.cpu_seconds:.0f}",
            f"{model.cpu_seconds / models[0].cpu_seconds:.2f}",
            *(Text(", ".join(beaten_by(model, models, name))) for name in MEASURES),
        )
    return table


def front_as_json(models: Sequence[PricedModel], facts: dict[str, Any]) -> dict[str, Any]:
    """Convert the models to JSON values. facts: further values, such as the data sets."""
    return {
        "version": FRONT_VERSION,
        "program": program(),
        **facts,
        "models": [
            {
                "label": model.label,
                "sha256": model.sha256,
                **model.scores,
                "cpu_seconds_per_frame": model.cpu_seconds,
                "beaten_by": {name: beaten_by(model, models, name) for name in MEASURES},
            }
            for model in models
        ],
    }


def front_svg(models: Sequence[PricedModel], title: str) -> str:
    """Draw the accuracy of models against their price as SVG."""
    series = [
        (
            {"J&F": "mean J&F", "worst third": "worst third"}[name],
            [(model.label, 1000 * model.cpu_seconds, 100 * model.scores[name]) for model in models],
        )
        for name in MEASURES
    ]
    chart = scatter_chart(series, ("CPU ms per frame, one thread, one object", "J&F, percent"), (820, 460))
    return render_html(_TEMPLATE, title=title, chart=chart)
