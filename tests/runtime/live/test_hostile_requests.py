"""The page under hostile requests: silent, slow, broken or many, from other sites, and drawings without an end."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from helpers.live_page import LivePage
from helpers.page_client import wait_for

pytest.importorskip("uvicorn")

from corrflow.runtime.live import object_editor, session_control
from corrflow.runtime.live.capture.capture import Timeouts
from corrflow.runtime.live.command import open_capture
from corrflow.runtime.live.object_editor import MAX_FROZEN, MAX_STORED
from corrflow.runtime.live.strokes import MAX_BOXES
from corrflow.runtime.live.web import connections, image_jobs, server
from corrflow.runtime.live.web.auth import Access, parse_access
from corrflow.runtime.live.web.live_routes import MAX_VIEWERS

pytestmark = pytest.mark.faults

BOX = {"kind": "box", "points": [[16, 10], [46, 40]]}
TOKEN = "secret-token"


@pytest.fixture
def serve(tmp_path: Path, moving_square) -> Iterator[Callable[..., LivePage]]:
    pages: list[LivePage] = []

    def start(token: str = "") -> LivePage:
        pages.append(LivePage(tmp_path, "fast", moving_square[0], Access("127.0.0.1", 0, token)))
        return pages[-1]

    yield start
    for page in pages:
        page.close()


def connect(page: LivePage, content: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", page.port), timeout=10)
    client.sendall(content)
    return client


def is_closed(client: socket.socket, seconds: float) -> bool:
    """Return True if the server closes the connection in time, whatever it answers before."""
    client.settimeout(seconds)
    try:
        while client.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def request_of(values: object, path: str = "/api/mask") -> bytes:
    body = json.dumps(values).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


# Links, cookies and other sites


def test_a_link_from_another_site_opens_the_page_with_its_token(serve) -> None:
    """Browsers leave SameSite cookies out of a redirect that another site's link led to."""
    page = serve(TOKEN)
    with urllib.request.urlopen(f"{page.url}/?token={TOKEN}", timeout=10) as response:
        assert response.status == 200 and b"page.js" in response.read()
        cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    assert page.ask("GET", "/api/state", Cookie=cookie.split(";")[0])[0] == 200


def test_a_link_without_the_token_is_a_page_that_reloads_once(serve) -> None:
    page = serve(TOKEN)
    for headers, reloads in (({"Sec_Fetch_Site": "cross-site"}, True), ({"Sec_Fetch_Site": "same-origin"}, False)):
        status, content = page.ask("GET", "/", Sec_Fetch_Mode="navigate", **headers)
        assert status == 401 and b"<!doctype html>" in content and b"expected the token" in content
        assert (b"refresh" in content) == reloads
    assert page.ask("GET", "/api/state", Sec_Fetch_Site="cross-site")[1]["error"].startswith("expected the token")


def test_cookies_of_two_cameras_on_one_host_do_not_meet(serve) -> None:
    """Browsers send the cookies of all ports of a host to each of them."""
    pages = serve(TOKEN), serve("another-token")
    cookies = []
    for page in pages:
        with urllib.request.urlopen(f"{page.url}/?token={page.server.access.token}", timeout=10) as response:
            cookies.append(response.headers["Set-Cookie"].split(";")[0])
    assert len({cookie.split("=")[0] for cookie in cookies}) == 2
    for page in pages:
        assert page.ask("GET", "/api/state", Cookie="; ".join(cookies))[0] == 200


