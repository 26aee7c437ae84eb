"""The frame-level objective: pairs of frames in changed colours, the loss, and runs with it, alone and with others."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import assert_same_tensors, train_whole_and_in_parts

from corrflow.train import loop
from corrflow.train.checkpoint import load_checkpoint
from corrflow.train.config import ModelConfig, TrainConfig, train_config
from corrflow.train.data import frame_pairs as data
from corrflow.train.data.clips import CachedVideos, ClipCache, ClipSampler, open_cache
from corrflow.train.data.frame_pairs import FramePairSampler, change_colours
from corrflow.train.data.frames import find_videos
from corrflow.train.distributed import DistributedContext
from corrflow.train.frame_level import FrameLevel, frame_loss, mean_feature
from corrflow.train.model import new_encoder, normalise
from corrflow.train.trainer import Trainer

SMALL = TrainConfig(
    steps=4, batch=2, crop=32, radius=2, colours=4, threads=1, objective="frame", pairs=4, pair_crop=32, frame_gap=4,
    positive_distance=0.4, image_share=0.5, learning_rate=1e-3,
)  # fmt: skip
TINY = ModelConfig(widths=(8, 8, 8, 8), feature_channels=8, feature_norm=True)


@pytest.fixture(scope="module")
def sampler(footage: Path, images: ClipCache) -> ClipSampler:
    return ClipSampler(open_cache(find_videos(footage / "videos"), 6.0, 64, footage / "cache"), images, SMALL)


def test_pairs_depend_on_seed_and_number_alone(sampler: ClipSampler, images: ClipCache) -> None:
    first, second = (FramePairSampler(sampler.videos, images, SMALL) for _ in range(2))
    pairs = first.pairs(range(6))
    assert pairs.shape == (6, 2, 32, 32, 3) and pairs.dtype == np.uint8
    assert np.array_equal(pairs[::-1], second.pairs(range(5, -1, -1)))
    assert not np.array_equal(pairs[0], pairs[1])
    other = FramePairSampler(sampler.videos, images, replace(SMALL, seed=1))
    assert not np.array_equal(pairs, other.pairs(range(6)))


def test_frames_are_at_most_the_gap_apart_and_only_two_are_decoded(
    sampler: ClipSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames are of one grey each, so that their numbers can be read from crops without changes of colour."""
    monkeypatch.setattr(data, "change_colours", lambda image, generator: image)
    decoded: list[int] = []

    def frame(index: int) -> np.ndarray:
        decoded.append(index)
        return np.full((50, 60, 3), 10 * index, np.uint8)

    assert isinstance(sampler.videos, CachedVideos)
    monkeypatch.setattr(sampler.videos.cache, "frame", frame)
    pairs = FramePairSampler(sampler.videos, None, SMALL).pairs(range(60))
    gaps = pairs[:, 1, 0, 0, 0].astype(int) // 10 - pairs[:, 0, 0, 0, 0].astype(int) // 10
    assert set(gaps.tolist()) == set(range(-4, 5)), "both orders in time"
    assert len(decoded) == 2 * 60


def test_changes_of_colour_keep_greys_grey_and_vary() -> None:
    """Brightness and contrast move a grey image; hue and saturation must not colour it."""
    grey = np.repeat(np.random.default_rng(0).integers(60, 180, (24, 24, 1), np.uint8), 3, 2)
    changed = [change_colours(grey, np.random.default_rng(seed)) for seed in range(40)]
    assert all(image.dtype == np.uint8 and image.shape == grey.shape for image in changed)
    assert max(int(np.ptp(image.astype(int), axis=2).max()) for image in changed) <= 1
    means = [image.mean() for image in changed]
    assert min(means) < 90 and max(means) > 140
    red = np.zeros((24, 24, 3), np.uint8)
    red[..., 0] = 200
    results = np.array([change_colours(red, np.random.default_rng(seed))[12, 12] for seed in range(60)])
    assert (np.ptp(results, axis=1) <= 1).mean() == pytest.approx(0.2, abs=0.12), "grey images"
    assert (results[:, 0] >= results[:, 1:].max(1)).mean() > 0.95, "the hue changes by a tenth of the circle at most"


def test_the_loss_is_the_cosine_with_the_other_frame() -> None:
    predictions, targets = torch.randn(2, 3, 2, 5, 1, 1, generator=torch.Generator().manual_seed(0))
    expected = -torch.stack(
        [
            torch.cosine_similarity(predictions[pair, here].flatten(), targets[pair, 1 - here].flatten(), dim=0)
            for pair in range(3)
            for here in (0, 1)
        ]
    ).mean()
    torch.testing.assert_close(frame_loss(predictions, targets), expected)
    same = torch.randn(2, 1, 5, 1, 1).expand(2, 2, 5, 1, 1)
    assert frame_loss(same, same).item() == pytest.approx(-1)


