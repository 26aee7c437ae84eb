"""Every way of tracking returns the same masks: from Python, from the commands, in batches and live."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import corrflow
from corrflow.runtime.commands import batch_cli, track_cli

FRAMES_PER_SECOND = 3  # slow enough for a live session that drops no frame


@pytest.fixture(scope="module")
def occluded(hidden) -> tuple[np.ndarray, np.ndarray]:
    """Return the clip of `hidden` with a white occluder, which a tracker without occlusion handling follows."""
    frames, masks = hidden
    return np.where((frames == (200, 90, 20)).all(3, keepdims=True), np.uint8(255), frames), masks


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, occluded) -> Path:
    """Write clip.mkv without loss, with labels/clip.png, the mask of its first frame."""
    folder = tmp_path_factory.mktemp("one")
    frames, masks = occluded
    with av.open(str(folder / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=FRAMES_PER_SECOND)
        stream.height, stream.width, stream.pix_fmt = 66, 98, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode(None))
    (folder / "labels").mkdir()
    Image.fromarray(masks[0].astype(np.uint8)).save(folder / "labels" / "clip.png")
    return folder / "clip.mkv"


def read_masks(folder: Path) -> np.ndarray:
    """Read the PNGs of a folder: [T, H, W] uint8."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def call(app, *arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def expected(occluded) -> np.ndarray:
    """Return the masks of a loop that the caller writes."""
    frames, masks = occluded

    def step_through() -> Iterator[np.ndarray]:
        with corrflow.Tracker.from_model("quarter") as tracker:
            yield tracker.start(frames[0], [corrflow.MaskObject(1, masks[0])]).mask
            for frame in frames[1:]:
                yield tracker.step(frame).mask

    return np.stack(list(step_through()))


def test_occlusion_handling_is_on_in_the_reference(expected: np.ndarray, occluded) -> None:
    """The tests below would not notice its absence otherwise."""
    frames, masks = occluded
    with corrflow.Tracker.from_model("quarter", redetect=False) as tracker:
        tracker.start(frames[0], [corrflow.MaskObject(1, masks[0])])
        without = [masks[0], *(tracker.step(frame).mask > 0 for frame in frames[1:])]
    assert not np.array_equal(expected > 0, without)


def test_track_returns_the_masks_of_the_loop(clip: Path, expected: np.ndarray, occluded) -> None:
    mask = clip.parent / "labels" / "clip.png"
    for source, prompt in ((clip, mask), (occluded[0], occluded[1][0])):
        masks = [result.mask for result in corrflow.track(source, masks=prompt)]
        np.testing.assert_array_equal(masks, expected)


def test_corrflow_track_writes_the_masks_of_the_loop(clip: Path, expected: np.ndarray, tmp_path: Path) -> None:
    mask = clip.parent / "labels" / "clip.png"
    call(track_cli.app, clip, "--init", mask, "--masks", tmp_path / "masks")
    np.testing.assert_array_equal(read_masks(tmp_path / "masks"), expected)


def test_corrflow_batch_writes_the_masks_of_the_loop(clip: Path, expected: np.ndarray, tmp_path: Path) -> None:
    labels = ("--labels", clip.parent / "labels")
    call(batch_cli.app, clip, *labels, "--out", tmp_path, "--format", "davis", "--workers", 1)
    np.testing.assert_array_equal(read_masks(tmp_path / "clip" / "masks"), expected)


def test_a_live_session_writes_the_masks_of_the_loop(clip: Path, expected: np.ndarray, tmp_path: Path) -> None:
    mask = clip.parent / "labels" / "clip.png"
    output = call(track_cli.app, "--camera", clip, "--init", mask, "--masks", tmp_path / "masks")
    assert re.search(rf"captured {len(expected)} frames: {len(expected)} tracked, 0 dropped", output), output
    np.testing.assert_array_equal(read_masks(tmp_path / "masks"), expected)
