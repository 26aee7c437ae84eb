"""Tracking from Python: any source and any prompt, one frame at a time, and a quick import."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

import corrflow
from corrflow.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, moving_square) -> Path:
    """Write the moving square as a folder of images; beside it mask.png, points.csv and labels.json (COCO)."""
    folder = tmp_path_factory.mktemp("api") / "clip"
    folder.mkdir()
    frames, masks = moving_square
    for index, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{index:03d}.png"), frame)
    Image.fromarray(masks[0].astype(np.uint8) * 255).save(folder.parent / "mask.png")
    (folder.parent / "points.csv").write_text("name,x,y\na,30,24\n")
    annotation = {"image_id": 1, "category_id": 1, "segmentation": [[19.5, 13.5, 39.5, 13.5, 39.5, 33.5, 19.5, 33.5]]}
    images = [{"id": 1, "height": 66, "width": 98, "file_name": "000.png"}]
    (folder.parent / "labels.json").write_text(json.dumps({"images": images, "annotations": [annotation]}))
    return folder


def test_every_frame_comes_with_its_result(clip: Path, small_artifact: Path, moving_square) -> None:
    frames, masks = moving_square
    results = list(corrflow.track(clip, masks=masks[0], keypoints={"a": (30, 24)}, model=small_artifact))
    assert [result.frame.name for result in results] == [f"{index:03d}" for index in range(8)]
    assert [tuple(one.id for one in result.objects) for result in results] == [(1, 2)] * 8
    assert np.array_equal(results[0].mask, masks[0])
    for result, frame, mask in zip(results, frames, masks, strict=True):
        assert np.array_equal(result.frame.image, frame)
        assert np.count_nonzero((result.mask == 1) & mask) / np.count_nonzero((result.mask == 1) | mask) > 0.6


def pil(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(frame[..., ::-1]))


SOURCES: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "list of arrays": lambda frames, clip: list(frames),
    "iterator": lambda frames, clip: (frame for frame in frames),
    "one array": lambda frames, clip: frames,
    "PIL images": lambda frames, clip: [pil(frame) for frame in frames],
    "PIL images with alpha": lambda frames, clip: [pil(frame).convert("RGBA") for frame in frames],
    "path as text": lambda frames, clip: str(clip),
    "pattern": lambda frames, clip: str(clip / "*.png"),
}
MASKS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "uint8 of ids": lambda mask, folder: mask.astype(np.uint8),
    "uint8 of 0 and 255": lambda mask, folder: mask.astype(np.uint8) * 255,
    "list of one": lambda mask, folder: [mask],
    "PIL, grey": lambda mask, folder: Image.fromarray(mask.astype(np.uint8) * 255),
    "PIL, 1 bit": lambda mask, folder: Image.fromarray(mask),
    "PIL, palette": lambda mask, folder: Image.fromarray(mask.astype(np.uint8)).convert("P"),
    "path": lambda mask, folder: folder / "mask.png",
    "path as text": lambda mask, folder: str(folder / "mask.png"),
    "list of paths": lambda mask, folder: [folder / "mask.png"],
    "annotation file": lambda mask, folder: folder / "labels.json",
}


@pytest.fixture(scope="module")
def expected(clip: Path, small_artifact: Path, moving_square) -> np.ndarray:
    """Return the masks from a path and an array [H, W] bool."""
    results = corrflow.track(clip, masks=moving_square[1][0], model=small_artifact)
    return np.stack([result.mask for result in results])


@pytest.mark.parametrize("name", SOURCES)
def test_any_kind_of_source_gives_the_same_masks(
    name: str, clip: Path, expected: np.ndarray, small_artifact: Path, moving_square
) -> None:
    frames, masks = moving_square
    results = list(corrflow.track(SOURCES[name](frames, clip), masks=masks[0], model=small_artifact))
    for result, frame, mask in zip(results, frames, expected, strict=True):
        np.testing.assert_array_equal(result.frame.image, frame)
        np.testing.assert_array_equal(result.mask, mask)
    assert [result.frame.index for result in results] == list(range(8))
    assert [result.frame.time for result in results] == pytest.approx([index / 24 for index in range(8)])


@pytest.mark.parametrize("name", MASKS)
def test_any_kind_of_mask_gives_the_same_masks(
    name: str, clip: Path, expected: np.ndarray, small_artifact: Path, moving_square
) -> None:
    prompt = MASKS[name](moving_square[1][0], clip.parent)
    masks = [result.mask for result in corrflow.track(clip, masks=prompt, model=small_artifact)]
    np.testing.assert_array_equal(masks, expected)


def test_a_list_of_masks_is_one_object_each_and_points_follow(clip: Path, moving_square) -> None:
    one = moving_square[1][0]
    other = np.roll(one, (20, 40), (0, 1))
    prompts = [one, Image.fromarray(other.astype(np.uint8) * 7)]
    for keypoints in ({"a": (30, 24)}, str(clip.parent / "points.csv")):
        first = next(corrflow.track(clip, masks=prompts, keypoints=keypoints))
        np.testing.assert_array_equal(first.mask, one + 2 * other)
        assert [found.id for found in first.objects] == [1, 2, 3]
        points = first.objects[2].points
        assert points is not None and points.tolist() == [[30, 24]] and first.objects[2].point_names == ("a",)


def test_points_are_taken_as_arrays_and_masks_by_id_or_name(clip: Path, moving_square) -> None:
    mask = moving_square[1][0]
    for keypoints in (np.array([[30.0, 24.0], [40, 30]]), [(30, 24), (40, 30)]):
        points = next(corrflow.track(clip, keypoints=keypoints)).objects[0]
        assert points.points is not None and points.points.tolist() == [[30, 24], [40, 30]]
        assert points.point_names == ("point1", "point2")
    first = next(corrflow.track(clip, masks={7: mask, "cat": mask[::-1]}))
    assert [(found.id, found.name) for found in first.objects] == [(7, ""), (8, "cat")]


def test_grey_frames_are_tracked_as_their_three_equal_channels(small_artifact: Path, moving_square) -> None:
    grey = moving_square[0].mean(3).astype(np.uint8)
    one, other = (
        [result.mask for result in corrflow.track(frames, masks=moving_square[1][0], model=small_artifact)]
        for frames in (grey, np.repeat(grey[..., None], 3, 3))
    )
    np.testing.assert_array_equal(one, other)


MASK = np.ones((66, 98), bool)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "source of no kind": ({"source": 3}, "got int"),
    "source that names nothing": ({"source": "nothing.mp4"}, "does not exist"),
    "empty source": ({"source": []}, "expected frames from frames, got none"),
    "one image": ({"source": np.zeros((66, 98, 3), np.uint8)}, "got one image"),
    "RGBA arrays": ({"source": np.zeros((2, 66, 98, 4), np.uint8)}, r"uint8 \[66, 98, 4\]"),
    "float frames": ({"source": np.zeros((2, 66, 98, 3), np.float32)}, r"float32 \[66, 98, 3\]"),
    "paths in a list": ({"source": ["a.png", "b.png"]}, "got str"),
    "nothing to track": ({"masks": None}, "got neither"),
    "empty mask": ({"masks": MASK & False}, "got neither"),
    "float mask": ({"masks": MASK.astype(np.float64)}, "float64"),
    "coloured mask": ({"masks": np.zeros((66, 98, 3), np.uint8)}, r"uint8 \[66, 98, 3\]"),
    "coloured PIL mask": ({"masks": Image.new("RGB", (98, 66))}, r"uint8 \[66, 98, 3\]"),
    "mask of another size": ({"masks": MASK[:60]}, "98x66, got 98x60"),
    "mask that names nothing": ({"masks": "nothing.png"}, "found no file"),
    "annotations that name nothing": ({"masks": "nothing.json"}, "found no file"),
    "annotations of no format": ({"masks": __file__}, "annotations in a file that ends in"),
    "mask of no kind": ({"masks": 3}, "got int"),
    "bytes as mask": ({"masks": b"mask"}, "got int"),
    "paths beside arrays": ({"masks": ["mask.png", MASK]}, "got both"),
    "paths by name": ({"masks": {"cat": "mask.png"}}, "got 'cat': str"),
    "keypoints of no kind": ({"masks": None, "keypoints": 3}, "got int"),
    "keypoints [P, 3]": ({"masks": None, "keypoints": np.zeros((2, 3))}, "got ndarray"),
    "keypoints that name nothing": ({"masks": None, "keypoints": "nothing.csv"}, "does not exist"),
    "keypoints of words": ({"masks": None, "keypoints": {"a": "left"}}, "two numbers each"),
    "keypoints of three numbers": ({"masks": None, "keypoints": {"a": (1, 2, 3)}}, "two numbers each"),
    "keypoints outside": ({"masks": None, "keypoints": {"a": (200, 3)}}, "inside the frame"),
    "keypoint that is no number": ({"masks": None, "keypoints": {"a": (float("nan"), 3)}}, "inside the frame"),
    "unknown model": ({"model": "huge"}, "expected a model among"),
    "unknown backend": ({"backend": "abacus"}, "expected a backend among"),
    "threads below 0": ({"threads": -1}, "threads of 0 or more"),
    "memory of -1 frames": ({"memory_frames": -1}, "recent frames"),
    "short side of 3": ({"short_side": 3}, "16 to 8192"),
}


@pytest.mark.parametrize(("values", "reason"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_value_is_one_sentence(values: dict[str, Any], reason: str, moving_square) -> None:
    arguments = {"source": moving_square[0], "masks": MASK} | values
    threads = threading.active_count()
    with pytest.raises(InputError, match=reason) as caught:
        next(corrflow.track(**arguments))
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)
    assert threading.active_count() == threads


def test_frames_of_another_size_end_the_tracking(small_artifact: Path, moving_square) -> None:
    frames, masks = moving_square
    results = corrflow.track([frames[0], frames[1][:, :90]], masks=masks[0], model=small_artifact)
    next(results)
    with pytest.raises(corrflow.CorrflowError, match="98x66 as at the start, got 90x66"):
        next(results)


def test_leaving_the_loop_early_leaves_no_thread(clip: Path, small_artifact: Path, moving_square) -> None:
    before = threading.active_count()
    results = corrflow.track(clip, masks=moving_square[1][0], model=small_artifact)
    next(results)
    results.close()
    assert threading.active_count() == before


IMPORT = "import corrflow; print(corrflow.track.__module__, corrflow.__version__)"


@pytest.mark.parametrize("place", ["clone", "elsewhere"])
def test_the_import_alone_loads_no_library(place: str, tmp_path: Path) -> None:
    """The package lies in src/, so that the clone's root shadows no installed package."""
    program = (
        f"{IMPORT}\nimport sys, corrflow.runtime, corrflow.runtime.api\n"
        "print([name for name in ('numpy', 'cv2', 'av', 'onnxruntime', 'PIL') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT if place == "clone" else tmp_path
    )
    assert done.stdout.splitlines() == [f"corrflow.runtime.api {corrflow.__version__}", "[]"]


@pytest.mark.alone
def test_the_import_is_quick() -> None:
    def seconds(program: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        return time.perf_counter() - begin

    # 0.3 s on an idle machine; a bare Python start on the same machine says how idle this one is.
    bare = seconds("pass")
    assert min(seconds(IMPORT) for _ in range(3)) < max(0.3, 12 * bare)


def test_names_that_are_missing_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tracks'"):
        corrflow.tracks  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert all(getattr(corrflow, name) is not None for name in corrflow.__all__)


def test_the_example_runs(clip: Path) -> None:
    example = ROOT / "docs" / "examples" / "object_area.py"
    command = [sys.executable, "-W", "error", str(example), str(clip), str(clip.parent / "mask.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 8 and lines[0] == "0.000 s: 400"
