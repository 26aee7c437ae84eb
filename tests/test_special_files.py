"""Special outputs: standard output, pipes and devices are written through, and never replaced."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from corrflow.atomic_files import check_writable, write_file
from corrflow.errors import InputError
from corrflow.output_paths import check_apart
from corrflow.special_files import is_special

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="pipes and descriptors with names"),
]

TRACK = "import sys; from corrflow.runtime.commands.track_cli import main; main()"


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moving_square) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("clip").mkdir()
    for index, frame in enumerate(moving_square[0][:3]):
        cv2.imwrite(f"clip/{index:05d}.png", frame)
    cv2.imwrite("mask.png", moving_square[1][0].astype(np.uint8))
    return tmp_path


def track(*arguments: str, code: str = TRACK, **options) -> subprocess.CompletedProcess[str]:
    words = ("clip", "--init", "mask.png", "--model", "quarter", "--short-side", "64", "--threads", "1", *arguments)
    return subprocess.run([sys.executable, "-c", code, *words], text=True, timeout=120, **options)


def frames_of(text: str) -> list[int]:
    return [json.loads(line)["frame"] for line in text.splitlines()]


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output_holds_the_lines_alone(clip: Path, name: str) -> None:
    done = track("--jsonl", name, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert frames_of(done.stdout) == [0, 1, 2] and "3 frames" in done.stderr
    assert stat.S_ISLNK(os.lstat("/dev/stdout").st_mode) and sorted(os.listdir()) == ["clip", "mask.png"]


def test_what_others_print_goes_to_standard_error(clip: Path) -> None:
    code = TRACK.replace("main()", "import corrflow.runtime.commands.track as body; run = body.run_track; "
                         "body.run_track = lambda *all: (print('a message'), __import__('os').system('echo child'), "
                         "run(*all)); main()")  # fmt: skip
    done = track("--jsonl", "-", code=code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0 and frames_of(done.stdout) == [0, 1, 2]
    assert "a message" in done.stderr and "child" in done.stderr


def test_a_redirected_output_is_continued_and_not_replaced(clip: Path) -> None:
    Path("all.txt").write_text("first\n")
    before = os.stat("all.txt").st_ino
    with open("all.txt", "a") as file:
        assert track("--jsonl", "/dev/stdout", stdout=file, stderr=subprocess.PIPE).returncode == 0
    first, *lines = Path("all.txt").read_text().splitlines()
    assert first == "first" and len(lines) == 3 and os.stat("all.txt").st_ino == before


@pytest.mark.parametrize("option", ["--jsonl", "--coco"])
def test_a_pipe_is_written_through(clip: Path, option: str) -> None:
    os.mkfifo("pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_bytes()), daemon=True)
    reader.start()
    done = track(option, "pipe", stderr=subprocess.PIPE)
    reader.join(10)
    assert done.returncode == 0, done.stderr
    assert len(frames_of(received[0].decode()) if option == "--jsonl" else json.loads(received[0])["images"]) == 3
    assert stat.S_ISFIFO(os.stat("pipe").st_mode) and sorted(os.listdir()) == ["clip", "mask.png", "pipe"]


def test_the_null_device_takes_any_number_of_outputs(clip: Path) -> None:
    before = os.stat("/dev/null")
    done = track("--jsonl", "/dev/null", "--coco", "/dev/null", stderr=subprocess.PIPE)
    after = os.stat("/dev/null")
    assert done.returncode == 0, done.stderr
    assert (before.st_ino, before.st_rdev, before.st_mode) == (after.st_ino, after.st_rdev, after.st_mode)
    assert not [name for name in os.listdir("/dev") if name.endswith(".part")]


def test_a_reader_that_goes_ends_the_command_in_one_sentence(clip: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = track("--jsonl", "-", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 1 and "Broken pipe" in done.stderr and "Traceback" not in done.stderr


def test_one_output_of_a_pipe_and_no_other(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    write = Path("/dev/null")
    check_apart([], [write, write])
    with pytest.raises(InputError, match="apart from each other"):
        check_apart([], [tmp_path / "pipe", tmp_path / "pipe"])
    assert is_special(tmp_path / "pipe") and not is_special(tmp_path) and not is_special(tmp_path / "new")


def test_a_closed_descriptor_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got a closed one"):
        check_writable(Path("/dev/fd/987"))
    write_file("/dev/null", "text")


def test_a_live_session_writes_to_standard_output_and_to_pipes(clip: Path) -> None:
    os.mkfifo("pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_bytes()), daemon=True)
    reader.start()
    words = ["--camera", "clip", "--init", "mask.png", "--model", "quarter", "--short-side", "64", "--jsonl", "-"]
    run = [sys.executable, "-c", TRACK, *words, "--csv", "pipe"]
    Path("points.csv").write_text("name,x,y\nnose,30,24\n")
    done = subprocess.run([*run, "--keypoints", "points.csv"], capture_output=True, text=True, timeout=120)
    reader.join(10)
    assert done.returncode == 0, done.stderr
    assert frames_of(done.stdout)[0] == 0 and received[0].startswith(b"frame,")
    assert sorted(os.listdir()) == ["clip", "mask.png", "pipe", "points.csv"]
