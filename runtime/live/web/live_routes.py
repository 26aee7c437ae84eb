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
from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from corrflow.runtime.live.session import Session
from corrflow.runtime.live.session_control import SessionApi
from corrflow.runtime.live.web.drawing_routes import drawing_routes
from corrflow.runtime.live.web.guard import HEALTH_PATH, refusal
from corrflow.runtime.live.web.metrics import health, metrics_text, state_record
from corrflow.runtime.live.web.server import encode_jpeg, json_route
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.overlay import draw_overlay

MAX_VIEWERS = 8


def live_routes(session: Session, api: SessionApi) -> list[BaseRoute]:
    """Return all routes of a live session."""
    newest = _NewestJpeg()
    viewers = [0]

    def read_state() -> dict[str, Any]:
        return state_record(session, api.recording) | {"viewers": viewers[0], "max_viewers": MAX_VIEWERS}

    async def stream(request: Request) -> Response:
        if viewers[0] >= MAX_VIEWERS:
            return refusal(f"expected at most {MAX_VIEWERS} viewers, got one more; close another page", 503)

        async def parts() -> AsyncIterator[bytes]:
            sent: FrameResult | None = None
            while not session.stop.is_set() and not await request.is_disconnected():
                result = await run_sync(session.latest.newer, sent, 0.5)
                if result is None:
                    continue
                sent = result
                data = await run_sync(newest.encode, result)
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                yield head.encode() + data + b"\r\n"

        return _Viewer(parts(), viewers)

    async def healthz(request: Request) -> Response:  # in the event loop: other requests may occupy all threads
        reason = health(session)
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    def metrics(request: Request) -> Response:
        return Response(metrics_text(session), media_type="text/plain; version=0.0.4")

    def record(values: dict) -> Response:
        return JSONResponse({"recording": api.record(values.get("on") is True)})

    def prompt(values: dict) -> Response:
        return JSONResponse(api.save_prompt())

    return [
        *drawing_routes(api, read_state),
        Route("/stream", stream),
        Route(HEALTH_PATH, healthz),
        Route("/metrics", metrics),
        json_route("/api/recording", record),
        json_route("/api/prompt", prompt),
    ]


class _Viewer(StreamingResponse):
    """MJPEG stream that is counted in `viewers` until its end, however that comes."""

    def __init__(self, parts: AsyncIterator[bytes], viewers: list[int]) -> None:
        super().__init__(parts, media_type="multipart/x-mixed-replace; boundary=frame")
        self._viewers = viewers
        viewers[0] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._viewers[0] -= 1


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
