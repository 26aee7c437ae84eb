"""Standard error that is closed, has no reader or is on a full disk: every command does its work all the same."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.page_client import ask
from helpers.panning import write_panning_images

from corrflow.errors import InputError, errors_reported
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.status_stream import DroppingStream, status_lines_dropped

pytestmark = pytest.mark.faults

TRACK = ("clip", "--init", "mask.png", "--short-side", "64", "--threads", "1")
LEARN = ("--batch", "1", "--crop", "32", "--radius", "2", "--threads", "1", "--cache", "cache", "--steps", "2")
COMMANDS = {
    "track": (("track", *TRACK, "--jsonl", "file.jsonl"), "file.jsonl"),
    "track live": (("track", "--camera", *TRACK, "--jsonl", "live.jsonl"), "live.jsonl"),
    "batch": (("batch", "clip", "--labels", "labels", "--out", "results", "--short-side", "64", "--workers", "1"),
              "results/manifest.json"),
    "train": (("train", "--data", "videos", "--out", "run", *LEARN), "run/checkpoint.safetensors"),
    "prepare": (("prepare", "videos", "shards", "--workers", "1"), "shards/report.json"),
    "export": (("export", "settings", "quarter", "artifact", "settings.json"), "artifact/artifact.json"),
    "evaluate": (("evaluate", "kinds", "davis", "--split", "val", "--out", "kinds.json"), "kinds.json"),
    "bench": (("bench", "op", "--case", "2:3", "--cells", "8x8", "--channels", "8", "--rounds", "1", "--form", "unfold",
               "--no-memory", "--json", "op.json"), "op.json"),
    "doctor": (("doctor", "--json"), None),
}  # fmt: skip
LEARNING = ("train", "bench")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moving_square, small_davis: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("clip", "labels"):
        Path(name).mkdir()
    for index, frame in enumerate(moving_square[0]):
        cv2.imwrite(f"clip/{index:05d}.png", frame)
    for name in ("mask.png", "labels/clip.png"):
        cv2.imwrite(name, moving_square[1][0].astype(np.uint8))
    description = json.loads((resolve_model("quarter") / "artifact.json").read_text())
    Path("settings.json").write_text(json.dumps(description["tracking"]))
    write_panning_images(tmp_path / "videos" / "0", 0)
    return tmp_path


@contextmanager
def broken(kind: str) -> Iterator[dict]:
    """Arguments of `Popen` for a standard error that cannot be written."""
    if kind == "closed":
        yield {"preexec_fn": lambda: os.close(2)}
        return
    if kind == "full disk":
        if not os.path.exists("/dev/full"):
            pytest.skip("this system has no /dev/full")
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    try:
        yield {"stderr": descriptor}
    finally:
        os.close(descriptor)


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", f"from corrflow.entry_points import {name}; {name}()", *arguments]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_without_a_reader_of_its_messages_does_its_work(name: str, folder: Path) -> None:
    words, result = COMMANDS[name]
    if words[0] in LEARNING:
        pytest.importorskip("torch")
    with broken("no reader") as arguments:
        done = subprocess.run(command(*words), stdout=subprocess.PIPE, timeout=300, **arguments)
    assert done.returncode == 0, done.stdout
    assert result is None or (folder / result).stat().st_size


@pytest.mark.parametrize("kind", ["closed", "full disk"])
def test_live_tracking_goes_on_with_its_log_closed_or_on_a_full_disk(kind: str, folder: Path) -> None:
    words = ["track", "--camera", *TRACK, "--jsonl", "live.jsonl", "--verbose"]
    with broken(kind) as arguments:
        done = subprocess.run(command(*words), stdout=subprocess.PIPE, timeout=120, **arguments)
    assert done.returncode == 0 and done.stdout == b""
    assert len((folder / "live.jsonl").read_text().splitlines()) >= 1


def test_labels_are_saved_without_a_reader_of_the_messages(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    words = ("clip", "--no-browser", "--serve", f"127.0.0.1:{port}", "--token", "a-token-given")
    with broken("no reader") as arguments:
        process = subprocess.Popen(command("label", *words), **arguments)
    done = threading.Event()

    def finish() -> None:
        for _ in range(1000):
            try:
                url, access = f"http://127.0.0.1:{port}", {"Authorization": "Bearer a-token-given"}
                frozen = ask(url, "POST", "/api/freeze", {}, **access)[1]["frozen"]
                drawing = {"frozen": frozen, "points": [[30, 20]]}
                assert ask(url, "POST", "/api/objects", drawing, **access)[0] == 201
                assert ask(url, "POST", "/api/done", {}, **access)[0] == 200
                return done.set()
            except OSError:
                time.sleep(0.1)

    threading.Thread(target=finish, daemon=True).start()
    try:
        assert process.wait(120) == 0 and done.is_set()
    finally:
        process.kill()
        process.wait()
    assert (folder / "clip_points.csv").stat().st_size


def test_an_error_that_cannot_be_printed_keeps_its_exit_code(folder: Path) -> None:
    for kind in ("no reader", "closed", "full disk"):
        with broken(kind) as arguments:
            done = subprocess.run(command("track", "none.mp4", "--init", "mask.png"), timeout=120, **arguments)
        assert done.returncode == 2, kind


class _Failing:
    """Stream on a disk that is full until `space` is set."""

    def __init__(self) -> None:
        self.space, self.lines = False, []

    def write(self, text: str) -> int:
        if not self.space:
            raise OSError(28, "No space left on device")
        self.lines.append(text)
        return len(text)

    def flush(self) -> None:
        if not self.space:
            raise OSError(28, "No space left on device")

    def isatty(self) -> bool:
        return False


def test_lines_come_again_once_there_is_space(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = _Failing()
    monkeypatch.setattr(sys, "stderr", raw)
    with status_lines_dropped():
        print("lost", file=sys.stderr, flush=True)
        raw.space = True
        print("written", file=sys.stderr, flush=True)
        assert not sys.stderr.isatty()
    assert sys.stderr is raw and "".join(raw.lines) == "written\n"


def test_a_stream_that_fails_to_the_end_stays_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python flushes `sys.stderr` at its end, and a failure there makes the exit code 120."""
    monkeypatch.setattr(sys, "stderr", _Failing())
    with pytest.raises(SystemExit) as stopped, errors_reported():
        raise InputError("expected a, got b; do c")
    assert stopped.value.code == 2 and isinstance(sys.stderr, DroppingStream)


def test_progress_bars_and_logs_draw_into_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    from rich.console import Console
    from rich.progress import Progress

    call: Callable[[], None]
    monkeypatch.setattr(sys, "stderr", _Failing())
    with status_lines_dropped():
        console = Console(stderr=True, force_terminal=True)
        with Progress(console=console) as bars:
            bar = bars.add_task("work", total=2)
            for call in (lambda: console.print("a note"), lambda: logging.getLogger("corrflow").warning("a warning")):
                call()
                bars.advance(bar)
