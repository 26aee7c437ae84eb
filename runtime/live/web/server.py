"""The page of a live session: its picture, its numbers, and the changes that people make with it.

GET  /                the page            GET    /stream               the overlay as MJPEG
GET  /api/state       numbers, objects    POST   /api/freeze           freeze the newest frame
GET  /api/frozen/N    it, as JPEG         DELETE /api/frozen/N         let it go
POST /api/mask        what strokes mean   POST   /api/objects          add or correct an object
PATCH, DELETE /api/objects/ID             rename, remove
POST /api/recording   on or off           POST   /api/reference        keep what is seen
GET  /healthz         for supervisors     GET    /metrics              for Prometheus
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import uvicorn
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.live.results import LiveResult
from corrflow.runtime.live.session import Session
from corrflow.runtime.live.session_control import SessionApi
from corrflow.runtime.live.web.auth import LOOPBACK, Access
from corrflow.runtime.live.web.metrics import health, metrics_text, state_record
from corrflow.runtime.video.overlay import draw_overlay

MOST_VIEWERS = 8
_LARGEST_BODY = 2**20
_JPEG_QUALITY = 80
_COOKIE = "corrflow_token"
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Server:
    """Serves a session until it is closed. Raises InputError where the address cannot be had."""

    def __init__(self, session: Session, control: SessionApi, access: Access) -> None:
        self._socket = access.listen()
        self.access = Access(access.host, self._socket.getsockname()[1], access.token)
        config = uvicorn.Config(
            make_app(session, control, self.access),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=0,
            limit_concurrency=64,
        )
        self._server = uvicorn.Server(config)
        # Viewers are cut off when the run ends, which is no error; what else it says is.
        logging.getLogger("uvicorn.error").addFilter(_not_about_the_end)
        sockets = [self._socket]
        self._thread = Thread(target=self._server.run, args=(sockets,), name="corrflow-server", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 0.3) -> None:
        self._server.should_exit = True
        self._thread.join(timeout)
        self._socket.close()


def _not_about_the_end(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Cancel ")


def make_app(session: Session, control: SessionApi, access: Access) -> Starlette:
    """The page and its interface as an ASGI application."""
    pictures = _Pictures()
    viewers = [0]

    async def page(request: Request) -> Response:
        if "token" in request.query_params:  # checked by now; it does not stay in the address
            response: Response = RedirectResponse("/", 303)
            response.set_cookie(_COOKIE, request.query_params["token"], httponly=True, samesite="strict")
            return response
        name = request.url.path.strip("/") or "index.html"
        content = (files("corrflow.runtime.live.web") / "static" / name).read_bytes()
        return Response(content, media_type=_TYPES[name.rsplit(".", 1)[1]])

    async def stream(request: Request) -> Response:
        if viewers[0] >= MOST_VIEWERS:
            return _refused(f"expected at most {MOST_VIEWERS} viewers, got one more; close another page", 503)

        async def parts() -> AsyncIterator[bytes]:
            shown: LiveResult | None = None
            viewers[0] += 1
            try:
                while not session.stop.is_set() and not await request.is_disconnected():
                    newer = await run_sync(session.latest.newer, shown, 0.5)
                    if newer is None:
                        continue
                    shown = newer
                    data = await run_sync(pictures.jpeg, newer)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    yield head.encode() + data + b"\r\n"
            finally:
                viewers[0] -= 1

        return StreamingResponse(parts(), media_type="multipart/x-mixed-replace; boundary=frame")

    def state(request: Request) -> Response:
        return JSONResponse(state_record(session) | {"recording": control.recording})

    def healthz(request: Request) -> Response:
        reason = health(session)
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    def metrics(request: Request) -> Response:
        return Response(metrics_text(session), media_type="text/plain; version=0.0.4")

    def frozen(request: Request) -> Response:
        one = control.frozen(request.path_params["number"])
        return Response(_jpeg(draw_overlay(one.image, one.tracks)), media_type="image/jpeg")

    def release(request: Request) -> Response:
        control.release(request.path_params["number"])
        return JSONResponse({})

    def freeze(values: dict) -> Response:
        one = session.freeze()
        return JSONResponse({"frozen": one.number, "size": [one.image.shape[1], one.image.shape[0]]})

    def mask(values: dict) -> Response:
        found = control.mask(values)
        picture = np.zeros((*found.shape, 4), np.uint8)  # BGRA
        picture[found] = 60, 220, 255, 130
        edge = found & ~cv2.erode(found.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        picture[edge] = 255, 255, 255, 255
        return Response(cv2.imencode(".png", picture)[1].tobytes(), media_type="image/png")

    def add(values: dict) -> Response:
        return JSONResponse({"id": control.give(values)}, 201)

    def record(values: dict) -> Response:
        return JSONResponse({"recording": control.record(values.get("on") is True)})

    def reference(values: dict) -> Response:
        return JSONResponse(control.save_prompt())

    def change(request: Request, values: dict) -> Response:
        control.rename(request.path_params["number"], values.get("name"))
        return JSONResponse({})

    def remove(request: Request) -> Response:
        control.remove(request.path_params["number"])
        return JSONResponse({})

    def posted(path: str, answer: Callable[[dict], Response]) -> Route:
        async def endpoint(request: Request) -> Response:
            values = await _json(request)
            return await run_sync(answer, values)

        return Route(path, endpoint, methods=["POST"])

    async def patched(request: Request) -> Response:
        return await run_sync(change, request, await _json(request))

    routes = [
        *(Route(path, page) for path in ("/", "/page.js", "/page.css", "/icon.svg")),
        Route("/stream", stream),
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        Route("/api/state", state),
        Route("/api/frozen/{number:int}", frozen),
        Route("/api/frozen/{number:int}", release, methods=["DELETE"]),
        posted("/api/freeze", freeze),
        posted("/api/mask", mask),
        posted("/api/objects", add),
        Route("/api/objects/{number:int}", patched, methods=["PATCH"]),
        Route("/api/objects/{number:int}", remove, methods=["DELETE"]),
        posted("/api/recording", record),
        posted("/api/reference", reference),
    ]
    handlers = {CorrflowError: _say}
    return Starlette(routes=routes, middleware=[Middleware(_Guard, access=access)], exception_handlers=handlers)  # pyright: ignore[reportArgumentType]


class _Guard:
    """Lets in whoever has the token; where none is asked for, only pages of this machine's own names.

    A page of somebody else's may otherwise reach this one from the user's browser, with forged requests or under a name
    of its own that leads to 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        refusal = None if scope["path"] == "/healthz" else self._refusal(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self._access.token:
            given = (
                request.query_params.get("token")
                or request.headers.get("authorization", "").removeprefix("Bearer ")
                or request.cookies.get(_COOKIE, "")
            )
            if not self._access.admits(given):
                return _refused("expected the token, got none or another; open the address that was printed", 401)
        elif _host_name(host) not in LOOPBACK:
            return _refused(f"expected this machine's own name, got {host!r}; open http://127.0.0.1", 403)
        if origin is not None and urlsplit(origin).netloc != host:
            return _refused("expected a request of this page's own, got another page's", 403)
        return None


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class _Pictures:
    """The newest overlay as JPEG, made once for all viewers."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._result: LiveResult | None = None
        self._data = b""

    def jpeg(self, result: LiveResult) -> bytes:
        with self._lock:
            if result is not self._result:
                self._result, self._data = result, _jpeg(draw_overlay(result.frame.image, result.tracks))
            return self._data


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


async def _json(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries; raises InputError for anything else, also for too much."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise InputError("expected application/json, got another content type")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_BODY:
            raise InputError(f"expected at most {_LARGEST_BODY} bytes, got more; draw less at a time")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError("expected a JSON object, got something else")
    return values


def _refused(reason: str, status: int) -> Response:
    return JSONResponse({"error": reason}, status)


def _say(request: Request, error: Exception) -> Response:
    return _refused(str(error), 400 if isinstance(error, InputError) else 503)
