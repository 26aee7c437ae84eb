"""Guard at the door of the page: who may ask, how much at a time, and headers that keep other sites out."""

from __future__ import annotations

import html
import time
from urllib.parse import urlsplit

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corrflow.runtime.live.web.auth import LOOPBACK, Access
from corrflow.runtime.live.web.connections import max_connections

HEALTH_PATH = "/healthz"
_RATE, _BURST = 40.0, 100.0  # requests per second, and at once; a page asks twice a second
_HEALTH_RATE, _HEALTH_BURST = 10.0, 10.0
_BYTES_PER_REQUEST = 20_000  # of a body, which costs as much to parse as a request
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Guard:
    """Middleware that admits requests with the token, or without a token from the machine's own names.

    Another site's page could otherwise send requests from the user's browser, with forged origins or through a name
    that resolves to 127.0.0.1 (DNS rebinding). Requests beyond a rate wait, because each takes time from the tracker.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        self._active, self._limit = 0, max_connections() // 2
        self._pace, self._health_pace = _Pace(_RATE, _BURST), _Pace(_HEALTH_RATE, _HEALTH_BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        async def receive_in_time() -> Message:
            message = await receive()
            await self._pace.spend(len(message.get("body", b"")) / _BYTES_PER_REQUEST)
            return message

        if scope["path"] == HEALTH_PATH:  # apart from everything else, for supervisors
            await self._health_pace.spend(1)
            await self._app(scope, receive, send_with_headers)
            return
        refused: Response | None = None
        if self._active >= self._limit:
            refused = refusal(f"expected at most {self._limit} requests at a time, got one more; try again", 503)
        self._active += 1
        try:
            await self._pace.spend(1)
            refused = refused or self._check(Request(scope))
            await (refused or self._app)(scope, receive_in_time, send_with_headers)
        except ClientDisconnect:
            return
        finally:
            self._active -= 1

    def _check(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self._access.token:
            token = (
                request.query_params.get("token")
                or request.headers.get("authorization", "").removeprefix("Bearer ")
                or request.cookies.get(self._access.cookie, "")
            )
            if not self._access.admits(token):
                return _unknown(request)
        elif _host_name(host) not in LOOPBACK:
            return refusal(f"expected this machine's own name, got {host[:100]!r}; open http://127.0.0.1", 403)
        if origin is not None and (asking := _host(origin)) != host:
            if asking is None:
                return refusal("expected an origin such as http://127.0.0.1:8080, got another text", 400)
            return refusal("expected a request of this page's own, got another page's", 403)
        # Browsers tell where a request without an origin comes from, such as a picture that another page contains.
        foreign = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and request.headers.get("sec-fetch-mode") != "navigate":
            return refusal("expected a request of this page's own, got another page's", 403)
        return None


class _Pace:
    """Rate of requests: a burst at once, then `rate` a second in the order of their arrival."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst, self._left, self._at = rate, burst, burst, time.monotonic()

    async def spend(self, cost: float) -> None:
        """Wait until `cost` requests more are within the rate."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - cost
        self._at = now
        if self._left < 0:
            await anyio.sleep(-self._left / self._rate)


def refusal(reason: str, status: int) -> Response:
    """Return an error as a response."""
    return JSONResponse({"error": reason}, status)


def _unknown(request: Request) -> Response:
    """Return the refusal of a request without the token, as a page where a browser opens one.

    A browser leaves the cookie out when another site's link leads here. It sends the cookie when this page reloads.
    """
    reason = "expected the token, got none or another; open the address that was printed"
    if request.method != "GET" or request.url.path != "/":
        return refusal(reason, 401)
    linked = request.headers.get("sec-fetch-site") in ("cross-site", "same-site") and not request.query_params
    reload = '<meta http-equiv="refresh" content="0;url=/">' if linked else ""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8">{reload}<title>corrflow</title>'
        f'<link rel="icon" href="data:,"><p>corrflow: {html.escape(reason)}.</p><p><a href="/">Try again</a></p>',
        401,
    )


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
