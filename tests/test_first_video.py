"""The first tutorial as a newcomer does it: draw a box in the browser, track what was cut out of the box."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import find_chromium
from helpers.paths import ROOT
from PIL import Image

from corrflow.runtime.video.demo_clip import DemoSource
from corrflow.runtime.video.open_source import open_frames

pytest.importorskip("uvicorn")
SCRIPT = (ROOT / "scripts/first-video").read_text(encoding="utf-8")
COMMANDS = ("corrflow-label video.mp4", "corrflow-track video.mp4 --init video_mask.png")


def test_the_script_runs_the_commands_of_the_readme_and_of_the_tutorial() -> None:
    for document in ("README.md", "docs/tutorials/first-video.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        assert all(re.search(rf"^{re.escape(command)}\b", text, re.M) for command in COMMANDS)
        assert text.index("bash scripts/demo") < text.index(COMMANDS[0]) < text.index(COMMANDS[1])
    assert SCRIPT.index("bash scripts/demo") < SCRIPT.index("newcomer.py draw video.mp4") < SCRIPT.index(COMMANDS[1])


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")
def test_a_box_in_the_browser_becomes_a_tracked_video(tmp_path: Path) -> None:
    """The script's own steps after the installation, with the small model on small frames."""
    box = re.search(r"set -- first-video/video.mp4 (\d+ \d+ \d+ \d+)$", SCRIPT, re.M)
    assert box is not None
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    newcomer = [sys.executable, ROOT / "scripts/site/newcomer.py"]
    track = f"{COMMANDS[1]} --model fast-int8 --short-side 240 --save video_tracked.mp4 --masks masks".split()
    for command in ([*newcomer, "clip", "video.mp4"], [*newcomer, "draw", "video.mp4", *box[1].split()], track):
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
    for name, index in (("video_mask.png", 0), ("masks/00059.png", 59)):
        mask, true = np.asarray(Image.open(tmp_path / name)) > 0, DemoSource().true_mask(index) > 0
        assert np.logical_and(mask, true).sum() / np.logical_or(mask, true).sum() > 0.7
    with open_frames(tmp_path / "video_tracked.mp4") as frames:
        assert sum(1 for _ in frames) == 60
    assert (tmp_path / "page.webp").stat().st_size > 10_000
