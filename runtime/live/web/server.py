"""Web server of the page: its files, the guard at the door, and the routes of a live session or of labelling."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from importlib.resources import files
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import uvicorn
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.live.web.auth import LOOPBACK, Access

_MAX_BODY = 2**20
_JPEG_QUALITY = 85
_COOKIE = "corrflow_token"
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Server:
    """Server of the page in a thread of its own."""

    def __init__(self, routes: Sequence[BaseRoute], access: Access) -> None:
        """Listen at the address of `access`. Raises InputError if the address is not free."""
        self._socket = access.listen()
        self.access = Access(access.host, self._socket.getsockname()[1], access.token)
        config = uvicorn.Config(
            make_app(routes, self.access),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=0,
            limit_concurrency=64,
        )
        self._server = uvicorn.Server(config)
        # Connections that are cut at the end are no error; uvicorn's other messages are.
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
        sockets = [self._socket]
        self._thread = Thread(target=self._server.run, args=(sockets,), name="corrflow-server", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 0.3) -> None:
        """Stop serving; wait at most `timeout` seconds for that."""
        self._server.should_exit = True
        self._thread.join(timeout)
        self._socket.close()


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Cancel ")


def make_app(routes: Sequence[BaseRoute], access: Access) -> Starlette:
    """Return the page with its routes as an ASGI application."""

    async def page(request: Request) -> Response:
        if "token" in request.query_params:  # the guard has checked the token; a cookie keeps it out of the address
            response: Response = RedirectResponse("/", 303)
            response.set_cookie(_COOKIE, request.query_params["token"], httponly=True, samesite="strict")
            return response
        name = request.url.path.strip("/") or "index.html"
        content = (files("corrflow.runtime.live.web") / "static" / name).read_bytes()
        return Response(content, media_type=_TYPES[name.rsplit(".", 1)[1]])

    return Starlette(
        routes=[*(Route(path, page) for path in ("/", "/page.js", "/page.css", "/icon.svg")), *routes],
        middleware=[Middleware(_Guard, access=access)],
        exception_handlers={CorrflowError: _on_error},  # pyright: ignore[reportArgumentType]
    )


class _Guard:
    """Middleware that admits requests with the token, or without a token from the machine's own names.

    Another site's page could otherwise send requests from the user's browser, with forged origins or through a name
    that resolves to 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        refused = None if scope["path"] == "/healthz" else self._check(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await (refused or self._app)(scope, receive, send_with_headers)

    def _check(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self._access.token:
            token = (
                request.query_params.get("token")
                or request.headers.get("authorization", "").removeprefix("Bearer ")
                or request.cookies.get(_COOKIE, "")
            )
            if not self._access.admits(token):
                return refusal("expected the token, got none or another; open the address that was printed", 401)
        elif _host_name(host) not in LOOPBACK:
            return refusal(f"expected this machine's own name, got {host!r}; open http://127.0.0.1", 403)
        if origin is not None and urlsplit(origin).netloc != host:
            return refusal("expected a request of this page's own, got another page's", 403)
        return None


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def json_route(path: str, endpoint: Callable[[dict[str, Any]], Response]) -> Route:
    """Return a POST route whose endpoint takes the JSON object of the request, in a thread of its own."""

    async def call(request: Request) -> Response:
        return await run_sync(endpoint, await read_json(request))

    return Route(path, call, methods=["POST"])


async def read_json(request: Request) -> dict[str, Any]:
    """Read the JSON object of a request. Raises InputError for any other or too large a body."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise InputError("expected application/json, got another content type")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY:
            raise InputError(f"expected at most {_MAX_BODY} bytes, got more; draw less at a time")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError("expected a JSON object, got something else")
    return values


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode an image [H, W, 3] uint8, BGR."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def jpeg_response(image: np.ndarray) -> Response:
    """Return an image [H, W, 3] uint8, BGR, as a response."""
    return Response(encode_jpeg(image), media_type="image/jpeg")


def refusal(reason: str, status: int) -> Response:
    """Return an error as a response."""
    return JSONResponse({"error": reason}, status)


def _on_error(request: Request, error: Exception) -> Response:
    return refusal(str(error), 400 if isinstance(error, InputError) else 503)
