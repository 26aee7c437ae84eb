"""Training follows the paper, and a resumed run ends with the weights of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers.oracle import oracle
from helpers.panning import write_panning_video

from corrflow.errors import InputError
from corrflow.export.to_onnx import read_encoder
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.train.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from corrflow.train.colours import (
    apply_bottleneck,
    cell_colours,
    colour_classes,
    fit_colour_codebook,
    rgb_to_lab,
    sample_bottleneck,
)
from corrflow.train.config import PRESETS, TrainConfig, preset
from corrflow.train.data.clips import ClipCache, ClipSampler, open_cache
from corrflow.train.data.frames import find_images, find_videos
from corrflow.train.losses import reconstruct
from corrflow.train.model import Encoder, new_encoder, normalise, parameter_count
from corrflow.train.run_logger import RunLogger
from corrflow.train.trainer import Trainer

SMALL = TrainConfig(steps=4, batch=2, crop=32, radius=2, colours=4, threads=1, image_share=0.5)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create videos/ with two videos, an image folder and a broken file, and images/ with two images."""
    root = tmp_path_factory.mktemp("footage")
    (root / "videos" / "frames").mkdir(parents=True)
    (root / "images").mkdir()
    for seed in range(2):
        write_panning_video(root / "videos" / f"{seed}.mp4", seed)
    for t in range(4):
        cv2.imwrite(str(root / "videos" / "frames" / f"{t}.png"), np.full((50, 60, 3), 40 * t, np.uint8))
    (root / "videos" / "broken.mp4").write_bytes(b"no video")
    for seed in range(2):
        image = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
        cv2.imwrite(str(root / "images" / f"{seed}.jpg"), cv2.resize(image, (96, 72)))
    return root


@pytest.fixture(scope="module")
def videos(footage: Path) -> ClipCache:
    return open_cache(find_videos(footage / "videos"), 6.0, 48, footage / "cache")


@pytest.fixture(scope="module")
def sampler(footage: Path, videos: ClipCache) -> ClipSampler:
    images = open_cache(find_images(footage / "images"), 6.0, 48, footage / "cache")
    return ClipSampler(videos, images, SMALL)


