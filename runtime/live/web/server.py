"""Web server of the page: its files, and the routes of a live session or of labelling."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from threading import Thread
from typing import Any

import cv2
import numpy as np
import uvicorn
from anyio import fail_after
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.live.web.auth import Access
from corrflow.runtime.live.web.connections import BACKLOG, BoundedConnection, bound_log
from corrflow.runtime.live.web.guard import Guard, refusal

MAX_BODY = 2**20
"""Bytes of a drawing."""

_MAX_SHORT_BODY, _BODY_SECONDS = 2**14, 10.0
_JPEG_QUALITY = 85
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


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
            proxy_headers=False,
            timeout_graceful_shutdown=0,
            http=BoundedConnection,
            backlog=BACKLOG,
        )
        self._server = uvicorn.Server(config)
        bound_log()
        sockets = [self._socket]
        self._thread = Thread(target=self._server.run, args=(sockets,), name="corrflow-server", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 0.3) -> None:
        """Stop serving; wait at most `timeout` seconds for that."""
        self._server.should_exit = True
        self._thread.join(timeout)
        self._socket.close()


def make_app(routes: Sequence[BaseRoute], access: Access) -> Starlette:
    """Return the page with its routes as an ASGI application."""

    async def page(request: Request) -> Response:
        name = request.url.path.strip("/") or "index.html"
        content = (files("corrflow.runtime.live.web") / "static" / name).read_bytes()
        response = Response(content, media_type=_TYPES[name.rsplit(".", 1)[1]])
        if access.token and "token" in request.query_params:
            # The guard has checked the token. The page takes it out of its address; a redirect would not do, because
            # browsers leave the cookie out of the redirect when another site's link led here.
            response.set_cookie(access.cookie, request.query_params["token"], httponly=True, samesite="strict")
        return response

    return Starlette(
        routes=[*(Route(path, page) for path in ("/", "/page.js", "/page.css", "/icon.svg")), *routes],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={CorrflowError: _on_error},  # pyright: ignore[reportArgumentType]
    )


def parse_id(text: str) -> int:
    """Parse a number in an address. Raises InputError for anything but one to nine digits."""
    if not text.isdecimal() or len(text) > 9:
        raise InputError("expected a number in the address, got another text; reload the page")
    return int(text)


def json_route(path: str, endpoint: Callable[[dict[str, Any]], Response]) -> Route:
    """Return a POST route whose endpoint takes the JSON object of the request, in a thread of its own."""

    async def call(request: Request) -> Response:
        return await run_sync(endpoint, await read_json(request))

    return Route(path, call, methods=["POST"])


async def read_json(request: Request) -> dict[str, Any]:
    """Read the short JSON object of a request. Raises InputError for any other or too large a body."""
    return parse_json(await read_body(request, _MAX_SHORT_BODY))


async def read_body(request: Request, limit: int = MAX_BODY) -> bytearray:
    """Read JSON that `parse_json` parses, where it may be large in a job: that keeps all other threads waiting.

    Raises InputError for more than `limit` bytes.
    """
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise InputError("expected application/json, got another content type")
    body = bytearray()
    try:
        with fail_after(_BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise InputError(f"expected at most {limit} bytes, got more; draw less at a time")
    except TimeoutError:
        raise InputError(f"expected a whole request within {_BODY_SECONDS:g} s, got a part; try again") from None
    return body


def parse_json(body: bytearray) -> dict[str, Any]:
    """Parse a JSON object. Raises InputError for anything else."""
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


def _on_error(request: Request, error: Exception) -> Response:
    return refusal(str(error), 400 if isinstance(error, InputError) else 503)
