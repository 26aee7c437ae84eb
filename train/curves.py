"""Curves over steps as PNG, for whoever has no TensorBoard at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from corrflow.atomic_files import whole_file

POINTS = 500
"""Most points of a line; more are averaged."""


def draw_curves(
    path: Path, panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], x_label: str
) -> None:
    """Write a PNG with one panel above the other; panels: {label of y: {name of a line: (x, y)}}."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2 * len(panels)), layout="constrained")
    for axes, (label, lines) in zip(np.ravel(figure.subplots(len(panels), sharex=True)), panels.items(), strict=True):
        for name, (x, y) in lines.items():
            axes.plot(x, y, label=name, marker="." if len(x) < 40 else None)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
        axes.set_xlabel(x_label)
    with whole_file(path) as part:
        figure.savefig(part, dpi=110, format="png")


def draw_log(log: Path, path: Path) -> None:
    """The losses of a run's log and its pace, as PNG; nothing where no step is in it."""
    columns: dict[str, list[float]] = {"step": [], "forward": [], "cycle": [], "seconds": []}
    with log.open() as file:
        for line in file:
            try:
                entry = json.loads(line)
                values = [float(entry[name]) for name in columns]
            except (ValueError, KeyError):
                continue  # the line being written at a kill
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    if not columns["step"]:
        return
    step, forward, cycle, seconds = (averaged(column) for column in columns.values())
    draw_curves(
        path,
        {
            "loss": {"forward": (step, forward), "cycle": (step, cycle)},
            "seconds": {"of a step": (step, seconds)},
        },
        "step",
    )


def averaged(values: Sequence[float]) -> list[float]:
    """At most `POINTS` values, each the mean of neighbours."""
    parts = np.array_split(np.asarray(values, np.float64), min(POINTS, len(values)))
    return [float(part.mean()) for part in parts]
