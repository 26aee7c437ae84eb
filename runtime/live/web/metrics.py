"""Status of a live session, as JSON for the page and as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from corrflow.runtime.live.session import Session
from corrflow.runtime.live.web.drawing_routes import object_record


def state_record(session: Session, recording: bool) -> dict[str, Any]:
    """Return what the page displays; times in milliseconds, confidence 0..1, size [width, height]."""
    counts, latency, result = session.capture.counts, session.latency, session.latest.result
    source, reason = session.capture.state
    objects = []
    tracked = result.objects if result is not None else ()
    joining = {one.id: one.name for one in session.editing.joining}
    for one in tracked:
        state = "joining" if one.id in joining else "tracked" if one.visible else "lost"
        objects.append(object_record(one.id, one.name, one.confidence, state))
    ids = {one.id for one in tracked}
    objects += [object_record(number, name, 0.0, "joining") for number, name in joining.items() if number not in ids]
    return {
        "mode": "live",
        "recording": recording,
        "source": source,
        "reason": reason,
        "frames_per_second": round(latency.frames_per_second(), 2),
        "latency_ms": round(1000 * latency.latency(50), 1),
        "latency_99_ms": round(1000 * latency.latency(99), 1),
        "captured": counts.captured,
        "tracked": session.processed,
        "dropped": counts.dropped,
        "size": None if result is None else list(result.mask.shape[::-1]),
        "objects": objects,
        "outputs": [
            {"name": output.name, "written": output.written, "lost": output.lost, "error": output.error}
            for output in tuple(session.outputs)
        ],
    }


def health(session: Session) -> str:
    """Return why the session delivers no frames; "" if it delivers, or is still connecting."""
    result, timeouts = session.latest.result, session.capture.timeouts
    if session.stop.is_set():
        return "the session has ended"
    source, reason = session.capture.state
    if result is None:
        return "" if source == "connecting" else reason or "no frame came yet"
    silent = session.seconds_since_capture
    limit = timeouts.opening + timeouts.reading
    return f"no frame for {silent:.0f} s; the source is {source} ({reason})" if silent > limit else ""


def metrics_text(session: Session) -> bytes:
    """Return all metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(session))
    return generate_latest(registry)


class _Collector:
    """Collector of a session's metrics for prometheus_client."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        session = self._session
        counts, statistics, result = session.capture.counts, session.latency, session.latest.result
        for name, text, value in (
            ("corrflow_frames_captured", "Frames captured from the source", counts.captured),
            ("corrflow_frames_tracked", "Frames processed by the tracker", session.processed),
            ("corrflow_frames_dropped", "Frames dropped because the tracker was busy", counts.dropped),
            ("corrflow_source_connections", "Number of times the source was opened", counts.connections),
            ("corrflow_source_failures", "Number of times the source ended, failed or timed out", counts.failures),
        ):
            yield CounterMetricFamily(name, text, value)
        yield GaugeMetricFamily("corrflow_up", "1 if frames are delivered", int(not health(session)))
        pace = statistics.frames_per_second()
        yield GaugeMetricFamily("corrflow_frames_per_second", "Mean over the last two seconds", pace)
        latency = GaugeMetricFamily(
            "corrflow_latency_seconds", "From capture to result, over the last ten seconds", labels=["quantile"]
        )
        for percent in (50, 99):
            latency.add_metric([str(percent / 100)], statistics.latency(percent))
        yield latency
        confidence = GaugeMetricFamily("corrflow_object_confidence", "0 to 1", labels=["id", "name"])
        visible = GaugeMetricFamily("corrflow_object_visible", "1 if the object is visible", labels=["id", "name"])
        for one in result.objects if result is not None else ():
            confidence.add_metric([str(one.id), one.name], one.confidence)
            visible.add_metric([str(one.id), one.name], int(one.visible))
        yield from (confidence, visible)
        lost = CounterMetricFamily("corrflow_output_frames_lost", "Frames lost by an output", labels=["output"])
        for output in tuple(session.outputs):
            lost.add_metric([output.name], output.lost)
        yield lost
