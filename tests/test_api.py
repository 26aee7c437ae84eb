"""The Python loop gives what the command gives, one frame at a time, and imports nothing before it is used."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import corrflow
from corrflow.errors import InputError

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "object_area.py"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, moving_square) -> Path:
    folder = tmp_path_factory.mktemp("api") / "clip"
    folder.mkdir()
    frames, masks = moving_square
    for index, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{index:03d}.png"), frame)
    Image.fromarray(masks[0].astype(np.uint8) * 255).save(folder.parent / "mask.png")
    return folder


def test_every_frame_comes_with_its_tracks(clip: Path, small_artifact: Path, moving_square) -> None:
    frames, masks = moving_square
    found = list(corrflow.track(clip, masks=masks[0], keypoints={"a": (30, 24)}, model=small_artifact))
    assert [tracks.frame.name for tracks in found] == [f"{index:03d}" for index in range(8)]
    assert [tuple(track.id for track in tracks.objects) for tracks in found] == [(1, 2)] * 8
    assert np.array_equal(found[0].mask, masks[0])
    for tracks, frame, mask in zip(found, frames, masks, strict=True):
        assert np.array_equal(tracks.frame.image, frame)
        assert np.count_nonzero((tracks.mask == 1) & mask) / np.count_nonzero((tracks.mask == 1) | mask) > 0.6


def test_a_mask_file_and_its_array_give_the_same(clip: Path, small_artifact: Path, moving_square) -> None:
    by_file = corrflow.track(str(clip), masks=str(clip.parent / "mask.png"), model=small_artifact)
    by_array = corrflow.track(clip, masks=moving_square[1][0], model=small_artifact)
    for one, other in zip(by_file, by_array, strict=True):
        assert np.array_equal(one.mask, other.mask)


def test_leaving_the_loop_early_leaves_no_thread(clip: Path, small_artifact: Path, moving_square) -> None:
    before = threading.active_count()
    tracks = corrflow.track(clip, masks=moving_square[1][0], model=small_artifact)
    next(tracks)
    tracks.close()
    assert threading.active_count() == before


def test_nothing_to_track_is_refused(clip: Path) -> None:
    for masks in (None, np.zeros((66, 98), np.uint8)):
        with pytest.raises(InputError, match="got neither"):
            next(corrflow.track(clip, masks=masks))
    with pytest.raises(InputError, match="float64"):
        next(corrflow.track(clip, masks=np.zeros((66, 98))))


def test_the_import_alone_loads_no_library() -> None:
    program = (
        "import sys, corrflow.runtime; print([n for n in ('numpy', 'cv2', 'av', 'onnxruntime') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_runs(clip: Path) -> None:
    command = [sys.executable, str(EXAMPLE), str(clip), str(clip.parent / "mask.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 8 and lines[0] == "0.000 s: 400"