def test_heads_see_the_mean_of_a_frame() -> None:
    encoder = new_encoder(TINY, 0).eval()
    heads = FrameLevel(encoder, 0).eval()
    crops = normalise(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    cells = encoder.cells(crops)
    assert mean_feature(cells).shape == (2, 8, 1, 1)
    torch.testing.assert_close(heads.targets(crops), heads.target_projector(cells.mean((2, 3), keepdim=True)))
    shuffled = cells.flatten(2)[..., torch.randperm(64)].unflatten(2, (8, 8))
    torch.testing.assert_close(heads.predict(cells), heads.predict(shuffled))


def test_the_loss_falls_and_features_do_not_collapse(sampler: ClipSampler) -> None:
    config = replace(SMALL, steps=25, pairs=8, learning_rate=3e-3, image_share=0.0)
    trainer = Trainer.create(TINY, config, torch.zeros(4, 3))
    before = copy.deepcopy(trainer.encoder.state_dict())
    load = loop.batch_loader(trainer, sampler)
    losses = []
    for step in range(config.steps):
        clips, pairs, frame_pairs = load(step)
        assert clips is None and pairs is None
        result = trainer.step(clips, step, pairs, frame_pairs)
        assert result.losses(config).keys() == {"frame", "frame_spread"}
        losses.append(result.frame)
        assert result.frame_spread > 0.05
    assert np.mean(losses[-5:]) < np.mean(losses[:2]) - 0.2
    state = trainer.encoder.state_dict()
    assert all(not torch.equal(state[name], before[name]) for name in ("stem.weight", "head.weight"))


def test_objectives_add_their_gradients(sampler: ClipSampler) -> None:
    """The gradient is the weighted sum of the objectives' gradients, and no step mixes their inputs."""
    config = replace(SMALL, precision="float64", frame_weight=0.5)
    codebook = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) * 50
    alone = ("reconstruction", "pixel", "frame")
    gradients = {}
    for objective in (*alone, ",".join(alone)):
        trainer = Trainer.create(replace(TINY, feature_norm=False), replace(config, objective=objective), codebook)
        clips, pairs, frame_pairs = loop.batch_loader(trainer, sampler)(0)
        trainer.step(clips, 0, pairs, frame_pairs)
        gradients[objective] = {name: p.grad for name, p in trainer.encoder.named_parameters()}
    for name, gradient in gradients[",".join(alone)].items():
        torch.testing.assert_close(gradient, sum(gradients[objective][name] for objective in alone))


@pytest.mark.parametrize("objective", ["frame", "pixel,frame"])
def test_a_resumed_run_has_the_same_bits(sampler: ClipSampler, tmp_path: Path, objective: str) -> None:
    """The run is stopped after every step, so the checkpoint must contain all state, the target network included."""
    config = replace(SMALL, objective=objective, accumulate=2, ema_decay=0.9)
    one, two = train_whole_and_in_parts(tmp_path, TINY, config, sampler)
    assert one.frame and bool(one.pixel) == ("pixel" in objective)
    for name in ("model_state", "pixel", "frame", "ema", "optimiser"):
        states, others = getattr(one, name), getattr(two, name)
        assert_same_tensors(states, others)
    assert any(name.startswith("frame.predictor") for name in one.optimiser)
    logs = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logs] == [1, 2, 3]


def test_weights_of_another_run_start_both_networks(sampler: ClipSampler) -> None:
    first = Trainer.create(TINY, replace(SMALL, seed=7), torch.zeros(4, 3))
    second = loop.prepare(TINY, SMALL, sampler, first.checkpoint(0, {}), DistributedContext())
    assert second.frame is not None
    assert torch.equal(second.frame.target_encoder.stem.weight, first.encoder.stem.weight)


def test_settings_of_the_objective() -> None:
    config = train_config("quarter", {"objective": "pixel,frame"}, [])
    assert config.learning_rate == 1e-3 and config.frames_needed == config.frame_gap + 1
    assert train_config("quarter", {"objective": "frame,reconstruction"}, []).objective == "reconstruction,frame"


def test_two_processes_train_as_one_process(footage: Path, tmp_path: Path) -> None:
    """Weights, heads and target networks agree to 1e-5; float64, because rounding can switch a ReLU."""

    def line(out: Path) -> list[str]:
        return [
            sys.executable, "-m", "corrflow.train", "--data", str(footage / "videos"),
            "--images", str(footage / "images"), "--out", str(out), "--cache", str(footage / "cache"),
            "--objective", "frame,pixel", "--frame-gap", "2", "--pairs", "4", "--pair-crop", "32", "--steps", "2",
            "--precision", "float64", "--threads", "1", "--device", "cpu", "--log-images-every", "2",
        ]  # fmt: skip

    done = subprocess.run(line(tmp_path / "one"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "one" / "frame_pair_matches").iterdir())
    module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = line(tmp_path / "two")
    done = subprocess.run([command[0], *module, *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    one, two = load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "two")
    assert one.step == two.step == 2 and one.pixel and one.frame
    for name in ("model_state", "pixel", "frame", "optimiser"):
        for key, tensor in getattr(one, name).items():
            torch.testing.assert_close(getattr(two, name)[key], tensor, atol=1e-5, rtol=1e-5)
