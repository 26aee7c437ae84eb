"""HTTP client of the page, and waiting for what it shows, for tests."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any


def ask(url: str, method: str, path: str, values: object = None, **headers: str) -> tuple[int, Any]:
    """Send a request with JSON, and return the status with the decoded answer; `_` in a header's name means `-`."""
    data = None if values is None else json.dumps(values).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if data is not None:
        headers = {"Content-Type": "application/json"} | headers
    request = urllib.request.Request(url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, _decoded(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _decoded(error)


def _decoded(response) -> Any:
    body = response.read()
    return json.loads(body) if response.headers.get_content_type() == "application/json" else body


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
