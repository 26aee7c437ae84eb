"""report.html of one video: confidence over time, the weakest frames, and which ones to label by hand."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from corrflow.atomic_files import prepare_place, save_whole
from corrflow.html_template import render_html
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult, ObjectResult
from corrflow.runtime.video.overlay import davis_palette, draw_overlay

MOST_SPANS = 240
"""Spans of time that the strip has at most; memory does not grow with the video beyond their pictures."""

DOUBTFUL = 0.7
"""A frame is worth a label where an object's confidence falls below this, or where an object is lost."""

_THUMBNAIL_WIDTH = 320  # pixels
_WEAKEST, _SUGGESTED = 12, 5
_TEMPLATE = Path(__file__).with_name("templates") / "video_report.html.j2"


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

    def write(self, result: FrameResult) -> None:
        lowest: dict[int, float | None] = {}
        confidence, why, label = 1.0, "all objects are sure", ""
        for track in result.objects:
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
                label = f"{self._title}{_label_file(track, result)}"
        self._visible = {track.id for track in result.objects if track.visible}
        span = self._spans[-1] if self._spans and self._frames - self._spans[-1].first < self._length else None
        self._frames += 1
        if span is None or confidence < span.weakness:
            thumbnail = _thumbnail(result)
            own = _Span(
                result.frame.index, confidence, result.frame.index, result.frame.time, label, why, thumbnail, lowest
            )
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
        suggested = self._suggested()
        return render_html(
            _TEMPLATE,
            title=self._title,
            frames=self._frames,
            spans=len(self._spans),
            doubtful=DOUBTFUL,
            suggested=suggested,
            label_files={Path(span.label).suffix for span in suggested},
            strips=[self._strip(identity) for identity in sorted(self._names)],
            weakest=self._weakest(max(1, self._frames // 40), _WEAKEST),
            b64encode=base64.b64encode,
        )

    def _strip(self, identity: int) -> tuple[str, list[int], Iterator[tuple[int, int, float]]]:
        """Name, colour and one bar for each span, as high as the object's lowest confidence in it.

        There is no bar where the object is not in sight.
        """
        heights = ((number, span.first, span.lowest.get(identity)) for number, span in enumerate(self._spans))
        bars = ((number, first, height) for number, first, height in heights if height is not None)
        return self._names[identity], davis_palette()[identity].tolist(), bars


def _least_sure(track: ObjectResult) -> str:
    """Which of several points it is that pulls the object's confidence down."""
    if track.point_confidence is None or len(track.point_names) < 2:
        return ""
    least = int(np.argmin(track.point_confidence))
    return f", least {track.point_names[least]} with {track.point_confidence[least]:.2f}"


def _label_file(track: ObjectResult, result: FrameResult) -> str:
    """What follows the video's name in the path of a label that will be taken for that object."""
    if track.points is not None:
        return ".csv"
    if (
        track.name
        and not track.name.isdecimal()
        and not track.name.startswith(".")
        and not set(track.name) & set("/\\")
    ):
        return f"/{track.name}/{result.frame.name}.png"  # also of those whose files give names and no numbers
    return f"/{result.frame.name}.png" if track.id == 1 else f"/{track.id}/{result.frame.name}.png"


def _thumbnail(result: FrameResult) -> bytes:
    """JPEG of the frame with its tracks."""
    picture = draw_overlay(result)
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
