"""TODO."""

from __future__ import annotations

import json
from typing import Any

from corrflow.runtime.formats.jsonl import object_record
from corrflow.runtime.formats.rle import run_lengths
from corrflow.runtime.live.results import LiveResult


def result_record(result: LiveResult, masks: bool = True) -> dict[str, Any]:
    """A frame's result as JSON has it, in files and on networks.

    frame counts all captured frames, number the tracked ones; time is in seconds since the first tracked frame and
    captured in seconds since 1970; latency_ms runs from the frame's capture to its result; size is [width, height].
    Objects are as in `JsonLinesSink`, and each mask's run lengths are in `mask`, as COCO has them, unless left out.
    """
    height, width = result.tracks.mask.shape
    objects = []
    for track in result.tracks.objects:
        record = object_record(track)
        if masks and track.points is None:
            record["mask"] = run_lengths(result.tracks.mask == track.id)
        objects.append(record)
    return {
        "frame": result.frame.index,
        "number": result.number,
        "time": round(result.time, 6),
        "captured": round(result.frame.wall, 6),
        "latency_ms": round(1000 * result.latency, 2),
        "size": [width, height],
        "objects": objects,
    }


def json_line(record: dict[str, Any]) -> bytes:
    """A record as UTF-8 JSON with a line feed behind it."""
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
