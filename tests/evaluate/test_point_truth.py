"""corrflow-eval warps: exact truth of synthetic motion, and consistent flow of real frames."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.davis import save_mask
from typer.testing import CliRunner

from corrflow.errors import InputError
from corrflow.evaluate import cli
from corrflow.evaluate.datasets.masks import MaskSequence, open_davis
from corrflow.evaluate.datasets.point_truth import WarpSettings, real_video, warped_video

SIZE = (120, 160)
STEP = 2


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a texture that moves two pixels to the left per frame, with a mask in the middle; and a flat sequence."""
    root = tmp_path_factory.mktemp("davis")
    texture = np.random.default_rng(1).normal(0, 1, (SIZE[0], SIZE[1] + 20, 3)).astype(np.float32)
    texture = cv2.GaussianBlur(texture, (0, 0), 1.5)
    texture = (128 + 60 * texture / texture.std()).clip(0, 255).astype(np.uint8)
    mask = np.zeros(SIZE, np.uint8)
    mask[30:90, 40:120] = 1
    for name in ("moving", "flat"):
        folder = root / "JPEGImages" / "480p" / name
        folder.mkdir(parents=True)
        for t in range(5):
            image = texture[:, STEP * t : STEP * t + SIZE[1]] if name == "moving" else np.full((*SIZE, 3), 90, np.uint8)
            cv2.imwrite(str(folder / f"{t:05d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 98])
            save_mask(mask, root / "Annotations" / "480p" / name / f"{t:05d}.png")
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("moving\n")
    (lists / "all.txt").write_text("moving\nflat\n")
    return root


def sequence(root: Path, name: str) -> MaskSequence:
    return next(one for one in open_davis(root, "all") if one.name == name)


def test_synthetic_points_stay_on_their_texture(davis: Path) -> None:
    settings = WarpSettings(frames=6, motion=32, points=40)
    video = warped_video(sequence(davis, "moving"), settings)
    points = video.points * SIZE[::-1] - 0.5
    assert not video.occluded[:, 0].any() and video.occluded.any()
    moved = np.linalg.norm(points[:, -1] - points[:, 0], axis=1)
    assert moved.mean() == pytest.approx(32 * SIZE[0] / 480, rel=0.1)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in np.asarray(video.video)]
    patches = [
        [cv2.getRectSubPix(image, (7, 7), tuple(map(float, place))) for place in points[:, t]]
        for t, image in enumerate(grey)
    ]
    alike = np.array(
        [
            [np.corrcoef(first.ravel(), now.ravel())[0, 1] for first, now in zip(patches[0], row, strict=True)]
            for row in patches
        ]
    ).T
    inner = ((points > 4) & (points < np.array(SIZE[::-1]) - 5)).all(-1)
    assert np.median(alike[~video.occluded & inner]) > 0.9
    covered = video.occluded & inner
    assert covered.any() and np.median(alike[covered]) < 0.5


def test_the_motion_depends_on_the_seed_and_the_sequence_alone(davis: Path) -> None:
    one, same, other = (
        warped_video(sequence(davis, "moving"), WarpSettings(frames=3, points=8, seed=seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.points, same.points)
    np.testing.assert_array_equal(np.asarray(one.video), np.asarray(same.video))
    assert one.points.shape != other.points.shape or not np.allclose(one.points, other.points)


def test_real_points_follow_the_texture(davis: Path) -> None:
    video = real_video(sequence(davis, "moving"), WarpSettings(points=20))
    points = video.points * SIZE[::-1] - 0.5
    assert 10 < len(points) <= 20 and points.shape[1] == 5 and not video.occluded.any()
    motion = points - points[:, :1] + STEP * np.arange(5)[None, :, None] * [1, 0]
    assert np.median(np.abs(motion)) < 0.3


def test_a_sequence_without_corners_is_refused(davis: Path) -> None:
    for make in (warped_video, real_video):
        with pytest.raises(InputError, match="corners in frame 0 of flat"):
            make(sequence(davis, "flat"), WarpSettings())


@pytest.mark.parametrize("truth", [[], ["--real"]], ids=["synthetic", "real"])
def test_the_command_ranks_flow_above_no_motion(davis: Path, tmp_path: Path, truth: list[str]) -> None:
    out = tmp_path / "scores.json"
    options = ["--frames", "4", "--points", "24", "--model", "quarter", "--out", str(out), *truth]
    done = CliRunner().invoke(cli.app, ["warps", str(davis), *options])
    assert done.exit_code == 0, done.output
    content = json.loads(out.read_text())
    scores = {method["label"]: method["all"] for method in content["methods"]}
    assert set(scores) == {"quarter", "lk", "flow", "identity"}
    assert scores["lk"]["<1 px"] > scores["identity"]["<1 px"] + 0.3
    assert scores["lk"]["<d avg"] > scores["identity"]["<d avg"]
    assert content["truth"] == ("consistent flow" if truth else "synthetic motion")


def test_no_baseline_stands_alone(davis: Path) -> None:
    done = CliRunner().invoke(cli.app, ["warps", str(davis), "--baseline", "none", "--baseline", "lk"])
    assert done.exit_code == 2 and "alone" in done.output
