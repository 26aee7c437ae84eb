"""The page in a real Chromium without a screen, driven by its debugging pipe; skips where none is installed."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
from helpers.browser import Browser, draw, find_chromium
from helpers.live_page import LivePage

from corrflow.runtime.formats.mask_png import read_mask_objects
from corrflow.runtime.formats.points_csv import read_keypoints
from corrflow.runtime.live.web.auth import Access

for library in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(library)

MAX_VIEWERS = 8

FRAME_WIDTH = 392

SIZES = {"desktop": (1280, 800, False), "phone": (390, 844, True)}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed")
    opened = Browser(program, tmp_path / "profile")
    yield opened
    opened.close()


@pytest.fixture
def clip(tmp_path: Path, moving_square) -> Path:
    """The moving square, there and back, as a folder of images."""
    folder = tmp_path / "clip"
    folder.mkdir()
    frames = moving_square[0].repeat(4, 1).repeat(4, 2)  # large enough to draw on
    for number, frame in enumerate(np.concatenate([frames, frames[-2:0:-1]])):
        cv2.imwrite(str(folder / f"{number:02d}.png"), frame)
    return folder


@pytest.fixture
def serve(tmp_path: Path, small_artifact: Path) -> Iterator[Callable[..., str]]:
    """Starts a command of the page with the arguments, and returns the page's address."""
    processes: list[subprocess.Popen[str]] = []

    def start(command: str, *arguments: str) -> str:
        options = ["--serve", "127.0.0.1:0", "--model", str(small_artifact), "--short-side", "128", "--threads", "1"]
        process = subprocess.Popen(
            [sys.executable, "-m", f"corrflow.runtime.commands.{command}", *arguments, *options],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        processes.append(process)
        assert process.stderr is not None
        found = re.search(r"open (http\S+)", process.stderr.readline())
        assert found is not None
        return found[1]

    yield start
    for process in processes:
        if "label_cli" not in str(process.args):  # ended by its Done button
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0


# The leftmost column of the square's red, and of the bright outline that the overlay alone has; -1 where there is none.
LEFT = """
(() => {
  const live = document.getElementById('image'), copy = document.createElement('canvas');
  [copy.width, copy.height] = [live.naturalWidth, live.naturalHeight];
  const pen = copy.getContext('2d');
  pen.drawImage(live, 0, 0);
  const {data} = pen.getImageData(0, 0, copy.width, copy.height);
  let red = copy.width, bright = copy.width;
  for (let i = 0; i < data.length; i += 4) {
    const [r, g, b] = [data[i], data[i + 1], data[i + 2]], column = i / 4 % copy.width;
    if (r - g > 80 && g < 110) red = Math.min(red, column);
    if (r > 190 && g > 130 && b > 130) bright = Math.min(bright, column);
  }
  return [red, bright].map((column) => column < copy.width ? column : -1);
})()
"""


@pytest.mark.parametrize("size", SIZES)
def test_a_box_drawn_on_the_running_stream_is_followed_and_removed(
    browser: Browser, serve: Callable[..., str], clip: Path, size: str, tmp_path: Path
) -> None:
    width, height, phone = SIZES[size]
    count = len(list(clip.iterdir()))
    for number in range(count, 3000):  # over a minute
        os.link(clip / f"{number % count:02d}.png", clip / f"{number}.png")
    browser.open(serve("track_cli", "--camera", str(clip)), width, height, phone)
    browser.wait_for("document.getElementById('image').naturalWidth === 392")
    browser.wait_for("document.getElementById('numbers').textContent.includes('frames/s')")
    assert browser.value("document.documentElement.scrollWidth") <= width, "the page is wider than its screen"
    keep(browser, tmp_path, f"{size}-open")

    assert browser.value(LEFT)[1] < 0
    shape = "(({width, height}) => width / height)(document.getElementById('canvas').getBoundingClientRect())"
    browser.wait_for(f"Math.abs({shape} - 98 / 66) < 0.01")

    # Around the square wherever it is: its way leads from (80, 56) to (188, 164) in pixels of the frame.
    draw(browser, [(66, 42), (150, 120), (206, 180)], phone, FRAME_WIDTH)
    browser.wait_for("!document.getElementById('preview').hidden")
    keep(browser, tmp_path, f"{size}-drawn")
    browser.value("document.getElementById('name').value = 'square'")
    browser.press("#submit")
    browser.wait_for("document.querySelector('#objects li.tracked')")
    assert browser.value("document.querySelector('#objects input').value") == "square"

    places = set()
    end = time.monotonic() + 30
    while len(places) < 5:
        # The list names the object before its outline is shown, and a slow machine drops frames of the camera.
        red, bright = browser.value(LEFT)
        if bright >= 0:
            assert abs(red - bright) < 24, "the outline is not where the square is"
            places.add(bright)
        assert time.monotonic() < end, f"the outline was only at {places}"
        time.sleep(0.1)
    keep(browser, tmp_path, f"{size}-tracked")

    browser.press("#objects .remove")
    browser.wait_for("!document.querySelector('#objects li')")
    browser.wait_for(f"({LEFT})[1] < 0")
    assert not browser.complaints


@pytest.mark.parametrize("size", SIZES)
def test_objects_are_labelled_saved_and_tracked_on_the_page(
    browser: Browser, serve: Callable[..., str], clip: Path, size: str, tmp_path: Path
) -> None:
    width, height, phone = SIZES[size]
    browser.open(serve("label_cli", str(clip), "--no-browser"), width, height, phone)
    browser.wait_for("document.getElementById('image').naturalWidth === 392")
    browser.wait_for("document.getElementById('guide').textContent.startsWith('Draw a box')")
    assert browser.value("document.documentElement.scrollWidth") <= width, "the page is wider than its screen"
    keep(browser, tmp_path, f"label-{size}-open")

    draw(browser, [(66, 42), (150, 120), (206, 180)], phone, FRAME_WIDTH)
    browser.wait_for("!document.getElementById('preview').hidden")
    browser.value("document.getElementById('name').value = 'square'")
    keep(browser, tmp_path, f"label-{size}-drawn")
    browser.press("#submit")
    browser.wait_for("document.querySelector('#objects input').value === 'square'")

    browser.press("[data-tool=points]")
    draw(browser, [(100, 80)], phone, FRAME_WIDTH)
    draw(browser, [(140, 110)], phone, FRAME_WIDTH)
    browser.wait_for("document.querySelectorAll('#point-names input').length === 2")
    browser.value("(i => { i.value = 'corner'; i.dispatchEvent(new Event('input')); })"
                  "(document.querySelector('#point-names input'))")  # fmt: skip
    keep(browser, tmp_path, f"label-{size}-points")
    browser.press("#save")  # adds the drawing first
    browser.wait_for("document.getElementById('next').textContent.startsWith('corrflow-track')")
    assert [one.id for one in read_mask_objects([tmp_path / "clip_mask.png"])] == [1]
    (points,) = read_keypoints(tmp_path / "clip_points.csv", 2)
    assert points.point_names == ("corner", "2")
    assert np.abs(points.points - [[100, 80], [140, 110]]).max() < 2

    browser.press("#undo")
    browser.wait_for("document.querySelectorAll('#objects li').length === 1")
    browser.press("#track")
    browser.wait_for("document.getElementById('result').videoWidth === 392", 60)
    keep(browser, tmp_path, f"label-{size}-tracked")
    browser.press("#track")
    browser.wait_for("document.getElementById('result').hidden")
    browser.press("#done")
    browser.wait_for("document.body.textContent.includes('this page can be closed')")
    assert not browser.complaints


def test_a_link_from_another_site_opens_the_page_which_tells_when_it_has_no_place(
    browser: Browser, moving_square, tmp_path: Path
) -> None:
    page = LivePage(tmp_path, "fast", moving_square[0], Access("127.0.0.1", 0, "secret-token"))
    stream = b"GET /stream?token=secret-token HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    viewers = []
    (tmp_path / "other.html").write_text(f'<a href="{page.server.access.urls[0]}">the camera</a>')
    (tmp_path / "back.html").write_text(f'<a href="{page.url}/">the camera again</a>')
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    other = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=other.serve_forever, daemon=True).start()
    try:
        for _ in range(MAX_VIEWERS):
            viewers.append(socket.create_connection(("127.0.0.1", page.port), timeout=10))
            viewers[-1].sendall(stream)
            Thread(target=read_all, args=(viewers[-1],), daemon=True).start()
        for name in ("other", "back"):  # by the link with the token, and by one without, which the cookie opens
            browser.open(f"http://localhost:{other.server_port}/{name}.html", 1280, 800, False)
            browser.wait_for("document.querySelector('a')")
            browser.press("a")
            browser.wait_for("document.querySelector('#refused')?.textContent.includes('8 others are watching')", 60)
            assert browser.value("location.href") == page.url + "/"
        keep(browser, tmp_path, "refused")
        viewers.pop().shutdown(socket.SHUT_RDWR)
        browser.wait_for("document.getElementById('image').naturalWidth === 98", 60)
        browser.wait_for("!document.getElementById('refused').textContent")
        browser.press("#freeze")
        browser.wait_for("!document.getElementById('still').hidden")
    finally:
        for viewer in viewers:
            viewer.shutdown(socket.SHUT_RDWR)
        other.shutdown()
        other.server_close()
        page.close()


class QuietHandler(SimpleHTTPRequestHandler):
    """Files of a folder, without messages."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def read_all(client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):
        while client.recv(65536):
            pass


def keep(browser: Browser, folder: Path, name: str) -> None:
    """The screen as a image in the test's folder, or in $CORRFLOW_SCREENSHOTS for people to look at."""
    kept = Path(os.environ.get("CORRFLOW_SCREENSHOTS", folder))
    cv2.imwrite(str(kept / f"{name}.png"), browser.screenshot())
