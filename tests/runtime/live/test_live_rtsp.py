"""A real RTSP stream on the loopback address, which stops and returns; skips where GStreamer's server is missing.

On Debian: gstreamer1.0-plugins-good, gstreamer1.0-plugins-ugly, gir1.2-gst-rtsp-server-1.0, python3-gi.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import HELPERS
from PIL import Image

SIZE = 98, 66


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def serve() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a server that shows a moving ball at rtsp://127.0.0.1:PORT/ball; its end is the stream's."""
    python = next((path for path in ("/usr/bin/python3", shutil.which("python3") or "") if Path(path).exists()), "")
    asked = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if not python or subprocess.run([python, "-c", asked], capture_output=True).returncode:
        pytest.skip("GStreamer's RTSP server is not installed for the system's Python")
    servers: list[subprocess.Popen] = []

    def start(port: int, size: tuple[int, int]) -> subprocess.Popen:
        script = HELPERS / "rtsp_server.py"
        command = [python, str(script), *map(str, (port, *size))]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        servers.append(server)
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            pytest.skip("GStreamer has no encoder of H.264")
        return server

    yield start
    for server in servers:
        server.kill()
        server.communicate()


def test_a_stream_that_stops_and_returns_larger_is_followed(serve, tmp_path: Path, small_artifact: Path) -> None:
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[20:40, 20:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    port = free_port()
    server = serve(port, SIZE)
    command = [sys.executable, "-m", "corrflow.runtime.commands.track_cli", "--camera", f"rtsp://127.0.0.1:{port}/ball"]
    command += ["--init", "mask.png", "--jsonl", "out.jsonl", "--timeout", "2", "--model", str(small_artifact)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    def lines() -> list[dict]:
        path = tmp_path / "out.jsonl"
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 90
        while not condition():
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.fail(f"it never happened; {process.communicate()[1]}")
            time.sleep(0.05)

    try:
        wait_for(lambda: len(lines()) > 10)
        server.kill()
        server.communicate()
        server = serve(port, (2 * SIZE[0], 2 * SIZE[1]))
        wait_for(lambda: sum(line["size"] == [2 * SIZE[0], 2 * SIZE[1]] for line in lines()) > 10)
        process.terminate()
        error = process.communicate(timeout=20)[1]
    finally:
        process.kill()
        process.communicate()
    found = re.search(r"captured (\d+) frames: (\d+) tracked, (\d+) dropped, (\d+) reconnects", error)
    assert process.returncode == 0 and found is not None, error
    captured, tracked, dropped, reconnects = map(int, found.groups())
    assert captured == tracked + dropped and tracked == len(lines()) and reconnects >= 1
    assert {tuple(line["size"]) for line in lines()} == {SIZE, (2 * SIZE[0], 2 * SIZE[1])}
    assert all([one["id"] for one in line["objects"]] == [1] for line in lines())
    assert "trying again" in error


def test_a_path_that_the_server_does_not_have_is_said_and_tried_again(serve, tmp_path: Path, small_artifact) -> None:
    port = free_port()
    serve(port, SIZE)
    command = [
        sys.executable,
        "-m",
        "corrflow.runtime.commands.track_cli",
        "--camera",
        f"rtsp://me:secret@127.0.0.1:{port}/nothing",
    ]
    command += ["--serve", "127.0.0.1:0", "--timeout", "1", "--model", str(small_artifact)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = ""
        while said.count("trying again") < 2:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    assert "/nothing cannot be opened" in said and "secret" not in said, said
