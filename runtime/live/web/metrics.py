"""How a session is doing, as JSON for the page and as Prometheus metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from corrflow.runtime.live.session import Session
from corrflow.runtime.video.overlay import fill_colours


def state_record(session: Session) -> dict[str, Any]:
    """What the page shows beside the picture; times in milliseconds, confidence 0..1, size [width, height]."""
    counts, pace, result = session.capture.counts, session.pace, session.latest.result
    source, reason = session.capture.state
    objects = []
    tracked = result.tracks.objects if result is not None else ()
    joining = {given.id: given.name for given in session.editing.joining}
    for track in tracked:
        state = "joining" if track.id in joining else "tracked" if track.visible else "lost"
        objects.append(_object(track.id, track.name, track.confidence, state))
    shown = {track.id for track in tracked}
    objects += [_object(number, name, 0.0, "joining") for number, name in joining.items() if number not in shown]
    return {
        "source": source,
        "reason": reason,
        "frames_per_second": round(pace.frames_per_second(), 2),
        "latency_ms": round(1000 * pace.latency(50), 1),
        "latency_99_ms": round(1000 * pace.latency(99), 1),
        "captured": counts.captured,
        "tracked": session.processed,
        "dropped": counts.dropped,
        "size": None if result is None else list(result.tracks.mask.shape[::-1]),
        "objects": objects,
        "outputs": [
            {"name": output.name, "written": output.written, "lost": output.lost, "error": output.error}
            for output in tuple(session.outputs)
        ],
    }


def health(session: Session) -> str:
    """Why the session does not deliver, "" where it does or has only just begun."""
    result, patience = session.latest.result, session.capture.patience
    if session.stop.is_set():
        return "the session has ended"
    source, reason = session.capture.state
    if result is None:
        return "" if source == "connecting" else reason or "no frame came yet"
    silent = time.monotonic() - result.frame.captured
    limit = patience.opening + patience.reading
    return f"no frame for {silent:.0f} s; the source is {source} ({reason})" if silent > limit else ""


def metrics_text(session: Session) -> bytes:
    """Everything in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(session))
    return generate_latest(registry)


class _Collector:
    def __init__(self, session: Session) -> None:
        self._session = session

    def collect(self) -> Iterator[Metric]:
        session = self._session
        counts, pace, result = session.capture.counts, session.pace, session.latest.result
        for name, text, value in (
            ("corrflow_frames_captured", "Frames that came from the source", counts.captured),
            ("corrflow_frames_tracked", "Frames that went through the tracker", session.processed),
            ("corrflow_frames_dropped", "Frames that came too fast for the tracker", counts.dropped),
            ("corrflow_source_connections", "How often the source was opened", counts.connections),
            ("corrflow_source_failures", "How often the source ended, failed or fell silent", counts.failures),
        ):
            yield CounterMetricFamily(name, text, value)
        yield GaugeMetricFamily("corrflow_up", "1 where frames are delivered", int(not health(session)))
        yield GaugeMetricFamily("corrflow_frames_per_second", "Over the last two seconds", pace.frames_per_second())
        latency = GaugeMetricFamily(
            "corrflow_latency_seconds", "From capture to result, over the last frames", labels=["quantile"]
        )
        for percent in (50, 99):
            latency.add_metric([str(percent / 100)], pace.latency(percent))
        yield latency
        confidence = GaugeMetricFamily("corrflow_object_confidence", "0 to 1", labels=["id", "name"])
        visible = GaugeMetricFamily("corrflow_object_visible", "1 while it is found", labels=["id", "name"])
        for track in result.tracks.objects if result is not None else ():
            confidence.add_metric([str(track.id), track.name], track.confidence)
            visible.add_metric([str(track.id), track.name], int(track.visible))
        yield from (confidence, visible)
        lost = CounterMetricFamily("corrflow_output_frames_lost", "Frames that an output lost", labels=["output"])
        for output in tuple(session.outputs):
            lost.add_metric([output.name], output.lost)
        yield lost


def _object(number: int, name: str, confidence: float, state: str) -> dict[str, Any]:
    blue, green, red = fill_colours()[number].tolist()
    return {
        "id": number,
        "name": name,
        "confidence": round(confidence, 3),
        "state": state,
        "colour": f"#{red:02x}{green:02x}{blue:02x}",
    }