def test_the_encoder_has_the_papers_size_and_stride() -> None:
    assert parameter_count(Encoder(preset("full"))) == pytest.approx(5.3e6, rel=0.01)
    assert parameter_count(Encoder(preset("quarter"))) == pytest.approx(0.36e6, rel=0.02)
    encoder = new_encoder(preset("quarter"), 0).eval()
    for height, width in [(64, 64), (33, 50), (1, 5)]:
        features = encoder(torch.zeros(1, 3, height, width))
        assert features.shape == (1, 64, -(-height // 4), -(-width // 4))
        torch.testing.assert_close(features.square().sum(1), torch.ones_like(features[:, 0]))


def test_untrained_encoders_of_two_seeds_differ() -> None:
    usual, first, other = (read_encoder(f"random-init:quarter{seed}") for seed in ("", ":0", ":3"))
    assert usual[1] == first[1] and torch.equal(usual[0].stem.weight, first[0].stem.weight)
    assert other[1]["seed"] == 3 and not torch.equal(other[0].stem.weight, first[0].stem.weight)
    assert torch.equal(other[0].stem.weight, new_encoder(preset("quarter"), 3).stem.weight)


def test_receptive_fields_are_centred_beside_the_cells_centre() -> None:
    """The mean position of the pixels that influence feature (y, x) is (4y + 1, 4x + 1)."""
    influence = torch.zeros(64, 64)
    for seed in range(12):
        encoder = new_encoder(replace(preset("quarter"), unit_norm=False), seed).eval()
        image = torch.rand(1, 3, 64, 64, requires_grad=True)
        encoder(normalise(image))[0, :, 8, 8].square().sum().backward()
        assert image.grad is not None
        influence += image.grad[0].abs().sum(0)
    weights = influence / influence.sum()
    assert float((weights.sum(1) * torch.arange(64)).sum()) == pytest.approx(4 * 8 + 1, abs=0.7)
    assert float((weights.sum(0) * torch.arange(64)).sum()) == pytest.approx(4 * 8 + 1, abs=0.7)


def test_lab_matches_opencv() -> None:
    image = np.random.default_rng(0).random((9, 7, 3), np.float32)
    expected = cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
    got = rgb_to_lab(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, expected, atol=0.3)  # OpenCV rounds its table of the cube root


@pytest.mark.parametrize("channels", [2, 3], ids=["plane", "lab"])
def test_colour_classes_are_the_nearest_centroids(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lab = torch.rand(2, 3, 8, 12, generator=generator) * 100
    codebook = torch.rand(5, channels, generator=generator) * 100
    distance = (lab[:, -channels:, None] - codebook.T[None, :, :, None, None]).square().sum(1)
    assert torch.equal(colour_classes(lab, codebook), distance.argmin(1))
    cells = cell_colours(lab, codebook)
    assert cells.shape == (2, 5, 2, 3) and torch.equal(cells.sum(1), torch.ones(2, 2, 3))


def test_the_codebook_of_four_flat_colours_is_these_colours() -> None:
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [220, 220, 220]], np.uint8)
    image = np.repeat(np.repeat(colours.reshape(2, 2, 3), 16, 0), 16, 1)
    codebook = fit_colour_codebook([image], 4, lightness=True, seed=0)
    lab = rgb_to_lab(torch.from_numpy(colours).float().T[:, :, None] / 255)[..., 0].T
    assert torch.cdist(lab, codebook).min(1).values.max() < 1e-2
    assert fit_colour_codebook([image], 4, lightness=False, seed=0).shape == (4, 2)


def sampled_bottlenecks(clips: int, dropout: float, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample factors and channels for `clips` clips of three frames."""
    generator = np.random.default_rng(0)
    factors, channels = zip(*(sample_bottleneck(generator, 3, dropout, jitter) for _ in range(clips)), strict=True)
    return torch.from_numpy(np.stack(factors)), torch.from_numpy(np.stack(channels))


def test_missing_channels_are_the_same_in_all_frames_of_a_clip() -> None:
    clips = torch.rand(200, 3, 3, 8, 8)
    images = apply_bottleneck(clips, *sampled_bottlenecks(200, dropout=0.7, jitter=0.1))
    missing = (images == 0).flatten(3).all(3)  # [B, T, 3]
    assert (missing == missing[:, :1]).all()
    count = missing[:, 0].sum(1)
    assert set(count.tolist()) == {0, 1, 2}
    assert (count > 0).float().mean().item() == pytest.approx(0.7, abs=0.1)


def test_without_dropout_and_jitter_the_input_is_the_frame() -> None:
    clips = torch.rand(2, 3, 3, 8, 8)
    torch.testing.assert_close(apply_bottleneck(clips, *sampled_bottlenecks(2, 0.0, 0.0)), normalise(clips))
    grey = apply_bottleneck(clips, *sampled_bottlenecks(2, 0.7, 0.0), grey_input=True)
    assert torch.equal(grey[:, :, 0], grey[:, :, 2])


def test_every_clip_has_its_own_jitter() -> None:
    """A batch of clips has the same result as each clip alone."""
    clips = torch.rand(4, 3, 3, 8, 8)
    factors, channels = sampled_bottlenecks(4, 0.7, 0.3)
    batch = apply_bottleneck(clips, factors, channels)
    for clip in range(4):
        one = slice(clip, clip + 1)
        torch.testing.assert_close(batch[one], apply_bottleneck(clips[one], factors[one], channels[one]))
    assert not torch.allclose(factors[0], factors[1])


def test_schedules_are_the_papers() -> None:
    config = TrainConfig(steps=1000)
    rates = [config.learning_rate_at(step) / 2e-4 for step in (0, 399, 400, 600, 800, 999)]
    assert rates == [1, 1, 0.5, 0.25, 0.125, 0.125]
    assert [config.teacher_forcing_at(step) for step in (0, 999)] == pytest.approx([0.9, 0.6])
    assert config.teacher_forcing_at(500) == pytest.approx(0.75, abs=1e-3)


def test_losses_match_a_direct_computation() -> None:
    """Forward and cycle terms are recomputed frame by frame with the NumPy reference."""
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(2, 3, 4, 3, 4), dim=2)
    classes = torch.randint(0, 3, (2, 3, 12, 16))
    shares = torch.nn.functional.one_hot(classes.flatten(0, 1), 3).permute(0, 3, 1, 2).float()
    cells = torch.nn.functional.avg_pool2d(shares, 4).unflatten(0, (2, 3))
    teacher_forced = torch.tensor([[True, True], [True, False]])

    def copy(target: int, reference: int, values: np.ndarray) -> np.ndarray:
        return oracle(
            features[:, target].numpy(), features[:, reference, None].numpy(), values[:, None], [(1, 1)], 0, 0.5
        )

    def entropy(colours: np.ndarray, frame: int) -> float:
        up = torch.nn.functional.interpolate(torch.from_numpy(colours), scale_factor=4, mode="bilinear")
        return -float(up.gather(1, classes[:, frame, None]).clamp(min=1e-6).log().mean())

    truth = cells.numpy().astype(np.float64)
    first = copy(1, 0, truth[:, 0])
    source = np.stack([truth[0, 1], first[1]])  # the second clip is not teacher-forced
    second, propagated = copy(2, 1, source), copy(2, 1, first)
    forward = (entropy(first, 1) + entropy(second, 2)) / 2
    short, long = copy(0, 1, first), copy(0, 1, copy(1, 2, propagated))
    cycle = (entropy(short, 0) + entropy(long, 0)) / 2

    got = reconstruct(features, cells, classes, teacher_forced, Attributes((1,), temperature=0.5), with_cycle=True)
    assert got.forward.item() == pytest.approx(forward, abs=1e-5)
    assert got.cycle.item() == pytest.approx(cycle, abs=1e-5)
    np.testing.assert_allclose(got.predicted[:, 1].numpy(), second, atol=1e-5)
    alone = reconstruct(features, cells, classes, teacher_forced, Attributes((1,), temperature=0.5), with_cycle=False)
    assert (alone.forward.item(), alone.cycle.item()) == (pytest.approx(forward, abs=1e-5), 0.0)


def test_clips_depend_on_seed_and_number_alone(sampler: ClipSampler) -> None:
    first_pass = [sampler.clips([number, 7]) for number in range(3)]
    second_pass = [sampler.clips([number, 7]) for number in (2, 0, 1)]
    for first, second in zip(first_pass, [second_pass[i] for i in (1, 2, 0)], strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(first_pass[0], first_pass[1])


def test_broken_files_are_skipped_and_listed(videos: ClipCache) -> None:
    assert sorted(videos.names) == ["0.mp4", "1.mp4", "frames"]
    assert [Path(name).name for name in videos.skipped] == ["broken.mp4"]
    # 2 seconds at 6 frames per second
    assert 11 <= videos.starts[1] <= 13


def test_synthesised_clips_show_one_image_in_motion(sampler: ClipSampler) -> None:
    """Frames of a synthesised clip differ, and optical flow maps one to the next."""
    assert sampler.images is not None
    synthetic = ClipSampler(sampler.videos, sampler.images, replace(SMALL, image_share=1.0, crop=48))
    before, after = [], []
    for clip in synthetic.clips(range(6)):
        first, second = (np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in clip[:2])
        flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(first, second, None)  # type: ignore[call-overload]
        positions = np.stack(np.meshgrid(np.arange(48), np.arange(48)), -1).astype(np.float32) + flow
        returned = cv2.remap(second, positions, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]
        before.append(np.abs(first.astype(float) - second)[8:-8, 8:-8].mean())
        after.append(np.abs(first.astype(float) - returned)[8:-8, 8:-8].mean())
    assert np.mean(before) > 3
    assert np.mean(after) < 0.6 * np.mean(before)


def test_perspective_and_light_of_synthesised_clips_grow_evenly(
    sampler: ClipSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perspective and light are zero in frame 0 and grow linearly, within bounds, differently in each clip."""
    synthetic = ClipSampler(sampler.videos, sampler.images, replace(SMALL, image_share=1.0, frames=4))
    matrices: list[np.ndarray] = []
    monkeypatch.setattr(synthetic, "_warp", lambda image, matrix: (matrices.append(matrix), image)[1])
    flat = np.full((60, 80, 3), (100, 120, 140), np.uint8)
    assert sampler.images is not None
    monkeypatch.setattr(sampler.images, "frame", lambda index: flat)
    slopes, gains = [], []
    for number in range(40):
        lit = synthetic._from_image(np.random.default_rng(number))
        rows = [matrix[2] / matrix[2, 2] for matrix in matrices[-4:]]
        assert np.array_equal(lit[0], flat) and rows[0][:2].tolist() == [0, 0]
        tilt = rows[1][:2] / (1 + rows[1][:2].sum() * 15.5)  # at the centre of the crop
        assert np.abs(tilt * 32).max() <= 0.1 + 1e-9
        slopes.append(tilt * 32)
        gain = np.log(lit[:, 0, 0] / flat[0, 0])
        assert np.abs(gain[3]).max() <= 0.18 + 0.01
        np.testing.assert_allclose(gain[3], 3 * gain[1], atol=0.02)  # pixel values are rounded
        gains.append(gain[3])
    assert 0.02 < np.std(slopes) < 0.06 and 0.03 < np.std(gains) < 0.1
    assert np.std(np.ptp(gains, 1)) > 0.005, "channels differ"


def test_unknown_names_and_ranges_are_refused(footage: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="full, half, quarter, paper, colorization, got 'huge'"):
        preset("huge")
    changes: list[dict[str, Any]] = [{"crop": 30}, {"steps": 0}, {"dropout": 1.5}, {"precision": "int3"}, {"frames": 1}]
    for change in changes:
        with pytest.raises(InputError, match="expected"):
            TrainConfig(**change)
    for find in (find_videos, find_images):
        with pytest.raises(InputError, match="expected"):
            find(tmp_path)
    with pytest.raises(InputError, match="none of 1 files could be decoded"):
        open_cache([footage / "videos" / "broken.mp4"], 6.0, 48, tmp_path)
    videos = open_cache(find_videos(footage / "videos"), 6.0, 48, footage / "cache")
    with pytest.raises(InputError, match="video of at least 50 frames"):
        ClipSampler(videos, None, replace(SMALL, frames=50))


def command(footage: Path, out: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "corrflow.train.cli", "--data", str(footage / "videos"),
        "--images", str(footage / "images"),
        "--out", str(out), "--cache", str(footage / "cache"), "--batch", "1", "--crop", "32", "--radius", "2",
        "--threads", "1", "--save-every", "2", "--log-images-every", "3", *options,
    ]  # fmt: skip


def test_a_killed_and_resumed_run_ends_with_the_same_weights(footage: Path, tmp_path: Path) -> None:
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    subprocess.run(command(footage, unbroken, "--steps", "16"), check=True, capture_output=True)
    process = subprocess.Popen(
        command(footage, killed, "--steps", "16"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (killed / FILE_NAME).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_checkpoint(killed).step < 16, "the kill came after the end of the run"
    partial = killed / f".{FILE_NAME}.{process.pid}.part"  # as AtomicFile names it
    partial.write_bytes(b"partial")
    done = subprocess.run(command(footage, killed, "--steps", "16"), check=True, capture_output=True, text=True)
    assert "resuming" in done.stderr
    first, second = load_checkpoint(unbroken), load_checkpoint(killed)
    assert first.step == second.step == 16
    for name, tensor in first.model_state.items():
        assert torch.equal(tensor, second.model_state[name]), name
    for name, tensor in first.optimiser.items():
        assert torch.equal(tensor, second.optimiser[name]), name
    steps = [json.loads(line)["step"] for line in (killed / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 17))
    assert not partial.exists()
    assert list((killed / "reconstructions").iterdir()) and list((killed / "tensorboard").iterdir())

    other = subprocess.run(command(footage, killed, "--steps", "16", "--seed", "5"), capture_output=True, text=True)
    assert other.returncode == 2 and "run with other settings" in other.stderr
    assert "Traceback" not in other.stderr


def test_a_step_is_in_the_log_before_the_next_one(tmp_path: Path) -> None:
    with RunLogger(tmp_path, TrainConfig(), 0) as logger:
        logger.add_losses(1, {"colour": 0.5}, 0.1)
        assert json.loads((tmp_path / "log.jsonl").read_text())["step"] == 1


def test_minutes_fix_the_number_of_steps(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "timed"
    subprocess.run(command(footage, out, "--minutes", "0.02"), check=True, capture_output=True)
    checkpoint = load_checkpoint(out)
    assert checkpoint.step == checkpoint.train.steps > 1
    continued = command(footage, tmp_path / "continued", "--steps", "1", "--start-from", str(out))
    subprocess.run(continued, check=True, capture_output=True)
    assert load_checkpoint(tmp_path / "continued").provenance["steps_before"] == checkpoint.step


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "missing"])
def test_a_damaged_checkpoint_is_one_sentence(footage: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / FILE_NAME
    if damage != "missing":
        trainer = Trainer.create(PRESETS["quarter"], SMALL, torch.zeros(4, 2))
        save_checkpoint(path, trainer.checkpoint(0, {}))
        content = bytearray(path.read_bytes())
        if damage == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "flipped":
            content[20] ^= 0xFF
            path.write_bytes(content)
        else:
            path.write_text("weights")
    with pytest.raises(InputError, match=r"expected a checkpoint|damaged"):
        load_checkpoint(tmp_path)
    assert os.listdir(tmp_path) == ([] if damage == "missing" else [FILE_NAME])
