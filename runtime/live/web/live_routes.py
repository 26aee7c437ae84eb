"""HTTP interface of a live session, beside the routes to draw objects.

GET  /stream:           the overlay as MJPEG
POST /api/recording:    start or end a recording
POST /api/prompt:       save the newest frame with its visible objects
GET  /healthz:          for supervisors
GET  /metrics:          for Prometheus
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from threading import Lock

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from corrflow.runtime.live.session import Session
from corrflow.runtime.live.session_control import SessionApi
from corrflow.runtime.live.web.drawing_routes import drawing_routes
from corrflow.runtime.live.web.metrics import health, metrics_text, state_record
from corrflow.runtime.live.web.server import encode_jpeg, json_route, refusal
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.overlay import draw_overlay

MAX_VIEWERS = 8


def live_routes(session: Session, api: SessionApi) -> list[BaseRoute]:
    """Return all routes of a live session."""
    newest = _NewestJpeg()
    viewers = [0]

    async def stream(request: Request) -> Response:
        if viewers[0] >= MAX_VIEWERS:
            return refusal(f"expected at most {MAX_VIEWERS} viewers, got one more; close another page", 503)

        async def parts() -> AsyncIterator[bytes]:
            sent: FrameResult | None = None
            viewers[0] += 1
            try:
                while not session.stop.is_set() and not await request.is_disconnected():
                    result = await run_sync(session.latest.newer, sent, 0.5)
                    if result is None:
                        continue
                    sent = result
                    data = await run_sync(newest.encode, result)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    yield head.encode() + data + b"\r\n"
            finally:
                viewers[0] -= 1

        return StreamingResponse(parts(), media_type="multipart/x-mixed-replace; boundary=frame")

    def healthz(request: Request) -> Response:
        reason = health(session)
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    def metrics(request: Request) -> Response:
        return Response(metrics_text(session), media_type="text/plain; version=0.0.4")

    def record(values: dict) -> Response:
        return JSONResponse({"recording": api.record(values.get("on") is True)})

    def prompt(values: dict) -> Response:
        return JSONResponse(api.save_prompt())

    return [
        *drawing_routes(api, lambda: state_record(session, api.recording)),
        Route("/stream", stream),
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        json_route("/api/recording", record),
        json_route("/api/prompt", prompt),
    ]


class _NewestJpeg:
    """The newest overlay as JPEG, encoded once for all viewers."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._result: FrameResult | None = None
        self._data = b""

    def encode(self, result: FrameResult) -> bytes:
        """Return the overlay of a result as JPEG."""
        with self._lock:
            if result is not self._result:
                self._result, self._data = result, encode_jpeg(draw_overlay(result))
            return self._data
