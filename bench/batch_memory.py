"""Memory of a process that tracks one long video: python -m corrflow.bench.batch_memory

Reads {"folder", "formats", "short_side", "radius"} as JSON from standard input, and prints rows of [frames, resident
bytes, peak bytes].
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2

from corrflow.bench import machine
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.process_item import Job, process_item
from corrflow.runtime.tracking.occlusion import occlusion_settings_for
from corrflow.runtime.tracking.tracker import Tracker

_INTERVAL = 50  # frames between rows


def main() -> None:
    """Track and measure in this process."""
    request = json.load(sys.stdin)
    folder = Path(request["folder"])
    cv2.setNumThreads(1)
    artifact = load_artifact(resolve_model(None))
    backend = open_backend("auto", artifact, 1)
    settings = replace(artifact.settings, short_side=request["short_side"], recent_offsets=(1,))
    if backend.supports_runtime_search_params:
        settings = replace(settings, radius=(request["radius"],), dilation=(1,))
    out = folder / "out"
    (out / ".staging").mkdir(parents=True)
    job = Job(folder / "labels", out, out / ".staging", tuple(request["formats"]), "benchmark")
    rows: list[tuple[int, int, int]] = []

    def measure(frames: int, announced: int | None) -> None:
        if frames % _INTERVAL == 0:
            rows.append((frames, machine.resident() or 0, machine.highest() or 0))

    process_item(
        job,
        Item("long", folder / "long.mp4"),
        Tracker(backend, settings, occlusion_settings_for(backend, settings)),
        measure,
    )
    backend.close()
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
