"""Do what a newcomer does by hand: python newcomer.py clip VIDEO | draw VIDEO X0 Y0 X1 Y1"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.browser import Browser, draw, find_chromium

from corrflow.runtime.video.demo_clip import DEMO_FRAMES_PER_SECOND, render_demo_clip


def save_clip(video: str, times: int = 1) -> None:
    """Write the demo clip as a video, without its masks, forth and back this many times in all."""
    frames = [image for image, _ in render_demo_clip()]
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(video, cv2.VideoWriter.fourcc(*"mp4v"), float(DEMO_FRAMES_PER_SECOND), size)
    for time in range(times):
        for frame in frames[:: -1 if time % 2 else 1]:
            writer.write(frame)
    writer.release()


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium with a profile of its own, or end the program in one sentence."""
    program = find_chromium()
    if program is None:
        sys.exit("expected Chromium to open pages with, found none; install it, or run the command by hand")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # Chromium's children end later
        browser = Browser(program, Path(profile))
        try:
            yield browser
        finally:
            browser.close()


def draw_object(video: str, box: list[float]) -> None:
    """Run corrflow-label, drag a box on its page, press Add and Done, and print what the command prints."""
    with open_browser() as browser:
        command = ["corrflow-label", video, "--no-browser"]
        print("+", *command, flush=True)
        label = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert label.stderr is not None
        address = re.search(r"open (http\S+)", label.stderr.readline())
        assert address is not None
        browser.open(address[1], 1280, 800, False)
        browser.wait_for("document.getElementById('image').naturalWidth > 0")
        browser.wait_for("document.getElementById('guide').textContent.startsWith('Draw a box')")
        x0, y0, x1, y1 = box
        frame_width = browser.value("document.getElementById('image').naturalWidth")
        draw(browser, [(x0, y0), ((x0 + x1) / 2, (y0 + y1) / 2), (x1, y1)], False, frame_width)
        browser.wait_for("!document.getElementById('preview').hidden")
        page = cv2.resize(browser.screenshot(), (800, 500), interpolation=cv2.INTER_AREA)
        cv2.imwrite("page.webp", page, [cv2.IMWRITE_WEBP_QUALITY, 80])
        browser.press("#submit")
        browser.wait_for("document.querySelector('#objects li')")
        browser.press("#done")
        print(label.communicate(timeout=60)[1], end="")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["clip", path]:
            save_clip(path)
        case ["draw", path, *numbers] if len(numbers) == 4:
            draw_object(path, [float(number) for number in numbers])
        case _:
            sys.exit(__doc__)
