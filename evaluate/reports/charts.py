"""Geometry of SVG charts, lines and grouped bars, which templates/charts.html.j2 draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SERIES_COLOURS = 8
"""Number of colours: classes c0 to c7, which the page has to define."""


def line_chart(
    series: Sequence[tuple[str, np.ndarray, np.ndarray]], x_label: str, size: tuple[int, int]
) -> dict[str, Any]:
    """Lay out lines over the range of x, with y from 0 to 1.

    series: label, x [N], y [N]; NaN in y is a gap
    size:   (width, height) in CSS pixels
    """
    chart, down = _axes(size, bottom=38)
    left, across = chart["left"], chart["right"] - chart["left"]
    low = min(float(x.min()) for _, x, _ in series)
    high = max(max(float(x.max()) for _, x, _ in series), low + 1e-9)
    lines = []
    for index, (label, x, y) in enumerate(series):
        positions = np.stack([left + (x - low) / (high - low) * across, _TOP + (1 - y) * down], axis=1)
        for run in np.ma.clump_unmasked(np.ma.masked_invalid(y)):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions[run])
            lines.append((index % SERIES_COLOURS, label, points))
    shares = (0, 0.25, 0.5, 0.75, 1)
    ticks = [(round(left + share * across, 1), f"{low + share * (high - low):.0f}") for share in shares]
    return chart | {"x_label": x_label, "x_ticks": ticks, "x_ticks_at": size[1] - 20, "lines": lines}


def bar_chart(
    groups: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], size: tuple[int, int]
) -> dict[str, Any]:
    """Lay out bars from 0 to 1, one per group and series.

    series: label and one value per group; NaN for no bar
    """
    chart, down = _axes(size, bottom=30)
    step = (chart["right"] - chart["left"]) / max(len(groups), 1)
    bar = min(26.0, 0.78 * step / max(len(series), 1))
    middles = [chart["left"] + (group + 0.5) * step for group in range(len(groups))]
    bars = []
    for index, (label, values) in enumerate(series):
        for name, middle, value in zip(groups, middles, values, strict=True):
            if np.isfinite(value):
                x, height = middle + (index - len(series) / 2) * bar, max(0.0, value) * down
                box = (round(float(number), 1) for number in (x, _TOP + down - height, bar - 2, height))
                bars.append((index % SERIES_COLOURS, f"{label}, {name}: {100 * value:.1f}", *box))
    ticks = [(round(middle, 1), name) for middle, name in zip(middles, groups, strict=True)]
    return chart | {"x_ticks": ticks, "x_ticks_at": size[1] - 10, "bars": bars}


_TOP = 12


def _axes(size: tuple[int, int], bottom: int) -> tuple[dict[str, Any], int]:
    """Return the frame and y axis of a chart, and the height of the y axis."""
    width, height = size
    down = height - _TOP - bottom
    ticks = [(round(_TOP + (1 - value) * down, 1), f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]
    return {"width": width, "height": height, "left": 44, "right": width - 12, "y_ticks": ticks}, down
