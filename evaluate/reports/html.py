"""The report as one HTML page that needs nothing else: tables, charts, the worst frames, settings and hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.metrics.masks import ObjectScore
from corrflow.evaluate.reports.charts import SERIES_COLOURS, bar_chart, line_chart
from corrflow.evaluate.reports.pictures import comparison_jpeg, worst_frames
from corrflow.evaluate.reports.report import MaskReport, MethodReport, mean_scores, seconds_per_frame

WORST_FRAMES = 8
DRIFT_POINTS = 50
LONGEST_VALUE = 400

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #fff; --ink: #1c2024; --soft: #646b73; --rule: #e3e4e0;
  --heat: 37 99 168;
  --c0: #2563a8; --c1: #d9730d; --c2: #2f8f5b; --c3: #a83279; --c4: #7a6a00; --c5: #00838f; --c6: #8d5524;
  --c7: #6b7280 }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1c2024; --ink: #e8eaec; --soft: #9aa3ab;
  --rule: #30363c; --heat: 90 150 220;
  --c0: #6ca8ea; --c1: #f2a255; --c2: #6fc795; --c3: #df82bc; --c4: #cdbb4a; --c5: #4fc3cf; --c6: #c59a72;
  --c7: #a7b0ba } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px } h2 { font-size: 19px; margin: 44px 0 6px }
h3 { font-size: 15px; margin: 20px 0 8px } p { max-width: 68ch } .soft, p.lead { color: var(--soft) }
p.lead { margin: 0 0 24px }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px;
  border-top: 4px solid var(--own) }
.card b.big { font-size: 30px; line-height: 1.1; display: block; font-variant-numeric: tabular-nums }
.card dl { display: grid; grid-template-columns: 1fr auto; gap: 0 8px; margin: 8px 0 0; font-size: 13px }
.card dt { color: var(--soft) } .card dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums }
.name { font-weight: 600; overflow-wrap: anywhere }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 10px; background: var(--card) }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums }
th, td { padding: 5px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule) }
th:first-child, td:first-child { text-align: left } thead th { color: var(--soft); font-weight: 600 }
tbody tr:last-child td { border-bottom: 0 } tr.mean td { font-weight: 700; border-top: 2px solid var(--rule) }
td.first, th.first { border-left: 1px solid var(--rule) }
td.heat { background: rgb(var(--heat) / calc(var(--v) * 0.34)) }
figure { margin: 0 }
.chart { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px }
svg { display: block; width: 100%; height: auto } svg text { fill: var(--soft); font-size: 12px }
.grid { stroke: var(--rule) } .line { fill: none; stroke-width: 2; stroke-linejoin: round }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 14px }
.small svg text { font-size: 17px } .small .line { stroke-width: 3 }
figcaption { font-size: 13px; margin-bottom: 4px }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 12px; font-size: 13px }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px;
  border: 1px solid var(--rule) }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 14px }
.worst img { width: 100%; display: block; border-radius: 8px } .worst figcaption { margin: 5px 0 0 }
details { border: 1px solid var(--rule); border-radius: 10px; padding: 10px 16px; margin: 10px 0;
  background: var(--card) }
summary { cursor: pointer; font-weight: 600 } dl.facts { display: grid; grid-template-columns: max-content 1fr;
  gap: 2px 18px; font-size: 13px } dl.facts dt { color: var(--soft) }
dl.facts dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: 12px }
.note { border-left: 3px solid var(--c1); padding: 2px 12px; margin: 8px 0 }
""" + "".join(
    f".line.c{index} {{ stroke: var(--c{index}) }} .bar.c{index} {{ fill: var(--c{index}) }}\n"
    for index in range(SERIES_COLOURS)
)


