"""YouTube-VOS: meta.json has the class and the frames of each object that is seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from corrflow.runtime.formats.youtube_vos import YouTubeVosSink
from corrflow.runtime.types import Frame, FrameResult, ObjectResult


def test_meta_has_the_frames_on_which_an_object_is_seen(tmp_path: Path) -> None:
    with YouTubeVosSink(tmp_path, "clip") as sink:
        for index in range(3):
            mask = np.full((20, 30), index != 1, np.uint8)
            car = ObjectResult(1, "left", 0.9, index != 1, (0, 0, 30, 20), category="car")
            lost = ObjectResult(2, "lost", 0.0, False)
            frame = Frame(np.zeros((20, 30, 3), np.uint8), index, 0.0, f"{index:05d}")
            sink.write(FrameResult(mask, (car, lost), frame))
    content = json.loads((tmp_path / "meta.json").read_text())
    assert content == {"videos": {"clip": {"objects": {"1": {"category": "car", "frames": ["00000", "00002"]}}}}}
