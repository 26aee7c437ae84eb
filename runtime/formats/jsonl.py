"""JSON lines: one object for each frame, in files and on networks."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from corrflow.runtime.formats.base import TableSink
from corrflow.runtime.formats.rle import run_lengths
from corrflow.runtime.types import FrameResult, ObjectResult


class JsonLinesSink(TableSink):
    """One line for each frame, as `frame_record` describes it; without masks."""

    def _lines(self, result: FrameResult) -> str:
        return json_line(frame_record(result, masks=False)).decode()


def frame_record(result: FrameResult, masks: bool = True) -> dict[str, Any]:
    """Return a frame's result as JSON values.

    A frame of a file has frame (its index), time (seconds) and name. A frame of a live session has frame (which counts
    all captured frames), number (which counts the tracked ones), time (seconds since the first tracked frame), captured
    (seconds since 1970), latency_ms (from capture to result) and size ([width, height]). Both have the objects as
    `object_record` describes them. masks: add each mask as COCO run lengths in `mask`.
    """
    frame, live = result.frame, result.live
    objects = []
    for one in result.objects:
        objects.append(object_record(one))
        if masks and one.points is None:
            objects[-1]["mask"] = run_lengths(result.mask == one.id)
    record: dict[str, Any] = {"frame": frame.index}
    if live is None:
        record |= {"time": _rounded(frame.time, 6), "name": frame.name}
    else:
        height, width = result.mask.shape
        record |= {
            "number": live.number,
            "time": _rounded(frame.time, 6),
            "captured": round(live.captured, 6),
            "latency_ms": round(1000 * live.latency, 2),
            "size": [width, height],
        }
    return record | {"objects": objects}


def json_line(record: dict[str, Any]) -> bytes:
    """Return a record as a line of UTF-8 JSON."""
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()


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