def test_no_other_site_shows_a_picture_of_the_page(serve) -> None:
    page = serve()
    for path in ("/", "/page.js", "/api/state", "/stream", "/healthz"):
        with urllib.request.urlopen(page.url + path, timeout=10) as response:
            assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for site in ("cross-site", "same-site"):
        assert page.ask("GET", "/stream", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0] == 403
        assert page.ask("GET", "/", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")[0] == 200


def test_all_addresses_are_printed_as_addresses_that_a_browser_can_open() -> None:
    for text in ("0.0.0.0:80", "[::]:80"):
        urls = parse_access(text, "a-token-given").urls
        assert urls and all("0.0.0.0" not in url and "[::]" not in url for url in urls)
        assert all(url.endswith(":80/?token=a-token-given") for url in urls)
    assert parse_access("[::1]:81").urls == ("http://[::1]:81/",)


# Broken requests


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("DELETE", f"/api/objects/{'9' * 5000}", {}),
        ("PATCH", f"/api/objects/{'9' * 5000}", {"Content-Type": "application/json"}),
        ("GET", f"/api/frozen/{'9' * 5000}", {}),
        ("DELETE", f"/api/frozen/{'9' * 5000}", {}),
        ("GET", f"/api/frozen/1?without={'9' * 5000}", {}),
        ("GET", f"/api/state?frozen={'9' * 5000}", {}),
        ("GET", "/api/state", {"Origin": "http://[::1"}),
        ("GET", "/api/state", {"Origin": "http://["}),
        ("POST", "/api/freeze", {"Content-Length": "x"}),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_long_numbers_and_broken_headers_are_wrong_requests(serve, method: str, path: str, headers: dict) -> None:
    page = serve()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{key}: {value}" for key, value in headers.items())]
    with connect(page, "\r\n".join([*lines, "", ""]).encode()) as client:
        assert client.recv(12) == b"HTTP/1.1 400"


def test_no_broken_head_is_an_error_of_the_server_and_the_log_stays_short(serve, caplog) -> None:
    page, dice = serve(TOKEN), random.Random(0)
    parts = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /api/mask HTTP/1.1\r\n", b"Host: [\r\n", b"Cookie: a=\xff;;=\r\n",
        b"Origin: http://[\xff\r\n", b"Authorization: Bearer \xe9\r\n", b"Content-Length: 9999999\r\n", b"\r\n",
        b"GET /api/objects/%ff%00?token=%ff HTTP/1.1\r\n", b"Transfer-Encoding: chunked\r\n", b"zz\r\n", b"\0" * 99,
        b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Content-Type: application/json\r\n", b"GET  HTTP/9\r\n",
    ]  # fmt: skip
    for _ in range(300):
        with connect(page, b"".join(dice.choices(parts, k=dice.randint(1, 6)))) as client:
            client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                assert client.recv(12)[9:10] != b"5"
    assert page.ask("GET", "/healthz") == (200, b"ok")
    assert len(caplog.records) <= 10, caplog.text


# Silent and slow connections


def test_a_head_or_a_body_that_never_ends_is_dropped(serve, monkeypatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(server, "_BODY_SECONDS", 0.4)
    page = serve()
    with connect(page) as silent, connect(page, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ") as slow:

        def drip() -> None:
            with contextlib.suppress(OSError):
                for _ in range(100):
                    slow.send(b"x")
                    time.sleep(0.05)

        Thread(target=drip, daemon=True).start()
        assert is_closed(silent, 5) and is_closed(slow, 5)
    with connect(page, request_of({})[:-1]) as unfinished:
        assert unfinished.recv(12) == b"HTTP/1.1 400"
        assert is_closed(unfinished, 5)


def test_viewers_that_do_not_read_lose_their_places(serve, monkeypatch) -> None:
    monkeypatch.setattr(connections, "READ_SECONDS", 0.5)
    page = serve()
    page.scale[0] = 8  # frames that fill the buffers at once
    wait_for(lambda: page.session.latest.result.mask.shape == (528, 784))
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_VIEWERS):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", page.port))
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_for(lambda: page.ask("GET", "/api/state")[1]["viewers"] == MAX_VIEWERS)
        assert page.ask("GET", "/stream")[0] == 503
        wait_for(lambda: page.ask("GET", "/api/state")[1]["viewers"] == 0, 60)


SILENT = """
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
clients = []
for number in range(int(sys.argv[2])):
    client = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=30)
    if number % 2:
        client.sendall(b"GET / HTTP/1.1\\r\\nHost")
    clients.append(client)
print("open", flush=True)
sys.stdin.read()
"""


def test_silent_connections_keep_out_nobody_and_leave_descriptors_to_the_camera(serve, caplog) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1300:
        pytest.skip("this system has too few descriptors for the clients")
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        page = serve()
        clients = subprocess.Popen(
            [sys.executable, "-c", SILENT, str(page.port), "1200"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert clients.stdin is not None and clients.stdout is not None
        try:
            assert clients.stdout.readline() == b"open\n"
            assert page.ask("GET", "/healthz") == (200, b"ok")
            assert page.ask("GET", "/api/state")[0] == 200
            before = page.session.capture.counts.connections
            page.unplugged = True
            wait_for(lambda: page.session.capture.counts.connections > before)
            wait_for(lambda goal=page.session.processed: page.session.processed > goal + 3)
            assert page.ask("GET", "/healthz") == (200, b"ok")
        finally:
            clients.stdin.close()
            clients.stdout.close()
            clients.wait(30)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(caplog.text.splitlines()) < 100, caplog.text


def test_a_repeated_error_is_logged_with_one_traceback_and_at_a_bounded_rate(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: clock[0])
    rate, admitted = connections._BoundedRate(), []
    for second in range(120):
        clock[0] = float(second)
        for _ in range(50):
            try:
                raise OSError(24, "Too many open files")
            except OSError:
                record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "accept failed", (), sys.exc_info())
            if rate.filter(record):
                admitted.append(record)
    assert len(admitted) == 10 and sum(record.exc_info is not None for record in admitted) == 2
    assert "Too many open files" in admitted[1].getMessage() and "were left out" in admitted[5].getMessage()


# Drawings


def test_many_boxes_are_refused(serve) -> None:
    page = serve()
    frozen = page.freeze()
    status, answer = page.ask("POST", "/api/mask", {"frozen": frozen, "strokes": [BOX] * (MAX_BOXES + 1)})
    assert status == 400 and f"at most {MAX_BOXES} boxes" in answer["error"]
    assert page.ask("POST", "/api/mask", {"frozen": frozen, "strokes": [BOX] * MAX_BOXES})[0] == 200


class Endless:
    """`drawn_mask` that ends by its check alone; it counts its calls."""

    def __init__(self) -> None:
        self.running = self.most = self.begun = 0
        self.endless = True

    def __call__(self, image, mask, strokes, check) -> np.ndarray:
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            while self.endless:
                check()
                time.sleep(0.01)
        finally:
            self.running -= 1
        return mask == 0


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Endless:
    drawing = Endless()
    monkeypatch.setattr(session_control, "drawn_mask", drawing)
    return drawing


def test_masks_are_computed_one_at_a_time_and_dropped_with_their_clients(serve, endless: Endless) -> None:
    page = serve()
    drawing = request_of({"frozen": page.freeze(), "strokes": [BOX]})
    clients = [connect(page, drawing) for _ in range(image_jobs.MAX_WAITING)]
    wait_for(lambda: endless.running)
    time.sleep(0.3)
    assert page.ask("POST", "/api/mask", {"frozen": 1, "strokes": [BOX]})[0] == 503  # all places are taken
    assert page.ask("POST", "/api/mask", ["no object"])[0] == 503  # not parsed, which would keep the tracker waiting
    before = page.session.processed
    wait_for(lambda: page.session.processed > before + 3)
    for client in clients:
        client.close()
    wait_for(lambda: not endless.running, 5)
    assert (endless.most, endless.begun) == (1, 1)  # those that waited were never begun
    endless.endless = False
    wait_for(lambda: page.ask("POST", "/api/mask", {"frozen": 1, "strokes": [BOX]})[0] == 200, 5)


def test_a_mask_that_takes_too_long_is_given_up(serve, endless: Endless, monkeypatch) -> None:
    monkeypatch.setattr(image_jobs, "JOB_SECONDS", 0.2)
    page = serve()
    status, answer = page.ask("POST", "/api/mask", {"frozen": page.freeze(), "strokes": [BOX]})
    assert status == 503 and "draw less" in answer["error"]


def test_a_request_that_is_no_drawing_has_a_short_body(serve) -> None:
    page = serve()
    assert page.ask("POST", "/api/recording", {"on": [0] * 2**12})[0] == 200
    status, answer = page.ask("POST", "/api/recording", {"on": [0] * 2**14})
    assert status == 400 and "at most 16384 bytes" in answer["error"]


def test_a_freeze_by_others_throws_no_drawing_away(serve, monkeypatch) -> None:
    page = serve()
    frozen = [page.freeze() for _ in range(MAX_FROZEN)]
    for _ in range(5):
        status, answer = page.ask("POST", "/api/freeze", {})
        assert status == 503 and "others are drawing" in answer["error"]
    assert page.ask("POST", "/api/objects", {"frozen": frozen[0], "strokes": [BOX]})[0] == 201
    page.freeze()  # that made room
    monkeypatch.setattr(object_editor, "ABANDONED_SECONDS", 0.5)
    end = time.monotonic() + 1
    while time.monotonic() < end:  # the second page is still there; the third and the fourth have gone
        assert page.ask("GET", f"/api/state?frozen={frozen[1]}")[0] == 200
        time.sleep(0.05)
    page.freeze()
    assert (
        page.ask("GET", f"/api/frozen/{frozen[1]}")[0] == 200 and page.ask("GET", f"/api/frozen/{frozen[2]}")[0] == 400
    )


def test_frozen_frames_share_one_limit_on_stored_frames(serve) -> None:
    page = serve()
    for _ in range(MAX_FROZEN):
        page.freeze()
    wait_for(lambda goal=page.session.processed: page.session.processed > goal + 2 * MAX_STORED)
    stored = page.session.call(lambda: [len(one.since) for one in page.session.editing._frozen.values()])
    assert len(stored) == MAX_FROZEN and sum(stored) <= MAX_STORED and min(stored) > 1


# Secrets


@pytest.mark.parametrize(
    "address", ["http://admin:hunter2@127.0.0.1:9/x", "http://127.0.0.1:9/x?user=a&password=hunter2"]
)
def test_no_password_of_the_camera_is_logged_or_told(address: str, caplog) -> None:
    capture, _ = open_capture(address, Timeouts(5, 5, 0.1))
    capture.start()
    end = time.monotonic() + 20
    while not capture.counts.failures and time.monotonic() < end:
        time.sleep(0.02)
    _, reason = capture.state
    capture.close()
    assert "127.0.0.1:9/x" in reason and "hunter2" not in reason
    assert "trying again" in caplog.text and "hunter2" not in caplog.text
