"""JSON lines: one object for each frame, in files and on networks."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from corrflow.atomic_files import encoded
from corrflow.runtime.formats.base import TableSink
from corrflow.runtime.formats.rle import coco_rle
from corrflow.runtime.types import FrameResult, ObjectResult


class JsonLinesSink(TableSink):
    """Writer of one line for each frame, as `frame_record` describes it, without masks."""

    def _lines(self, result: FrameResult) -> str:
        return json_line(frame_record(result, masks=False)).decode()


def frame_record(result: FrameResult, masks: bool = True) -> dict[str, Any]:
    """Return a frame's result as JSON values.

    masks: True to add each mask as COCO run lengths, in `mask`

    A frame of a file has these fields, and `objects` as `object_record` describes them:
        frame       index from 0
        time        seconds
        name        name of the frame
    A frame of a live session has these fields, and `objects`:
        frame       index among all captured frames
        number      index among the tracked frames
        time        seconds since the first tracked frame
        captured    seconds since 1970
        latency_ms  from capture to result
        size        [width, height]
    """
    frame, live = result.frame, result.live
    objects = []
    for obj in result.objects:
        objects.append(object_record(obj))
        if masks and obj.points is None:
            objects[-1]["mask"] = coco_rle(result.mask == obj.id)
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
    return encoded(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def object_record(obj: ObjectResult) -> dict[str, object]:
    """Return an object of one frame as JSON values; box: [x0, y0, x1, y1]; points: {name: [x, y, confidence]}."""
    return {
        "id": obj.id,
        "name": obj.name,
        "confidence": _rounded(obj.confidence, 4),
        "visible": bool(obj.visible),
        "box": None if obj.box is None else [int(side) for side in obj.box],
        "points": {
            name: [_rounded(x, 2), _rounded(y, 2), _rounded(confidence, 4)]
            for name, (x, y, confidence) in named_points(obj).items()
        },
    }


def named_points(obj: ObjectResult) -> dict[str, tuple[float, float, float]]:
    """Return (x, y, confidence) of each point by its name; nothing for a mask."""
    if obj.points is None:
        return {}
    count = len(obj.points)
    confidence = np.full(count, obj.confidence) if obj.point_confidence is None else obj.point_confidence
    return {
        name: (float(x), float(y), float(certainty))
        for name, (x, y), certainty in zip(obj.point_names, obj.points, confidence, strict=True)
    }


def _rounded(number: float, digits: int) -> float | None:
    return round(float(number), digits) if math.isfinite(number) else None
