"""Geometry of SVG charts, lines, grouped bars and points, which templates/charts.html.j2 draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

SERIES_COLOURS = 8
"""Number of colours: classes c0 to c7, which the page has to define."""


def line_chart(
    series: Sequence[tuple[str, np.ndarray, np.ndarray]],
    x_label: str,
    size: tuple[int, int],
    verticals: Sequence[float] = (),
) -> dict[str, Any]:
    """Lay out lines over the range of x, with y from 0 to 1.

    series:    label, x [N], y [N]; NaN in y is a gap
    size:      (width, height) in CSS pixels
    verticals: x of vertical lines; those out of the range are left out
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
    marked = [round(left + (x - low) / (high - low) * across, 1) for x in verticals if low <= x <= high]
    texts = {"x_label": x_label, "x_ticks": ticks, "x_ticks_at": size[1] - 20}
    return chart | texts | {"lines": lines, "verticals": marked}


def reliability_chart(
    series: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], x_label: str, size: tuple[int, int]
) -> dict[str, Any]:
    """Lay out reliability diagrams: x and y from 0 to 1, with the diagonal of perfect calibration.

    series: label, confidence [B], fraction [B] and count [B] of each bin; the area of a dot follows the count
    """
    chart, down = _axes(size, bottom=50)
    left, across = chart["left"], chart["right"] - chart["left"]
    lines, dots = [], []
    for index, (label, confidences, fractions, counts) in enumerate(series):
        filled = counts > 0
        places = [
            (round(left + x * across, 1), round(_TOP + (1 - y) * down, 1))
            for x, y in zip(confidences[filled].tolist(), fractions[filled].tolist(), strict=True)
        ]
        colour = index % SERIES_COLOURS
        lines.append((colour, " ".join(f"{x},{y}" for x, y in places)))
        rows = zip(places, confidences[filled], fractions[filled], counts[filled], strict=True)
        for (x, y), confidence, fraction, count in rows:
            title = f"{label}: {100 * fraction:.1f} % right at a confidence of {confidence:.2f} ({count} points)"
            dots.append((colour, title, x, y, round(2.5 + 11 * math.sqrt(count / counts.sum()), 1)))
    ticks = [(round(left + share * across, 1), f"{share:g}") for share in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    ideal = f"{left},{_TOP + down} {left + across},{_TOP}"
    texts = {"x_label": x_label, "x_ticks": ticks, "x_ticks_at": size[1] - 28}
    return chart | texts | {"lines": lines, "dots": dots, "ideal": ideal}


def bar_chart(
    groups: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], size: tuple[int, int]
) -> dict[str, Any]:
    """Lay out bars from 0 to 1, one per group and series. Names of groups are slanted where they need more room.

    series: label and one value per group; NaN for no bar
    """
    room = (size[0] - 56) / max(len(groups), 1)
    longest = 6.5 * max(map(len, groups), default=0)
    is_slanted = longest > room
    bottom = min(30 + math.ceil(0.6 * longest), size[1] // 2) if is_slanted else 30
    chart, down = _axes(size, bottom)
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
    ticks_at = size[1] - (bottom - 16 if is_slanted else 10)
    return chart | {"x_ticks": ticks, "x_ticks_at": ticks_at, "is_slanted": is_slanted, "bars": bars}


def scatter_chart(
    series: Sequence[tuple[str, Sequence[tuple[str, float, float]]]], axes: tuple[str, str], size: tuple[int, int]
) -> dict[str, Any]:
    """Lay out named points, and for each series the steps along the points that no other one beats.

    series: label, and (name, x, y) of its points; less x is better, and more y. Names are drawn at the first series.
    axes:   labels of x, which begins at 0, and of y, whose range is that of the points
    size:   (width, height) in CSS pixels
    """
    points = [point for _, listed in series for point in listed]
    x_ticks = _round_ticks(0.0, max(x for _, x, _ in points))
    y_ticks = _round_ticks(min(y for *_, y in points), max(y for *_, y in points))
    chart, down = _axes(size, bottom=38, ticks=y_ticks)
    left, across = chart["left"], chart["right"] - chart["left"]

    def place(x: float, y: float) -> tuple[float, float]:
        height = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(left + x / x_ticks[-1] * across, 1), round(_TOP + (1 - height) * down, 1)

    marks, steps, names = [], [], []
    for index, (label, listed) in enumerate(series):
        colour = index % SERIES_COLOURS
        path: list[tuple[float, float]] = []
        best = -math.inf
        for name, x, y in sorted(listed, key=lambda point: (point[1], -point[2])):
            at = place(x, y)
            marks.append((colour, f"{label}, {name}: {y:.1f} at {x:.0f}", *at))
            if y > best:
                path += [(at[0], path[-1][1]), at] if path else [at]
                best = y
        path.append((chart["right"], path[-1][1]))
        steps.append((colour, label, " ".join(f"{x},{y}" for x, y in path)))
    for name, x, y in sorted(series[0][1], key=lambda point: -point[2]):
        names.append(_label(name, *place(x, y), chart["right"], names))
    return chart | {
        "x_label": axes[0],
        "y_label": axes[1],
        "x_ticks": [(place(value, y_ticks[0])[0], f"{value:g}") for value in x_ticks],
        "x_ticks_at": size[1] - 20,
        "marks": marks,
        "steps": steps,
        "names": names,
    }


def _label(
    name: str, x: float, y: float, right: float, others: Sequence[tuple[str, float, float, str]]
) -> tuple[str, float, float, str]:
    """Return text, x, y and anchor of a point's name, below the names that it would be over."""
    width = 7.0 * len(name)
    anchor, x, y = ("end", x - 8, y - 6) if x + width > right else ("start", x + 8, y - 6)
    begin = x - width if anchor == "end" else x
    for other, other_x, other_y, other_anchor in sorted(others, key=lambda item: item[2]):
        other_width = 7.0 * len(other)
        other_begin = other_x - other_width if other_anchor == "end" else other_x
        if begin < other_begin + other_width and other_begin < begin + width and abs(y - other_y) < 14:
            y = other_y + 14
    return name, round(x, 1), round(y, 1), anchor


def _round_ticks(low: float, high: float) -> list[float]:
    """Return four to eleven round numbers at equal distances, from at most `low` to at least `high`."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    step = next(power * part for part in (0.1, 0.2, 0.5, 1.0, 2.0) if span / (power * part) <= 8)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


_TOP = 12


def _axes(
    size: tuple[int, int], bottom: int, ticks: Sequence[float] = (0, 0.25, 0.5, 0.75, 1)
) -> tuple[dict[str, Any], int]:
    """Return the frame and y axis of a chart, from the first tick to the last, and the height of the y axis."""
    width, height = size
    down = height - _TOP - bottom
    span = ticks[-1] - ticks[0]
    places = [(round(_TOP + (ticks[-1] - value) / span * down, 1), f"{value:g}") for value in ticks]
    return {"width": width, "height": height, "left": 44, "right": width - 12, "y_ticks": places}, down