def html_page(
    report: MaskReport, sequences: Sequence[MaskSequence], attributes: Mapping[str, Sequence[str]] | None = None
) -> str:
    """The page of a report.

    sequences:  those of the report, for the pictures
    attributes: of sequences by name; a score for each is drawn where there are any
    """
    parts = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="lead">{_summary(report)}</p>',
        _cards(report),
        *(
            f'<p class="note">{escape(method.label)}: {escape(note)}</p>'
            for method in report.methods
            for note in method.notes
        ),
        "<h2>Sequences and objects</h2>",
        '<p class="soft">J (region), F (contour) and their mean in percent, over the scored frames of each object.'
        " The deeper the colour, the higher.</p>",
        _table(report),
        "<h2>J over time</h2>",
        '<p class="soft">Mean J of all objects as a sequence goes on: how much is lost from its first frame to its'
        " last.</p>",
        _legend(report),
        f'<div class="chart">{_drift(report)}</div>',
        "<h3>Each sequence</h3>",
        f'<div class="small">{_drift_of_sequences(report)}</div>',
        *_attribute_section(report, attributes or {}),
        *_worst_section(report, sequences),
        "<h2>Settings and hashes</h2>",
        *(_facts(method) for method in report.methods),
        _details(
            "Program", {**report.program, "decay": "official" if report.official_decay else "right past 256 frames"}
        ),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _summary(report: MaskReport) -> str:
    sequences = report.methods[0].sequences.values()
    objects = sum(len(item.objects) for item in sequences)
    frames = sum(len(score.frames) for item in sequences for score in item.objects.values())
    return escape(f"{len(sequences)} sequences, {objects} objects, {frames} scored masks; means are over objects.")


def _objects(method: MethodReport) -> list[ObjectScore]:
    return [score for sequence in method.sequences.values() for score in sequence.objects.values()]


