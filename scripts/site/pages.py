"""Take pictures of pages for the documents, with a headless Chromium, into docs/images.

python scripts/site/pages.py live      phone.webp: the live page on a phone, of the demo clip
python scripts/site/pages.py report    report.webp: the report of a tracked demo clip
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from newcomer import open_browser, save_clip

from corrflow.runtime.video.demo_clip import render_demo_clip

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PHONE, DESK = (390, 844), (1000, 700)


def save_picture(name: str, image: np.ndarray, width: int) -> None:
    """Write a picture of this width."""
    size = width, round(image.shape[0] * width / image.shape[1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(IMAGES / name), small, [cv2.IMWRITE_WEBP_QUALITY, 80])


def save_demo(folder: Path, times: int) -> None:
    """Write the demo clip, forth and back this many times in all, and the mask of its first frame."""
    save_clip(str(folder / "clip.mp4"), times)
    _, mask = next(iter(render_demo_clip()))
    cv2.imwrite(str(folder / "mask.png"), np.where(mask, 255, 0).astype(np.uint8))


def picture_live_page(folder: Path) -> None:
    """Track the clip like a camera, and look at its page on a phone."""
    command = ["corrflow-track", "--camera", "clip.mp4", "--init", "mask.png", "--serve", "127.0.0.1:0"]
    command += ["--model", "fast-int8", "--short-side", "240"]
    live = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert live.stderr is not None
    try:
        address = re.search(r"open (http\S+)", live.stderr.readline())
        assert address is not None
        with open_browser() as browser:
            browser.open(address[1], *PHONE, True)
            browser.wait_for("document.getElementById('numbers').textContent.includes('frames/s')")
            browser.wait_for("document.querySelector('#objects li.tracked')")
            browser.wait_for("document.getElementById('image').naturalWidth > 0")
            save_picture("phone.webp", browser.screenshot(), 312)
    finally:
        live.send_signal(signal.SIGINT)
        live.communicate(timeout=60)


def picture_report(folder: Path) -> None:
    """Track the clip with a report, and look at it."""
    subprocess.run(
        ["corrflow-track", "clip.mp4", "--init", "mask.png", "--format", "report", "--out", "results"],
        cwd=folder, check=True,
    )  # fmt: skip
    (page,) = (folder / "results").rglob("report.html")
    with open_browser() as browser:
        browser.open(page.as_uri(), *DESK, False)
        browser.wait_for("document.readyState === 'complete'")
        save_picture("report.webp", browser.screenshot(), 800)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["live" | "report" as page]:
            with tempfile.TemporaryDirectory() as scratch:
                save_demo(Path(scratch), 20 if page == "live" else 1)
                (picture_live_page if page == "live" else picture_report)(Path(scratch))
        case _:
            sys.exit(__doc__)
