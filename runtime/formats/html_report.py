"""report.html of one video: confidence over time, the weakest frames, and which ones to label by hand."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import cv2
import numpy as np

from corrflow.atomic_files import prepare_place, save_whole
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import Frame, ObjectResult, Tracks
from corrflow.runtime.video.overlay import davis_palette, draw_overlay

MOST_SPANS = 240
"""Spans of time that the strip has at most; memory does not grow with the video beyond their pictures."""

DOUBTFUL = 0.7
"""A frame is worth a label where an object's confidence falls below this, or where an object is lost."""

_THUMBNAIL_WIDTH = 320  # pixels
_WEAKEST, _SUGGESTED = 12, 5


@dataclass
class _Span:
    """Some successive frames: the weakest of them, and each object's lowest confidence (None: not in sight)."""

    first: int
    weakness: float
    index: int
    time: float
    label: str
    why: str
    thumbnail: bytes
    lowest: dict[int, float | None] = field(default_factory=dict)


class ReportSink(Sink):
    """One HTML file that needs nothing else."""

    def __init__(self, path: str | Path, title: str) -> None:
        """Raises InputError where the path cannot be written to."""
        self._path, self._title = Path(path), title
        prepare_place(self._path)
        self._spans: list[_Span] = []
        self._length = 1  # frames of a span
        self._names: dict[int, str] = {}
        self._visible: set[int] = set()
        self._frames = 0

    def write(self, frame: Frame, tracks: Tracks) -> None:
        lowest: dict[int, float | None] = {}
        confidence, why, label = 1.0, "all objects are sure", ""
        for track in tracks.objects:
            self._names.setdefault(track.id, track.name or f"object {track.id}")
            lowest[track.id] = float(track.confidence) if track.visible else None
            called = self._names[track.id]
            before = why
            if track.visible and track.confidence < confidence:
                confidence = float(track.confidence)
                why = f"{called}: confidence {confidence:.2f}{_least_sure(track)}"
            elif not track.visible and track.id in self._visible:
                confidence, why = 0.0, f"{called}: out of sight from here"
            if why != before:
                label = f"{self._title}{_label_file(track, frame)}"
        self._visible = {track.id for track in tracks.objects if track.visible}
        span = self._spans[-1] if self._spans and self._frames - self._spans[-1].first < self._length else None
        self._frames += 1
        if span is None or confidence < span.weakness:
            thumbnail = _thumbnail(frame, tracks)
            own = _Span(frame.index, confidence, frame.index, frame.time, label, why, thumbnail, lowest)
            if span is None:
                self._spans.append(own)
            else:
                self._spans[-1] = _joined(span, own)
        else:
            span.lowest = _lower(span.lowest, lowest)
        if len(self._spans) > MOST_SPANS:
            pairs = zip(self._spans[::2], [*self._spans[1::2], None], strict=False)
            self._spans = [one if other is None else _joined(one, other) for one, other in pairs]
            self._length *= 2

    def close(self) -> None:
        if self._frames:
            save_whole(self._path, self._page().encode())

    def suggested(self) -> list[int]:
        """Frames worth a manual label, the weakest first: doubtful ones, apart from each other."""
        return [span.index for span in self._suggested()]

    def _suggested(self) -> list[_Span]:
        weakest = self._weakest(max(5, self._frames // 12), _SUGGESTED)
        return [span for span in weakest if span.weakness < DOUBTFUL]

    def _weakest(self, apart: int, most: int) -> list[_Span]:
        """Spans whose weakest frames are so many frames apart, the weakest first."""
        chosen: list[_Span] = []
        for span in sorted(self._spans, key=lambda span: (span.weakness, span.index)):
            if len(chosen) < most and all(abs(span.index - other.index) >= apart for other in chosen):
                chosen.append(span)
        return chosen

    def _page(self) -> str:
        title = escape(self._title)
        suggested = self._suggested()
        rows = "".join(
            f"<tr><td>{span.index}</td><td>{span.time:.2f} s</td><td>{escape(span.why)}</td>"
            f"<td><code>{escape(span.label)}</code></td></tr>"
            for span in suggested
        )
        advice = (
            f"<table><tr><th>frame</th><th>time</th><th>why</th><th>label it in</th></tr>{rows}</table>"
            f"{_how_to_label(suggested)}"
            "<p>Add these to the folder of labels and give the same command again: only what they change is recomputed."
            if suggested
            else f"<p>None stands out: no object falls below a confidence of {DOUBTFUL}, and none is lost."
        )
        pictures = "".join(
            f'<figure><img alt="frame {span.index}" src="data:image/jpeg;base64,'
            f'{base64.b64encode(span.thumbnail).decode()}"><figcaption>frame {span.index}, {span.time:.2f} s<br>'
            f"{escape(span.why)}</figcaption></figure>"
            for span in self._weakest(max(1, self._frames // 40), _WEAKEST)
        )
        strips = "".join(self._strip(identity) for identity in sorted(self._names))
        low = '<i style="background:#d0572f"></i>'
        strips += (
            f"<div class=strip><span></span><p class=axis>frame 0<b>frame {self._frames - 1}</b></p></div>"
            f"<p>A full bar is a confidence of 1; {low}below {DOUBTFUL}; no bar: not in sight."
        )
        objects = "1 object" if len(self._names) == 1 else f"{len(self._names)} objects"
        return (
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><title>{title}</title>\n<style>{_STYLE}</style>\n'
            f"<h1>{title}</h1><p>{self._frames} frames, {objects}. Confidence is how decided the "
            "labels are, from 0 to 1; a decided tracker can still be wrong.\n"
            f"<h2>Frames worth a manual label</h2>{advice}\n<h2>Confidence over time</h2>{strips}\n"
            f"<h2>Weakest frames</h2><div class=pictures>{pictures}</div></html>\n"
        )

    def _strip(self, identity: int) -> str:
        """One bar for each span, as high as the object's lowest confidence in it; gaps where it is not in sight."""
        red, green, blue = davis_palette()[identity].tolist()
        bars = []
        for number, span in enumerate(self._spans):
            height = span.lowest.get(identity)
            if height is not None:
                kind = ' class="low"' if height < DOUBTFUL else ""
                bars.append(
                    f'<rect{kind} x="{number}" y="{1 - height:.3f}" width="1.02" height="{height:.3f}">'
                    f"<title>frame {span.first}: {height:.2f}</title></rect>"
                )
        return (
            f'<div class=strip><span><i style="background:rgb({red},{green},{blue})"></i>'
            f"{escape(self._names[identity])}</span>"
            f'<svg viewBox="0 0 {len(self._spans)} 1" preserveAspectRatio="none">{"".join(bars)}</svg></div>'
        )


_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;"
    "margin:2em auto;padding:0 1em}"
    "h2{font-size:1.1em;margin-top:2em}td,th{padding:.2em 1em .2em 0;text-align:left;vertical-align:top}"
    "td:nth-child(2){white-space:nowrap}code{overflow-wrap:anywhere}"
    ".strip{display:flex;align-items:center;gap:1em;margin:.4em 0}.strip span{width:9em;overflow-wrap:anywhere}"
    ".axis{flex:1;display:flex;justify-content:space-between;margin:0;font-size:.85em}.axis b{font-weight:inherit}"
    "i{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.5em}"
    ".strip svg{flex:1;height:48px;background:color-mix(in srgb,currentColor 8%,transparent)}"
    ".strip rect{fill:#3b8f6a}.strip rect.low{fill:#d0572f}"
    ".pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:1em}"
    "figure{margin:0}img{width:100%;border-radius:4px}figcaption{font-size:.85em}"
    "@media(max-width:600px){body{margin:1em auto}td,th{padding-right:.6em}.strip{flex-wrap:wrap;gap:0 1em}"
    ".strip span{width:100%}.pictures{grid-template-columns:1fr 1fr;gap:.6em}}"
)


def _least_sure(track: ObjectResult) -> str:
    """Which of several points it is that pulls the object's confidence down."""
    if track.point_confidence is None or len(track.point_names) < 2:
        return ""
    least = int(np.argmin(track.point_confidence))
    return f", least {track.point_names[least]} with {track.point_confidence[least]:.2f}"


def _label_file(track: ObjectResult, frame: Frame) -> str:
    """What follows the video's name in the path of a label that will be taken for that object."""
    if track.points is not None:
        return ".csv"
    if (
        track.name
        and not track.name.isdecimal()
        and not track.name.startswith(".")
        and not set(track.name) & set("/\\")
    ):
        return f"/{track.name}/{frame.name}.png"  # also of those whose files give names and no numbers
    return f"/{frame.name}.png" if track.id == 1 else f"/{track.id}/{frame.name}.png"


def _how_to_label(spans: Sequence[_Span]) -> str:
    files = {Path(span.label).suffix for span in spans}
    masks = "<p>A .png is as large as the frame, white where the object is and black elsewhere."
    points = (
        "<p>A .csv has the columns <code>frame,name,x,y</code>; lines of one without <code>frame</code> are of frame 0."
    )
    return masks * (".png" in files) + points * (".csv" in files)


def _thumbnail(frame: Frame, tracks: Tracks) -> bytes:
    """JPEG of the frame with its tracks."""
    picture = draw_overlay(frame.image, tracks)
    height, width = picture.shape[:2]
    if width > _THUMBNAIL_WIDTH:
        size = _THUMBNAIL_WIDTH, max(1, round(height * _THUMBNAIL_WIDTH / width))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def _joined(one: _Span, other: _Span) -> _Span:
    weaker = other if other.weakness < one.weakness else one
    own = (weaker.weakness, weaker.index, weaker.time, weaker.label, weaker.why, weaker.thumbnail)
    return _Span(one.first, *own, _lower(one.lowest, other.lowest))


def _lower(one: dict[int, float | None], other: dict[int, float | None]) -> dict[int, float | None]:
    merged = dict(one)
    for identity, confidence in other.items():
        known = merged.get(identity)
        merged[identity] = confidence if known is None else known if confidence is None else min(known, confidence)
    return merged