def _cards(report: MaskReport) -> str:
    cards = []
    for index, method in enumerate(report.methods):
        means = mean_scores(method.sequences.values())
        objects = _objects(method)
        seconds = seconds_per_frame(method.sequences.values())
        rows = {
            "J mean": f"{100 * means['J']:.1f}",
            "J recall": f"{100 * np.mean([score.region.recall for score in objects]):.1f}",
            "J decay": f"{100 * np.mean([score.region.decay for score in objects]):.1f}",
            "F mean": f"{100 * means['F']:.1f}",
            "F recall": f"{100 * np.mean([score.contour.recall for score in objects]):.1f}",
            "F decay": f"{100 * np.mean([score.contour.decay for score in objects]):.1f}",
            "seconds a frame": "–" if seconds is None else f"{seconds:.3f}",  # noqa: RUF001
        }
        facts = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items())
        cards.append(
            f'<div class="card" style="--own: var(--c{index % SERIES_COLOURS})"><span class="name">'
            f'{escape(method.label)}</span><b class="big">{100 * means["J&F"]:.1f}</b><span class="soft">J&amp;F</span>'
            f"<dl>{facts}</dl></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _table(report: MaskReport) -> str:
    head = "".join(f'<th class="first" colspan="3">{escape(method.label)}</th>' for method in report.methods)
    measures = '<th class="first">J</th><th>F</th><th>J&amp;F</th>' * len(report.methods)
    rows = []
    for name, sequence in report.methods[0].sequences.items():
        for object_id in sequence.objects:
            label = name if len(sequence.objects) == 1 else f"{name} · {object_id}"
            cells = ""
            for method in report.methods:
                score = method.sequences[name].objects[object_id]
                cells += _cells(score.region.mean, score.contour.mean)
            rows.append(f"<tr><td>{escape(label)}</td>{cells}</tr>")
    cells = ""
    for method in report.methods:
        means = mean_scores(method.sequences.values())
        cells += _cells(means["J"], means["F"])
    rows.append(f'<tr class="mean"><td>mean over objects</td>{cells}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr><tr><th>sequence</th>{measures}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cells(region: float, contour: float) -> str:
    both = (region + contour) / 2
    return (
        f'<td class="first">{100 * region:.1f}</td><td>{100 * contour:.1f}</td>'
        f'<td class="heat" style="--v: {both:.2f}">{100 * both:.1f}</td>'
    )


def _legend(report: MaskReport) -> str:
    items = "".join(
        f'<span><i style="background: var(--c{index % SERIES_COLOURS})"></i>{escape(method.label)}</span>'
        for index, method in enumerate(report.methods)
    )
    return f'<div class="legend">{items}</div>'


def drift(scores: Sequence[ObjectScore], points: int = DRIFT_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Mean J of objects at `points` places from the first scored frame (0) to the last (100 percent)."""
    places = np.linspace(0, 1, points)
    curves = [np.interp(places, np.linspace(0, 1, len(score.frames)), score.region_similarity) for score in scores]
    return 100 * places, np.mean(curves, axis=0)


def _drift(report: MaskReport) -> str:
    series = [(method.label, *drift(_objects(method))) for method in report.methods]
    return line_chart(series, "percent of the sequence", (1000, 320))


def _drift_of_sequences(report: MaskReport) -> str:
    figures = []
    for name in report.methods[0].sequences:
        series = []
        for method in report.methods:
            objects = list(method.sequences[name].objects.values())
            frames = np.unique(np.concatenate([score.frames for score in objects]))
            of_frames = np.full((len(objects), len(frames)), np.nan)
            for row, score in zip(of_frames, objects, strict=True):
                row[np.searchsorted(frames, score.frames)] = score.region_similarity
            series.append((method.label, frames, np.nanmean(of_frames, axis=0)))
        figures.append(
            f'<figure class="chart"><figcaption class="name">{escape(name)}</figcaption>'
            f"{line_chart(series, 'frame', (420, 230))}</figure>"
        )
    return "".join(figures)


def _attribute_section(report: MaskReport, attributes: Mapping[str, Sequence[str]]) -> list[str]:
    shown = [name for name in report.methods[0].sequences if name in attributes]
    groups = sorted({attribute for name in shown for attribute in attributes[name]})
    if not groups:
        return []
    series = []
    for method in report.methods:
        values = []
        for attribute in groups:
            having = [method.sequences[name] for name in shown if attribute in attributes[name]]
            values.append(mean_scores(having)["J"])
        series.append((method.label, values))
    counts = [sum(attribute in attributes[name] for name in shown) for attribute in groups]
    labels = [f"{attribute} ({count})" for attribute, count in zip(groups, counts, strict=True)]
    missing = len(report.methods[0].sequences) - len(shown)
    without = f" {missing} sequences have none and are left out." if missing else ""
    return [
        "<h2>Score by attribute</h2>",
        f'<p class="soft">Mean J of the objects of all sequences with an attribute; their number in brackets.{without}'
        "</p>",
        _legend(report),
        f'<div class="chart">{bar_chart(labels, series, (1000, 300))}</div>',
    ]


def _worst_section(report: MaskReport, sequences: Sequence[MaskSequence]) -> list[str]:
    parts = []
    for method in report.methods:
        if method.masks is None:
            continue
        figures = []
        for worst in worst_frames(method, WORST_FRAMES):
            name = worst.sequence
            if len(method.sequences[name].objects) > 1:
                name += f", object {worst.object_id}"
            caption = f"{name}, frame {worst.frame}: J {100 * worst.region_similarity:.1f}"
            figures.append(
                f'<figure><img alt="{escape(caption)}" src="data:image/jpeg;base64,'
                f'{comparison_jpeg(method, sequences, worst)}"><figcaption>{escape(caption)}</figcaption></figure>'
            )
        parts.append(f'<h3>{escape(method.label)}</h3><div class="worst">{"".join(figures)}</div>')
    if not parts:
        return []
    legend = "".join(
        f'<span><i style="background: {colour}"></i>{name}</span>'
        for colour, name in (
            ("#6ec896", "found"),
            ("#0072d6", "missed"),
            ("#f06e14", "wrong"),
            ("#fff", "outline: truth"),
        )
    )
    return [
        "<h2>Worst frames</h2>",
        '<p class="soft">For each object the frame with its lowest J, the worst objects first.</p>',
        f'<div class="legend">{legend}</div>',
        *parts,
    ]


def _facts(method: MethodReport) -> str:
    facts = {name: value for name, value in method.description.items() if name not in ("settings", "tracking")}
    settings = method.description.get("settings") or {}
    reused = sum(score.reused for score in method.sequences.values())
    return _details(
        method.label,
        {
            **({"protocol": method.protocol} if method.protocol else {}),
            **facts,
            **settings,
            **({"results of an earlier run": f"{reused} of {len(method.sequences)} sequences"} if reused else {}),
        },
    )


def _details(title: str, facts: Mapping[str, object]) -> str:
    rows = []
    for name, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) > LONGEST_VALUE:
            text = f"{text[:LONGEST_VALUE]} … ({len(text)} characters; whole in report.json)"
        rows.append(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>")
    return f'<details><summary>{escape(title)}</summary><dl class="facts">{"".join(rows)}</dl></details>'
