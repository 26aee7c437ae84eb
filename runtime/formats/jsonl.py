"""JSON lines: one object for each frame."""

from __future__ import annotations

import json
import math

import numpy as np

from corrflow.runtime.formats.base import TableSink
from corrflow.runtime.types import Frame, ObjectResult, Tracks


class JsonLinesSink(TableSink):
    """One JSON object a line and frame: frame, time, name and objects.

    Each object has id, name, confidence, visible, box ([x0, y0, x1, y1], last row and column outside, or null) and
    points ({name: [x, y, confidence]}, empty for masks). Numbers that are not finite become null.
    """

    def _lines(self, frame: Frame, tracks: Tracks) -> str:
        record = {
            "frame": frame.index,
            "time": _rounded(frame.time, 6),
            "name": frame.name,
            "objects": [object_record(track) for track in tracks.objects],
        }
        return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def object_record(track: ObjectResult) -> dict[str, object]:
    """An object of one frame as JSON has it; see `JsonLinesSink`."""
    return {
        "id": track.id,
        "name": track.name,
        "confidence": _rounded(track.confidence, 4),
        "visible": bool(track.visible),
        "box": None if track.box is None else [int(side) for side in track.box],
        "points": {
            name: [_rounded(x, 2), _rounded(y, 2), _rounded(confidence, 4)]
            for name, (x, y, confidence) in _points(track).items()
        },
    }


def _points(track: ObjectResult) -> dict[str, tuple[float, float, float]]:
    """(x, y, confidence) of each named point; none for masks."""
    if track.points is None:
        return {}
    count = len(track.points)
    confidence = np.full(count, track.confidence) if track.point_confidence is None else track.point_confidence
    return {
        name: (float(x), float(y), float(certainty))
        for name, (x, y), certainty in zip(track.point_names, track.points, confidence, strict=True)
    }


def _rounded(number: float, digits: int) -> float | None:
    return round(float(number), digits) if math.isfinite(number) else None
