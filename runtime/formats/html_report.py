"""HTML report of one video: confidence over time, the weakest frames, and frames to label by hand."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from corrflow.atomic_files import check_writable, write_file
from corrflow.html_template import render_html
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult, ObjectResult
from corrflow.runtime.video.overlay import davis_palette, draw_overlay

MAX_SPANS = 240
"""Largest number of time spans, so that a long video needs no more memory than their thumbnails."""

LOW_CONFIDENCE = 0.7
"""Frames with a lower confidence, or with a lost object, are suggested for labelling."""

_THUMBNAIL_WIDTH = 320  # pixels
_WEAKEST, _SUGGESTED = 12, 5
_TEMPLATE = Path(__file__).with_name("templates") / "video_report.html.j2"


@dataclass
class _Span:
    """Successive frames: the weakest frame, and the lowest confidence of each object, None where out of sight."""

    first: int
    confidence: float
    index: int
    time: float
    label_path: str
    reason: str
    thumbnail: bytes
    lowest: dict[int, float | None] = field(default_factory=dict)


class ReportSink(Sink):
    """Writer of one self-contained HTML file."""

    def __init__(self, path: str | Path, title: str, notes: Callable[[], Sequence[str]] = list) -> None:
        """Create the file. Raises InputError where the path cannot be written to.

        notes: returns, at the end, sentences about labels and frames that were left out
        """
        self._path, self._title, self._notes = Path(path), title, notes
        check_writable(self._path)
        self._spans: list[_Span] = []
        self._length = 1  # frames of a span
        self._names: dict[int, str] = {}
        self._visible: set[int] = set()
        self._frames = 0

    def write(self, result: FrameResult) -> None:
        lowest: dict[int, float | None] = {}
        confidence, reason, label_path = 1.0, "all objects are sure", ""
        for obj in result.objects:
            self._names.setdefault(obj.id, obj.name or f"object {obj.id}")
            lowest[obj.id] = float(obj.confidence) if obj.visible else None
            name, previous = self._names[obj.id], reason
            if obj.visible and obj.confidence < confidence:
                confidence = float(obj.confidence)
                reason = f"{name}: confidence {confidence:.2f}{_weakest_point(obj)}"
            elif not obj.visible and obj.id in self._visible:
                confidence, reason = 0.0, f"{name}: out of sight from here"
            if reason != previous:
                label_path = f"{self._title}{_label_suffix(obj, result)}"
        self._visible = {obj.id for obj in result.objects if obj.visible}
        span = self._spans[-1] if self._spans and self._frames - self._spans[-1].first < self._length else None
        self._frames += 1
        if span is None or confidence < span.confidence:
            index, time = result.frame.index, result.frame.time
            new = _Span(index, confidence, index, time, label_path, reason, _thumbnail(result), lowest)
            if span is None:
                self._spans.append(new)
            else:
                self._spans[-1] = _merged(span, new)
        else:
            span.lowest = _minimum(span.lowest, lowest)
        if len(self._spans) > MAX_SPANS:
            pairs = zip(self._spans[::2], [*self._spans[1::2], None], strict=False)
            self._spans = [one if other is None else _merged(one, other) for one, other in pairs]
            self._length *= 2

    def close(self) -> None:
        if self._frames:
            write_file(self._path, self._page())

    def suggested(self) -> list[int]:
        """Return the frames to label by hand, the weakest first."""
        return [span.index for span in self._suggested()]

    def _suggested(self) -> list[_Span]:
        weakest = self._weakest(max(5, self._frames // 12), _SUGGESTED)
        return [span for span in weakest if span.confidence < LOW_CONFIDENCE]

    def _weakest(self, apart: int, most: int) -> list[_Span]:
        """Return at most `most` spans, the weakest first, whose weakest frames are at least `apart` frames apart."""
        chosen: list[_Span] = []
        for span in sorted(self._spans, key=lambda span: (span.confidence, span.index)):
            if len(chosen) < most and all(abs(span.index - other.index) >= apart for other in chosen):
                chosen.append(span)
        return chosen

    def _page(self) -> str:
        suggested = self._suggested()
        return render_html(
            _TEMPLATE,
            title=self._title,
            frames=self._frames,
            notes=self._notes(),
            spans=len(self._spans),
            low_confidence=LOW_CONFIDENCE,
            suggested=suggested,
            label_suffixes={Path(span.label_path).suffix for span in suggested},
            strips=[self._strip(identity) for identity in sorted(self._names)],
            weakest=self._weakest(max(1, self._frames // 40), _WEAKEST),
            b64encode=base64.b64encode,
        )

    def _strip(self, identity: int) -> tuple[str, list[int], Iterator[tuple[int, int, float]]]:
        """Return name, colour and bars of an object; a bar is the lowest confidence of a span where it is in sight."""
        heights = ((number, span.first, span.lowest.get(identity)) for number, span in enumerate(self._spans))
        bars = ((number, first, height) for number, first, height in heights if height is not None)
        return self._names[identity], davis_palette()[identity].tolist(), bars


def _weakest_point(obj: ObjectResult) -> str:
    """Return the name and the confidence of the weakest of several points; "" for other objects."""
    if obj.point_confidence is None or len(obj.point_names) < 2:
        return ""
    index = int(np.argmin(obj.point_confidence))
    return f", least {obj.point_names[index]} with {obj.point_confidence[index]:.2f}"


def _label_suffix(obj: ObjectResult, result: FrameResult) -> str:
    """Return the part behind the video's name in the path of a label for this object and frame."""
    if obj.points is not None:
        return ".csv"
    if isinstance(obj.track_id, int) and obj.track_id != 1:
        return f"/{obj.track_id}/{result.frame.name}.png"
    if obj.name and not obj.name.isdecimal() and not obj.name.startswith(".") and not set(obj.name) & set("/\\"):
        return f"/{obj.name}/{result.frame.name}.png"  # a folder by name also serves files without ids
    return f"/{result.frame.name}.png" if obj.id == 1 else f"/{obj.id}/{result.frame.name}.png"


def _thumbnail(result: FrameResult) -> bytes:
    """Return the frame with its results drawn in, as JPEG."""
    image = draw_overlay(result)
    height, width = image.shape[:2]
    if width > _THUMBNAIL_WIDTH:
        size = _THUMBNAIL_WIDTH, max(1, round(height * _THUMBNAIL_WIDTH / width))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def _merged(one: _Span, other: _Span) -> _Span:
    weaker = other if other.confidence < one.confidence else one
    return replace(weaker, first=one.first, lowest=_minimum(one.lowest, other.lowest))


def _minimum(one: dict[int, float | None], other: dict[int, float | None]) -> dict[int, float | None]:
    merged = dict(one)
    for identity, confidence in other.items():
        present = [value for value in (merged.get(identity), confidence) if value is not None]
        merged[identity] = min(present, default=None)
    return merged
