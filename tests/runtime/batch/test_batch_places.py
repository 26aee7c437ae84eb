"""A batch spares users' folders, passes over what it cannot read, and says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from corrflow.errors import InputError
from corrflow.runtime.batch.inputs import find_items
from corrflow.runtime.batch.process_item import clean_staging


def clip(path: Path, frames: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for index in range(frames):
            image = np.full((64, 96, 3), 90, np.uint8)
            image[10:40, 20 + index : 50 + index] = (30, 30, 200)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((64, 96), np.uint8)
    image[10:40, 20:50] = 255
    Image.fromarray(image).save(path)
    return path


def command(root: Path, artifact: Path, *words: str) -> list[str]:
    start = [sys.executable, "-m", "corrflow.runtime.commands.batch_cli", "--model", str(artifact), "--workers", "1"]
    return [*start, "--format", "jsonl", "--format", "davis", *words]


def batch(root: Path, artifact: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(root, artifact, *words), cwd=root, capture_output=True, text=True, timeout=120)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder with vid/clip.mp4 and lab/clip.png."""
    clip(tmp_path / "vid" / "clip.mp4")
    mask(tmp_path / "lab" / "clip.png")
    return tmp_path


def test_a_folder_of_the_user_is_refused_and_the_others_go_on(root: Path, small_artifact: Path) -> None:
    clip(root / "vid" / "other.mp4")
    mask(root / "lab" / "other.png")
    notes = root / "out" / "clip" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("notes")
    done = batch(root, small_artifact, "vid", "--labels", "lab", "--out", "out")
    assert done.returncode == 1 and "failed clip: expected a new or empty folder" in done.stderr
    assert os.listdir(notes.parent) == ["notes.txt"] and (root / "out" / "other" / "tracks.jsonl").exists()


def test_results_are_replaced_whole_but_not_with_a_file_of_the_user(root: Path, small_artifact: Path) -> None:
    words = ("vid", "--labels", "lab", "--out", "out")
    assert batch(root, small_artifact, *words).returncode == 0
    clip(root / "vid" / "clip.mp4", 2)
    assert batch(root, small_artifact, *words).returncode == 0
    assert len(os.listdir(root / "out" / "clip" / "masks")) == 2
    clip(root / "vid" / "clip.mp4", 3)
    (root / "out" / "clip" / "masks" / "better.png").write_bytes(b"by hand")
    done = batch(root, small_artifact, *words)
    assert done.returncode == 1 and "better.png' beside them" in done.stderr
    assert len(os.listdir(root / "out" / "clip" / "masks")) == 3


@pytest.mark.parametrize("out", ["lab", "lab/../lab", "lab/clip", "vid"])
def test_results_apart_from_labels_and_sources(root: Path, small_artifact: Path, out: str) -> None:
    mask(root / "lab" / "clip" / "00003.png")
    before = sorted(path for path in root.rglob("*"))
    done = batch(root, small_artifact, "vid", "--labels", "lab", "--out", out)
    assert done.returncode == 2 and "expected results apart" in done.stderr
    assert sorted(path for path in root.rglob("*")) == before


def test_a_source_named_by_dots_is_not_in_the_folder_of_results(root: Path, small_artifact: Path) -> None:
    (root / "work").mkdir()
    words = command(root, small_artifact, "../vid", "--labels", "../lab", "--out", ".")
    done = subprocess.run(words, cwd=root / "work", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and (root / "work" / "clip" / "item.json").exists()


def test_an_interrupted_batch_keeps_what_is_done_and_says_the_rest(root: Path, small_artifact: Path) -> None:
    clip(root / "vid" / "long.mp4", 2000)
    mask(root / "lab" / "long.png")
    words = command(root, small_artifact, "vid", "--labels", "lab", "--out", "out")
    with subprocess.Popen(words, cwd=root, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        end = time.monotonic() + 60
        while not (root / "out" / "clip" / "item.json").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1)
        begin = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 143 and time.monotonic() - begin < 2.5
    assert error.splitlines()[-1] == "interrupted: what was written so far is valid" and "Traceback" not in error
    states = {one["name"]: one for one in json.loads((root / "out" / "manifest.json").read_text())["items"]}
    assert (states["clip"]["state"], states["long"]["state"]) == ("done", "pending")
    assert states["long"]["reason"].startswith("interrupted")
    assert not (root / "out" / "long").exists() and not (root / "out" / ".staging").exists()


def test_a_result_whose_successor_is_missing_is_restored(tmp_path: Path) -> None:
    for attempt in ("", "attempt-1"):
        old = tmp_path / ".staging" / attempt / "old" / f"clip{attempt}"
        old.mkdir(parents=True)
        (old / "item.json").touch()
    clean_staging(tmp_path / ".staging", tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["clip", "clipattempt-1"]


def test_videos_beside_a_picture_are_done_and_the_rest_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "vid"
    folder.mkdir()
    for name in ("a.mp4", "b.MOV", ".hidden.mp4"):
        (folder / name).touch()
    for name in ("poster.png", "thumb.jpg", "._poster.png"):
        mask(folder / name) if name[0] != "." else (folder / name).touch()
    (folder / "broken.mp4").symlink_to("gone.mp4")
    (folder / "circle").symlink_to("circle")
    notes: list[str] = []
    assert [item.name for item in find_items([str(folder)], notes)] == ["a", "b"]
    assert len(notes) == 1 and all(name in notes[0] for name in ("broken.mp4", "poster.png and 1 more image"))


def test_a_folder_that_cannot_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "a.mp4").touch()
    listed = os.listdir

    def refuse(path: str | Path) -> list[str]:
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", refuse)
    notes: list[str] = []
    assert [item.name for item in find_items([str(tmp_path)], notes)] == ["a"]
    assert notes == [f"passed over in {str(tmp_path)!r}: lost+found (Permission denied)"]
    with pytest.raises(InputError, match=r"got none \(passed over .*Permission denied"):
        monkeypatch.setattr(os, "scandir", refuse)
        find_items([str(tmp_path / "lost+found")])


def test_one_file_by_two_names_is_one_item_and_one_name_of_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "a.mp4").touch()
    (tmp_path / "x" / "link").symlink_to("..")
    sources = [str(tmp_path / name) for name in ("a.mp4", "x/../a.mp4", "x/link/a.mp4")]
    assert len(find_items(sources)) == 1
    for first, second in (("b.mp4", "B.mkv"), ("Caf\u00e9.mp4", "Cafe\u0301.mp4"), ("c.mp4", "c")):
        (tmp_path / first).touch()
        mask(tmp_path / second / "0.png") if "." not in second else (tmp_path / second).touch()
        with pytest.raises(InputError, match="different names"):
            find_items([str(tmp_path / first), str(tmp_path / second)])
