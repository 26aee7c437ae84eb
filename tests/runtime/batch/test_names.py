"""Names of files that are no UTF-8, or as long as a file system takes, stop neither a batch nor a single video."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from corrflow.runtime.formats.registry import FORMATS

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")]

LATIN, LONG = os.fsdecode(b"caf\xe9"), "n" * 251
MODEL = ("--model", "quarter", "--short-side", "64")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moving_square) -> Path:
    """Folder with videos/ of three names, and the mask of each in labels/."""
    monkeypatch.chdir(tmp_path)
    Path("videos").mkdir()
    Path("labels").mkdir()
    for name in (LATIN, LONG, "plain"):
        with av.open("video.avi", "w") as container:
            stream = container.add_stream("mjpeg", rate=24)
            stream.height, stream.width, stream.pix_fmt = 66, 98, "yuvj420p"
            for frame in moving_square[0][:3]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
            container.mux(stream.encode(None))
        os.rename("video.avi", f"videos/{name}.avi")
        cv2.imwrite("mask.png", moving_square[1][0].astype(np.uint8))
        os.rename("mask.png", f"labels/{name}.png")
    return tmp_path


def run(command: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    code = f"from corrflow.runtime.commands.{command}_cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=120)


def test_a_batch_of_any_names_writes_every_format(folder: Path) -> None:
    formats = [word for name, entry in FORMATS.items() if entry.write for word in ("--format", name)]
    words = ("videos", "--labels", "labels", "--out", "results", *MODEL, "--workers", "1", *formats)
    done = run("batch", *words)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(Path("results/manifest.json").read_text(encoding="utf-8"))
    assert {item["name"]: item["state"] for item in manifest["items"]} == dict.fromkeys((LATIN, LONG, "plain"), "done")
    for name in (LATIN, LONG):
        assert sorted(os.listdir(f"results/{name}")) == sorted(os.listdir("results/plain"))
    for path in Path("results", LATIN).rglob("*"):
        if path.suffix in (".json", ".jsonl", ".csv", ".html", ".xml", ".yaml", ".txt"):
            path.read_text(encoding="utf-8")


def test_a_list_and_a_check_of_labels_take_such_names(folder: Path) -> None:
    Path("list.txt").write_bytes(b"videos/caf\xe9.avi\nvideos/missing-\xe9.avi\n")
    done = run("batch", "list.txt", "--labels", "labels", "--dry-run")
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert rb"caf\udce9: " in done.stdout and rb"missing-\udce9: failed" in done.stdout


@pytest.mark.parametrize("name", [LATIN, LONG])
def test_a_single_video_of_such_a_name_is_tracked(folder: Path, name: str) -> None:
    source = (f"videos/{name}.avi", "--init", f"labels/{name}.png", *MODEL)
    done = run("track", *source)
    assert done.returncode == 0, done.stderr
    assert [one for one in os.listdir() if one.endswith("_tracked.mp4")]
    for _ in range(2):  # the second replaces the first
        done = run("track", *source, "--masks", LONG, "--jsonl", f"{LONG[:249]}.j", "--coco", f"{LONG[:248]}.co")
        assert done.returncode == 0, done.stderr
    done = run("track", *source, "--format", "davis", "--format", "coco")
    assert done.returncode == 0, done.stderr
    assert not [one for one in os.listdir() if one.endswith((".part", ".old"))]
