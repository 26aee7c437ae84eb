"""The screen as a source and the window as an output, on a virtual screen; skips where Xvfb is not installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from corrflow.plugins.errors import InputError
from corrflow.runtime.live.address import live_address
from corrflow.runtime.live.readers import Reader, open_reader


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Reader]:
    """A reader of an empty virtual screen of 640x480, which DISPLAY names."""
    pytest.importorskip("mss")
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb, a virtual screen, is not installed")
    with (tmp_path / "number").open("w+") as number:
        server = subprocess.Popen(
            ["Xvfb", "-displayfd", "1", "-screen", "0", "640x480x24", "-nolisten", "tcp"],
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
        assert picture is not None and picture.shape == (480, 640, 3) and picture.dtype == np.uint8
    assert time.monotonic() - begin >= 9 / 30 - 0.01


def test_the_window_shows_the_tracked_mask(screen: Reader, tmp_path, small_artifact, moving_square) -> None:
    """Played in a process of its own, and looked for on the screen by the window's red mask."""
    frames, masks = moving_square
    (tmp_path / "clip").mkdir()
    for number in range(400):
        cv2.imwrite(str(tmp_path / "clip" / f"{number}.png"), frames[0])
    cv2.imwrite(str(tmp_path / "mask.png"), masks[0].astype(np.uint8))
    process = subprocess.Popen(
        [sys.executable, "-m", "corrflow.runtime.cli", "--camera", "clip", "--init", "mask.png", "--show", "--artifact",
         str(small_artifact)], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 30
        while True:
            picture = screen.read()
            assert picture is not None
            blue, green, red = picture.astype(int).transpose(2, 0, 1)
            if (red - np.maximum(blue, green) > 60).sum() > 100 and (picture.max(2) > 0).sum() > 0.8 * 66 * 98:
                break
            assert process.poll() is None and time.monotonic() < end, "no mask was shown"
        process.terminate()
        _, error = process.communicate(timeout=10)
        assert process.returncode == 0 and "tracked" in error, error
    finally:
        process.kill()
        process.communicate()


def test_a_machine_without_a_screen_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mss")
    monkeypatch.delenv("DISPLAY", raising=False)
    address = live_address("screen")
    assert address is not None
    with pytest.raises(InputError, match="expected a screen"):
        open_reader(address, 1.0)
