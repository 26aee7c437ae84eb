"""The screen as a source and the window as an output, on a virtual screen; skips where Xvfb is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from corrflow.errors import InputError
from corrflow.runtime.live import window
from corrflow.runtime.live.board_picture import display_scale
from corrflow.runtime.live.capture.readers import Reader, open_reader
from corrflow.runtime.live.reference import load_prompt
from corrflow.runtime.live.window import check_window
from corrflow.runtime.video.source_uri import live_address


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Reader]:
    """A reader of an empty virtual screen of 1024x768, which DISPLAY names."""
    pytest.importorskip("mss")
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb, a virtual screen, is not installed")
    with (tmp_path / "number").open("w+") as number:
        server = subprocess.Popen(
            ["Xvfb", "-displayfd", "1", "-screen", "0", "1024x768x24", "-nolisten", "tcp"],
            stdout=number,
            stderr=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 20
            while not (tmp_path / "number").read_text().endswith("\n"):
                assert server.poll() is None and time.monotonic() < end, "the virtual screen did not start"
                time.sleep(0.05)
            monkeypatch.setenv("DISPLAY", ":" + (tmp_path / "number").read_text().strip())
            address = live_address("screen?rate=30")
            assert address is not None
            reader = open_reader(address, 1.0)
            try:
                yield reader
            finally:
                reader.close()
        finally:
            server.terminate()
            server.wait(10)


def test_the_screen_is_read_at_its_size_and_pace(screen: Reader) -> None:
    begin = time.monotonic()
    for _ in range(10):
        picture = screen.read()
        assert picture is not None and picture.shape == (768, 1024, 3) and picture.dtype == np.uint8
    assert time.monotonic() - begin >= 9 / 30 - 0.01


def test_the_window_shows_the_tracked_mask(screen: Reader, tmp_path, small_artifact, moving_square) -> None:
    """Played in a process of its own, and looked for on the screen by the window's red mask."""
    frames, masks = moving_square
    stand_still(tmp_path / "clip", frames[0])
    cv2.imwrite(str(tmp_path / "mask.png"), masks[0].astype(np.uint8))
    process = subprocess.Popen(
        [sys.executable, "-m", "corrflow.runtime.commands.track_cli", "--camera", "clip", "--init",
         "mask.png", "--show", "--model",
         str(small_artifact)], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while True:
            picture = screen.read()
            assert picture is not None
            blue, green, red = picture.astype(int).transpose(2, 0, 1)
            if (red - np.maximum(blue, green) > 60).sum() > 100 and (picture.max(2) > 0).sum() > 0.8 * 66 * 98:
                break
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                bright = int((picture.max(2) > 0).sum())
                pytest.fail(f"no mask was shown, {bright} pixels are not black; {process.communicate()[1]}")
        process.terminate()
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0 and "tracked" in error, error
    finally:
        process.kill()
        process.wait()


def test_a_window_that_never_shows_is_opened_anew_and_one_that_was_closed_is_not(monkeypatch) -> None:
    calls, visible = [], -1.0
    for name in ("namedWindow", "setMouseCallback", "imshow", "destroyAllWindows"):
        monkeypatch.setattr(window.cv2, name, lambda *given, name=name: calls.append(name))
    monkeypatch.setattr(window.cv2, "waitKeyEx", lambda wait: -1)
    monkeypatch.setattr(window.cv2, "getWindowProperty", lambda *given: visible)
    monkeypatch.setattr(window, "_PATIENCE", 0.0)
    session = SimpleNamespace(latest=SimpleNamespace(result=None), capture=SimpleNamespace(state=("waiting", "")))
    shown = window.Window(session, SimpleNamespace())  # pyright: ignore[reportArgumentType]
    assert shown.step() and calls.count("namedWindow") == calls.count("setMouseCallback") == 2
    visible = 1.0
    assert shown.step() and shown.step() and calls.count("namedWindow") == 2
    visible = 0.0
    assert not shown.step() and calls.count("namedWindow") == 2


def stand_still(folder: Path, picture: np.ndarray) -> None:
    """Two minutes of one picture, at 25 a second, longer than any test looks."""
    folder.mkdir()
    cv2.imwrite(str(folder / "0000.png"), picture)
    for number in range(1, 3000):
        (folder / f"{number:04}.png").hardlink_to(folder / "0000.png")


class Hand:
    """The mouse and the keyboard of the virtual screen, in the window of --show. Places are pixels of the frame."""

    def __init__(self, scale: float) -> None:
        if shutil.which("xdotool") is None:
            pytest.skip("xdotool, which moves the mouse of the virtual screen, is not installed")
        self._scale = scale
        self._window = ""

    def _do(self, *words: object) -> str:
        return subprocess.run(["xdotool", *map(str, words)], check=True, capture_output=True, text=True).stdout

    def find(self) -> bool:
        """Whether the window is there by now; it has the keyboard then."""
        done = subprocess.run(
            ["xdotool", "search", "--onlyvisible", "--name", "^corrflow$"], capture_output=True, text=True
        )
        self._window = (done.stdout.split() or [""])[0]
        if self._window:
            self._do("windowfocus", self._window)
        return bool(self._window)

    def drag(self, *places: tuple[float, float], button: int = 1) -> None:
        shown = [[round((side + 0.5) * self._scale) for side in place] for place in places]
        self._do("mousemove", "--window", self._window, *shown[0])
        self._do("mousedown", button)
        for place in shown[1:]:
            self._do("mousemove", "--window", self._window, *place)
            time.sleep(0.1)
        self._do("mouseup", button)
        time.sleep(0.2)

    def keys(self, *names: str) -> None:
        for name in names:
            self._do("key", name)
            time.sleep(0.15)


def test_an_object_is_drawn_named_corrected_kept_and_removed_in_the_window(
    screen: Reader, tmp_path, small_artifact, moving_square
) -> None:
    """Begun with nothing drawn; the mouse and the keys are those of the virtual screen."""
    frames, masks = moving_square
    stand_still(tmp_path / "clip", frames[0])
    hand = Hand(display_scale(frames[0].shape[:2]))
    command = [sys.executable, "-m", "corrflow.runtime.commands.track_cli", "--camera", "clip", "--show", "--model"]
    command += [str(small_artifact), "--jsonl", "out.jsonl", "--save-prompt", "kept.npz"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    def wait_for(condition, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if process.poll() is not None or time.monotonic() > end:
                keep_screenshot(screen)
                process.kill()
                pytest.fail(f"it never happened; {process.communicate()[1]}")
            time.sleep(0.1)

    def last() -> dict:
        whole, _, _ = (tmp_path / "out.jsonl").read_text().rpartition("\n")  # the newest line may be half written
        return json.loads(whole.splitlines()[-1])

    def names() -> list[str]:
        return [one["name"] for one in last()["objects"]]

    try:
        wait_for(lambda: (tmp_path / "out.jsonl").exists() and "\n" in (tmp_path / "out.jsonl").read_text())
        wait_for(hand.find)
        assert names() == []
        (top, left), (bottom, right) = np.argwhere(masks[0]).min(0).tolist(), np.argwhere(masks[0]).max(0).tolist()
        hand.drag((left - 5, top - 5), (left + 20, top + 20), (right + 5, bottom + 5))
        hand.keys("n", "c", "u", "q", "BackSpace", "p")
        keep_screenshot(screen)
        hand.keys("Return", "Return")
        wait_for(lambda: names() == ["cup"])
        box = np.array(last()["objects"][0]["box"])
        assert np.abs(box - (left, top, right + 1, bottom + 1)).max() <= 4, "the box became the square's mask"
        hand.keys("r")
        wait_for((tmp_path / "kept.npz").exists)
        kept = load_prompt(tmp_path / "kept.npz").objects
        assert [one.name for one in kept] == ["cup"]
        hand.keys("1", "space", "p")
        hand.drag((2, 60), (95, 60))
        hand.keys("Return")
        wait_for(lambda: names() == ["cup"] and (last()["objects"][0]["box"] or [99])[0] < 10)
        hand.keys("x")
        wait_for(lambda: names() == [])
        hand.keys("h")
        time.sleep(0.5)
        keep_screenshot(screen, "help")
        hand.keys("q")
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0 and "tracked" in error, error
    finally:
        process.kill()
        process.wait()


def keep_screenshot(screen: Reader, name: str = "window") -> None:
    """Where CORRFLOW_SCREENSHOTS names a folder, to look at."""
    if folder := os.environ.get("CORRFLOW_SCREENSHOTS"):
        picture = screen.read()
        assert picture is not None
        cv2.imwrite(f"{folder}/{name}.png", picture)


def test_a_screen_that_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV's toolkit would end the process."""
    monkeypatch.setenv("DISPLAY", ":65000")
    with pytest.raises(InputError, match="expected a screen that --show can use"):
        check_window()


def test_a_machine_without_a_screen_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mss")
    monkeypatch.delenv("DISPLAY", raising=False)
    address = live_address("screen")
    assert address is not None
    with pytest.raises(InputError, match="expected a screen"):
        open_reader(address, 1.0)
