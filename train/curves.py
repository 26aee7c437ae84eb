"""Plots of curves over steps, as PNG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from corrflow.atomic_files import AtomicFile

POINTS = 500
"""Largest number of points of a line; more points are averaged."""


def plot_curves(
    path: Path, panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], x_label: str
) -> None:
    """Write a PNG with panels below each other; panels: {y label: {name of a line: (x, y)}}."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2 * len(panels)), layout="constrained")
    for axes, (label, lines) in zip(np.ravel(figure.subplots(len(panels), sharex=True)), panels.items(), strict=True):
        for name, (x, y) in lines.items():
            axes.plot(x, y, label=name, marker="." if len(x) < 40 else None)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
        axes.set_xlabel(x_label)
    with AtomicFile(path) as part:
        figure.savefig(part, dpi=110, format="png")


def plot_log(log: Path, path: Path) -> None:
    """Plot losses and step durations of a run's log, unless the log is empty."""
    columns: dict[str, list[float]] = {}
    with log.open() as file:
        for line in file:
            try:
                values = {name: float(value) for name, value in json.loads(line).items()}
            except (ValueError, AttributeError):
                continue  # an incomplete line of a killed run
            if values.keys() != (columns.keys() or values.keys()) or not {"step", "seconds"} <= values.keys():
                continue
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
    if not columns:
        return
    step, seconds = (downsample(columns.pop(name)) for name in ("step", "seconds"))
    plot_curves(
        path,
        {
            "loss": {name: (step, downsample(values)) for name, values in columns.items()},
            "seconds": {"per step": (step, seconds)},
        },
        "step",
    )


def downsample(values: Sequence[float]) -> list[float]:
    """Average neighbouring values, down to at most `POINTS` values."""
    parts = np.array_split(np.asarray(values, np.float64), min(POINTS, len(values)))
    return [float(part.mean()) for part in parts]
