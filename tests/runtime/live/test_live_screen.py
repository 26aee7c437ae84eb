"""The screen as a source and the window as an output, on a virtual screen; skips where Xvfb is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from corrflow.errors import InputError
from corrflow.runtime.live import window
from corrflow.runtime.live.capture.readers import Reader, open_reader
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
        image = screen.read()
        assert image is not None and image.shape == (768, 1024, 3) and image.dtype == np.uint8
    assert time.monotonic() - begin >= 9 / 30 - 0.01


def retried(check: Callable[[Path], None], folder: Path) -> None:
    """Run a check in a folder of its own, up to three times: without a window manager some windows stay black."""
    for attempt in range(3):
        (folder / str(attempt)).mkdir()
        try:
            check(folder / str(attempt))
        except pytest.fail.Exception:
            if attempt == 2:
                raise
        else:
            return


@pytest.mark.alone  # a window that has to keep the focus, in time
def test_the_window_shows_the_tracked_mask(screen: Reader, tmp_path, small_artifact, moving_square) -> None:
    retried(lambda folder: check_mask(screen, folder, small_artifact, moving_square), tmp_path)


def check_mask(screen: Reader, tmp_path: Path, small_artifact: Path, moving_square) -> None:
    """Played in a process of its own, and looked for on the screen by the window's red mask."""
    frames, masks = moving_square
    loop(tmp_path / "clip", frames[:1])
    cv2.imwrite(str(tmp_path / "mask.png"), masks[0].astype(np.uint8))
    process = subprocess.Popen(
        [sys.executable, "-m", "corrflow.runtime.commands.track_cli", "--camera", "clip", "--init",
         "mask.png", "--show", "--model",
         str(small_artifact)], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 25
        while True:
            image = screen.read()
            assert image is not None
            blue, green, red = image.astype(int).transpose(2, 0, 1)
            if (red - np.maximum(blue, green) > 60).sum() > 100 and (image.max(2) > 0).sum() > 0.8 * 66 * 98:
                break
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                bright = int((image.max(2) > 0).sum())
                pytest.fail(f"no mask was shown, {bright} pixels are not black; {process.communicate()[1]}")
        process.terminate()
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0 and "tracked" in error, error
    finally:
        process.kill()
        process.communicate()


def test_a_window_that_never_shows_is_opened_anew_and_one_that_was_closed_is_not(monkeypatch) -> None:
    calls, visible = [], -1.0
    for name in ("namedWindow", "imshow", "destroyAllWindows"):
        monkeypatch.setattr(window.cv2, name, lambda *values, name=name: calls.append(name))
    monkeypatch.setattr(window.cv2, "waitKeyEx", lambda wait: -1)
    monkeypatch.setattr(window.cv2, "getWindowProperty", lambda *values: visible)
    monkeypatch.setattr(window, "_REOPEN_SECONDS", 0.0)
    session = SimpleNamespace(latest=SimpleNamespace(result=None), capture=SimpleNamespace(state=("waiting", "")))
    shown = window.Window(session, SimpleNamespace(recording=False))  # pyright: ignore[reportArgumentType]
    assert shown.step() and calls.count("namedWindow") == 2
    visible = 1.0
    assert shown.step() and shown.step() and calls.count("namedWindow") == 2
    visible = 0.0
    assert not shown.step() and calls.count("namedWindow") == 2


def loop(folder: Path, frames: np.ndarray) -> None:
    """Write the frames again and again as two minutes of images, longer than any test takes."""
    folder.mkdir()
    for number in range(3000):
        path = folder / f"{number:04}.png"
        if number < len(frames):
            cv2.imwrite(str(path), frames[number])
        else:
            path.hardlink_to(folder / f"{number % len(frames):04}.png")


@pytest.mark.alone  # a window that has to keep the focus, in time
def test_the_keys_freeze_record_and_quit(screen: Reader, tmp_path, small_artifact, moving_square) -> None:
    if shutil.which("xdotool") is None:
        pytest.skip("xdotool, which presses keys on the virtual screen, is not installed")
    retried(lambda folder: check_keys(screen, folder, small_artifact, moving_square), tmp_path)


def check_keys(screen: Reader, tmp_path: Path, small_artifact: Path, moving_square) -> None:
    """Press keys of the virtual screen, with the viewer in a process of its own."""
    frames, masks = moving_square
    loop(tmp_path / "clip", np.concatenate([frames, frames[-2:0:-1]]))
    cv2.imwrite(str(tmp_path / "mask.png"), masks[0].astype(np.uint8))
    command = [sys.executable, "-m", "corrflow.runtime.commands.track_cli", "--camera", "clip", "--init", "mask.png"]
    process = subprocess.Popen(
        [*command, "--show", "--model", str(small_artifact)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )

    def xdotool(*words: str) -> str:
        return subprocess.run(["xdotool", *words], capture_output=True, text=True).stdout

    def wait_for(condition, seconds: float = 25) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.fail(f"it never happened; {process.communicate()[1]}")
            time.sleep(0.1)

    def view() -> np.ndarray:
        """The frame in the window, above the status line and left of the screen's edge."""
        image = screen.read()
        assert image is not None
        return image[:400, :600]

    def moves() -> bool:
        first = view()
        time.sleep(1.0)
        return not np.array_equal(first, view())

    def recording() -> bool:
        path = tmp_path / "clip_recorded.mkv"
        return path.exists() and path.stat().st_size > 0

    try:
        # A search finds nothing while any window goes, so the one that has found is kept.
        found: list[str] = []
        wait_for(lambda: found.extend(xdotool("search", "--onlyvisible", "--name", "^corrflow$").split()) or found)
        xdotool("windowfocus", found[0])
        wait_for(moves)
        xdotool("key", "space")
        wait_for(lambda: not moves())
        keep_screenshot(screen, "window-frozen")
        xdotool("key", "space")
        wait_for(moves)
        assert not recording()
        xdotool("key", "Left")  # a key without a meaning
        xdotool("key", "r")
        wait_for(recording)
        keep_screenshot(screen, "window-recording")
        xdotool("key", "q")
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0 and "tracked" in error, error
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("code", "goes_on"),
    [(ord("q"), False), (ord("Q"), False), (27, False), (0xFF1B, False), (0x10001B, False), (0xFF51, True),
     (0xFF52, True), (ord("x"), True), (0xFFE1, True)],
)  # fmt: skip
def test_only_q_and_escape_quit_on_every_toolkit(monkeypatch, code: int, goes_on: bool) -> None:
    recorded: list[bool] = []
    shown = fake_window(monkeypatch, [code], recorded)
    assert shown.step() is goes_on and not recorded


def test_space_holds_the_view_and_r_toggles_the_recording(monkeypatch) -> None:
    recorded: list[bool] = []
    shown = fake_window(monkeypatch, [-1, ord(" "), -1, ord(" "), -1, ord("r")], recorded)
    is_newest = []
    for number in range(6):
        shown._session.latest.result = number  # pyright: ignore[reportAttributeAccessIssue]
        assert shown.step()
        is_newest.append(shown._result == number)
    assert is_newest == [True, True, False, False, True, True]
    end = time.monotonic() + 5
    while recorded != [True]:
        assert time.monotonic() < end
        time.sleep(0.01)


def fake_window(monkeypatch, codes: list[int], recorded: list[bool], visible: float = 1.0) -> window.Window:
    """A window without a screen, which gets the key codes one after another."""
    for name in ("namedWindow", "imshow", "destroyAllWindows"):
        monkeypatch.setattr(window.cv2, name, lambda *values: None)
    monkeypatch.setattr(window.cv2, "waitKeyEx", lambda wait: codes.pop(0) if codes else -1)
    monkeypatch.setattr(window.cv2, "getWindowProperty", lambda *values: visible)
    monkeypatch.setattr(window.Window, "_draw", lambda self: None)
    session = SimpleNamespace(latest=SimpleNamespace(result=None), capture=SimpleNamespace(state=("running", "")))
    api = SimpleNamespace(recording=False, record=recorded.append)
    return window.Window(session, api)  # pyright: ignore[reportArgumentType]


def keep_screenshot(screen: Reader, name: str = "window") -> None:
    """Save a screenshot where CORRFLOW_SCREENSHOTS names a folder."""
    if folder := os.environ.get("CORRFLOW_SCREENSHOTS"):
        image = screen.read()
        assert image is not None
        cv2.imwrite(f"{folder}/{name}.png", image)


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
