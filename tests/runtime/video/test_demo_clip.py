"""The demo clip: its truth is exact, its motion smooth, and it needs nothing but what is installed."""

from __future__ import annotations

import hashlib
import re
import socket
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from corrflow.errors import InputError
from corrflow.runtime.video import demo_clip as demo
from corrflow.runtime.video.demo_clip import DemoSource, render_demo_clip


@pytest.fixture(scope="module")
def clip() -> list[tuple[np.ndarray, np.ndarray]]:
    return list(render_demo_clip())


def area(mask: np.ndarray) -> int:
    return int(mask.sum())


def test_frames_and_masks_have_the_asked_shape_and_count(clip: list[tuple[np.ndarray, np.ndarray]]) -> None:
    assert len(clip) == 60
    for image, mask in clip:
        assert image.shape == (360, 640, 3) and image.dtype == np.uint8
        assert mask.shape == (360, 640) and mask.dtype == np.bool_


def test_clip_is_deterministic_and_a_longer_one_begins_like_a_shorter_one(
    clip: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    for (image, mask), (image_again, mask_again) in zip(clip[:3], render_demo_clip(3), strict=True):
        assert np.array_equal(image, image_again) and np.array_equal(mask, mask_again)


def test_seeds_give_different_clips() -> None:
    first, second = (next(render_demo_clip(1, (72, 128), seed)) for seed in (0, 1))
    assert not np.array_equal(first[1], second[1])


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_object_starts_whole_and_is_partly_hidden_once_and_reappears(seed: int) -> None:
    scene = demo._Scene((180, 320), seed)
    whole = [area(scene._object_at(index)[..., 3] > 0.5) for index in range(60)]
    seen = [area(scene.visible_mask(index)) / whole[index] for index in range(60)]
    assert seen[0] == 1 and whole[0] > 0.05 * 180 * 320
    assert 0.4 < min(seen) < 0.8
    assert seen[-1] == 1


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_object_moves_by_at_most_twelve_pixels_and_stays_in_the_picture(seed: int) -> None:
    scene = demo._Scene((360, 640), seed)
    opacities = [scene._object_at(index)[..., 3] > 0.5 for index in range(0, 60)]
    boxes = []
    for mask in opacities:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append((columns[0], rows[0], columns[-1], rows[-1]))
        assert columns[0] > 0 and rows[0] > 0 and columns[-1] < 639 and rows[-1] < 359
    steps = np.abs(np.diff(np.array(boxes, int), axis=0))
    assert steps.max() <= 12 and steps.sum() > 200


def test_mask_marks_the_pixels_that_the_object_colours() -> None:
    scene = demo._Scene((360, 640), 0)
    image, mask = scene.render(0)
    scene._object = np.zeros_like(scene._object)
    without, _ = scene.render(0)
    difference = np.abs(image.astype(int) - without).max(axis=2)
    # The shadow darkens by a third at most, so that the object is what differs more from the empty scene.
    inside = difference[mask]
    assert np.mean(inside > 25) > 0.9
    far = ~mask
    rows, columns = np.nonzero(mask)
    far[max(0, rows.min() - 60) : rows.max() + 90, max(0, columns.min() - 60) : columns.max() + 70] = False
    assert difference[far].max() == 0


def test_pixels_behind_the_occluder_are_not_part_of_the_mask() -> None:
    scene = demo._Scene((360, 640), 0)
    index = min(range(30, 60), key=lambda i: area(scene.visible_mask(i)))
    occluder = scene._occluder_at(index)[1][..., 0] > 0.6
    whole = scene._object_at(index)[..., 3] > 0.5
    assert area(whole & occluder) > 500
    assert not (scene.visible_mask(index) & occluder).any()


def test_light_changes_slowly(clip: list[tuple[np.ndarray, np.ndarray]]) -> None:
    brightness = [float(image[::8, ::8].mean()) for image, _ in clip]
    assert max(brightness) - min(brightness) > 8
    assert max(abs(a - b) for a, b in pairwise(brightness)) < 3


@pytest.mark.parametrize("size", [(97, 131), (320, 180), (48, 48)], ids=str)
def test_any_size_holds_the_object(size: tuple[int, int]) -> None:
    image, mask = next(render_demo_clip(1, size))
    assert image.shape == (*size, 3) and mask.shape == size
    assert 0.02 < mask.mean() < 0.5


def test_source_delivers_the_clip_with_its_truth() -> None:
    with DemoSource(4, (72, 128), seed=5) as source:
        assert (source.name, source.frame_count, source.frames_per_second) == ("demo", 4, demo.DEMO_FRAMES_PER_SECOND)
        frames = list(source)
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.name for frame in frames] == ["00000", "00001", "00002", "00003"]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.04, 0.08, 0.12])
    for frame, (image, mask) in zip(frames, render_demo_clip(4, (72, 128), 5), strict=True):
        assert np.array_equal(frame.image, image) and np.array_equal(source.true_mask(frame.index), mask)


def test_rendering_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the demo must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    next(render_demo_clip(1, (48, 48)))


def test_missing_photograph_is_reported_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PHOTOGRAPHS", tmp_path)
    with pytest.raises(InputError, match="pip install --force-reinstall --no-deps corrflow"):
        DemoSource()


def test_photographs_are_those_whose_licence_is_named() -> None:
    named = re.findall(r"\| `(\w+\.png)` \| `([0-9a-f]{64})`", (demo._PHOTOGRAPHS / "README.md").read_text())
    files = {file.name: file for file in demo._PHOTOGRAPHS.iterdir() if file.name.endswith(".png")}
    assert {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()} == dict(named)
