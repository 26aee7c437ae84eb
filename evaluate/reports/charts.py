"""Charts as inline SVG: lines over time and grouped bars. Colours are CSS classes, so that the page's theme decides."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

SERIES_COLOURS = 8
"""Classes c0..c7 that a page has to define."""


def line_chart(series: Sequence[tuple[str, np.ndarray, np.ndarray]], x_label: str, size: tuple[int, int]) -> str:
    """Lines on axes from 0 to 1 (y) and over the range of x.

    series: label, x [N], y [N]; NaN in y is a gap
    size:   (width, height) in CSS pixels
    """
    width, height = size
    left, right, top, bottom = 44, 12, 12, 38
    across, down = width - left - right, height - top - bottom
    low = min(float(x.min()) for _, x, _ in series)
    high = max(max(float(x.max()) for _, x, _ in series), low + 1e-9)

    def place(x: float, y: float) -> str:
        return f"{left + (x - low) / (high - low) * across:.1f},{top + (1 - y) * down:.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(x_label)}">']
    for value in (0, 0.25, 0.5, 0.75, 1):
        at = top + (1 - value) * down
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = low + share * (high - low)
        parts.append(
            f'<text class="tick" x="{left + share * across:.1f}" y="{height - 20}" text-anchor="middle">'
            f"{value:.0f}</text>"
        )
    parts.append(
        f'<text class="axis" x="{left + across / 2:.1f}" y="{height - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for index, (label, x, y) in enumerate(series):
        for run in _without_gaps(y):
            points = " ".join(place(float(x[i]), float(y[i])) for i in run)
            parts.append(
                f'<polyline class="line c{index % SERIES_COLOURS}" points="{points}"><title>{escape(label)}</title>'
                "</polyline>"
            )
    return "".join([*parts, "</svg>"])


def bar_chart(groups: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], size: tuple[int, int]) -> str:
    """Bars from 0 to 1, one per group and series.

    series: label and a value per group, NaN for none
    """
    width, height = size
    left, right, top, bottom = 44, 12, 12, 30
    across, down = width - left - right, height - top - bottom
    step = across / max(len(groups), 1)
    bar = min(26.0, 0.78 * step / max(len(series), 1))
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for value in (0, 0.25, 0.5, 0.75, 1):
        at = top + (1 - value) * down
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    for group, name in enumerate(groups):
        middle = left + (group + 0.5) * step
        parts.append(
            f'<text class="tick" x="{middle:.1f}" y="{height - 10}" text-anchor="middle">{escape(name)}</text>'
        )
        for index, (label, values) in enumerate(series):
            if not np.isfinite(values[group]):
                continue
            tall = max(0.0, values[group]) * down
            x = middle + (index - len(series) / 2) * bar
            parts.append(
                f'<rect class="bar c{index % SERIES_COLOURS}" x="{x:.1f}" y="{top + down - tall:.1f}"'
                f' width="{bar - 2:.1f}" height="{tall:.1f}" rx="2">'
                f"<title>{escape(label)}, {escape(name)}: {100 * values[group]:.1f}</title></rect>"
            )
    return "".join([*parts, "</svg>"])


def _without_gaps(values: np.ndarray) -> list[list[int]]:
    """Runs of indices whose values are numbers."""
    runs: list[list[int]] = [[]]
    for index, value in enumerate(values):
        if np.isfinite(value):
            runs[-1].append(index)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
