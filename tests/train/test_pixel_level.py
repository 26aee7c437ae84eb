"""The pixel-level objective: pairs of crops, their positives, the loss, the target network, and runs with it."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import assert_same_states, train_whole_and_in_parts

from corrflow.errors import InputError
from corrflow.export.encoder_graph import FrameEncoder
from corrflow.train import loop
from corrflow.train.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from corrflow.train.config import ModelConfig, TrainConfig, preset, train_config
from corrflow.train.curves import plot_log
from corrflow.train.data.clips import CachedVideos, ClipCache, ClipSampler, open_cache
from corrflow.train.data.frames import find_videos
from corrflow.train.data.pairs import Pairs, PairSampler, random_box, same_place
from corrflow.train.distributed import DistributedContext
from corrflow.train.model import new_encoder, normalise
from corrflow.train.pixel_level import PixelLevel, pixel_loss, spread
from corrflow.train.trainer import Trainer

SMALL = TrainConfig(
    steps=4, batch=2, crop=32, radius=2, colours=4, threads=1, objective="pixel", pairs=4, pair_crop=32,
    positive_distance=0.4, image_share=0.5, learning_rate=1e-3,
)  # fmt: skip
TINY = ModelConfig(widths=(8, 8, 8, 8), feature_channels=8)
BOTH = "reconstruction,pixel"
OBJECTIVES = ("reconstruction", "pixel", BOTH)
NORMALISED = replace(TINY, feature_norm=True)


@pytest.fixture(scope="module")
def sampler(footage: Path, images: ClipCache) -> ClipSampler:
    return ClipSampler(open_cache(find_videos(footage / "videos"), 6.0, 64, footage / "cache"), images, SMALL)


def brute_force(first: tuple, second: tuple, cells: int, distance: float) -> list[tuple[int, int]]:
    """Compare every cell of one crop with every cell of the other."""
    limit = distance * max(math.hypot(box[2] / cells, box[3] / cells) for box in (first, second))

    def centre(box: tuple, cell: int) -> tuple[float, float]:
        row, column = divmod(cell, cells)
        return box[0] + (column + 0.5) * box[2] / cells, box[1] + (row + 0.5) * box[3] / cells

    return [
        (i, j)
        for i in range(cells**2)
        for j in range(cells**2)
        if math.dist(centre(first, i), centre(second, j)) < limit
    ]


def test_positives_match_a_brute_force_search() -> None:
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(40):
        first, second = (random_box((60, 90), 0.05, generator) for _ in range(2))
        for distance in (0.1, 0.7):
            expected = brute_force(first, second, 5, distance)
            assert list(map(tuple, same_place(first, second, 5, distance).tolist())) == expected
            found += len(expected)
    assert found > 100
    assert same_place((0, 0, 20, 20), (40, 40, 20, 20), 5, 0.7).shape == (0, 2)
    same = (3, 4, 50, 30)
    assert same_place(same, same, 5, 0.1).tolist() == [[cell, cell] for cell in range(25)]


def test_boxes_lie_in_the_image_and_have_all_sizes() -> None:
    generator = np.random.default_rng(0)
    boxes = np.array([random_box((120, 200), 0.05, generator) for _ in range(500)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= 200).all() and (boxes[:, 1] + boxes[:, 3] <= 120).all()
    area, aspect = boxes[:, 2] * boxes[:, 3] / 24000, boxes[:, 2] / boxes[:, 3]
    assert area.min() < 0.08 and area.max() > 0.7
    assert 0.73 < aspect.min() < aspect.max() < 1.37
    assert random_box((8, 20), 0.05, generator)[2:] == (8, 8), "an image below the smallest crop"


def test_crops_show_what_their_positives_say(images: ClipCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixel values are coordinates, so that positives have close values, and other cells have not."""
    y, x = np.mgrid[:200, :240]
    monkeypatch.setattr(images, "frame", lambda index: np.stack([x, y, 0 * x], -1).astype(np.uint8))
    config = replace(SMALL, image_share=1.0, pair_crop=64, positive_distance=0.3)
    pairs = PairSampler(CachedVideos(images, 1), images, config, 4).pairs(range(12))
    assert pairs.crops.shape == (12, 2, 64, 64, 3) and pairs.crops.dtype == np.uint8
    assert all(len(positives) for positives in pairs.positives)
    for crops, positives in zip(pairs.crops, pairs.positives, strict=True):
        # RGB, so that x is the blue channel
        cells = crops.reshape(2, 16, 4, 16, 4, 3).mean((2, 4)).reshape(2, 256, 3)[..., :0:-1]
        distance = np.linalg.norm(cells[0][positives[:, 0]] - cells[1][positives[:, 1]], axis=1)
        diagonal = max(np.linalg.norm(side[255] - side[0]) / 15 for side in cells)
        assert distance.max() < 0.3 * diagonal + 2.5  # two roundings and two resizings


def test_pairs_depend_on_seed_and_number_alone(sampler: ClipSampler, images: ClipCache) -> None:
    config = replace(SMALL, pair_gap=3)
    first, second = (PairSampler(sampler.videos, images, config, 4) for _ in range(2))
    one, other = first.pairs([3, 8]), second.pairs([8, 3])
    assert np.array_equal(one.crops, other.crops[::-1])
    assert np.array_equal(one.positives[0], other.positives[1])
    assert not np.array_equal(one.crops[0], one.crops[1])


def test_the_two_crops_may_be_of_two_frames(sampler: ClipSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, pair_gap=3, image_share=0.0)
    gaps: list[int] = []
    frames = [np.full((50, 60, 3), 20 * t, np.uint8) for t in range(4)]
    monkeypatch.setattr(
        sampler.videos,
        "sample",
        lambda number, length, generator, taken: (gaps.append(length), [frames[i] for i in taken])[1],
    )
    pairs = PairSampler(sampler.videos, None, config, 4).pairs(range(40))
    assert set(gaps) == {1, 2, 3, 4}
    shown = pairs.crops[:, :, 0, 0, 0].astype(int) // 20
    assert np.array_equal(np.abs(shown[:, 0] - shown[:, 1]) + 1, gaps)
    assert (shown[:, 0] > shown[:, 1]).any() and (shown[:, 0] < shown[:, 1]).any()


def test_the_loss_matches_a_loop_over_positives() -> None:
    generator = torch.Generator().manual_seed(0)
    predictions, targets = torch.randn(2, 3, 2, 5, 2, 3, generator=generator, dtype=torch.float64)
    predictions.requires_grad_()
    positives = [np.array([[0, 1], [0, 5], [4, 5]]), np.empty((0, 2), np.int64), np.array([[5, 0]])]
    total = torch.zeros((), dtype=torch.float64)
    for pair, cells in enumerate(positives):
        online, goal = (maps[pair].flatten(2) for maps in (predictions, targets))
        for i, j in cells.tolist():
            for here, there, a, b in ((0, 1, i, j), (1, 0, j, i)):
                cosine = torch.cosine_similarity(online[here, :, a], goal[there, :, b], dim=0)
                total = total - cosine / len(cells) / 2 / len(positives)
    loss = pixel_loss(predictions, targets, positives)
    torch.testing.assert_close(loss, total)
    for got, expected in zip(*(torch.autograd.grad(value, predictions) for value in (loss, total)), strict=True):
        torch.testing.assert_close(got, expected)
    same = torch.randn(1, 1, 5, 2, 3).expand(1, 2, 5, 2, 3)
    assert pixel_loss(same, same, [np.array([[2, 2], [3, 3]])]).item() == pytest.approx(-1)
    assert pixel_loss(same, same, [np.empty((0, 2), np.int64)]).item() == 0


def test_the_target_network_follows_the_online_network() -> None:
    encoder = new_encoder(TINY, 0)
    pixel = PixelLevel(encoder, 0)
    before = copy.deepcopy(pixel.state_dict())
    assert torch.equal(before["target_encoder.stem.weight"], encoder.stem.weight)
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *pixel.projector.parameters()):
            parameter.add_(1)
    pixel.update_target(encoder, 0.75)
    torch.testing.assert_close(pixel.target_encoder.head.weight, before["target_encoder.head.weight"] + 0.25)
    torch.testing.assert_close(
        pixel.state_dict()["target_projector.0.weight"], before["target_projector.0.weight"] + 0.25
    )
    trained = {name.split(".")[0] for name, parameter in pixel.named_parameters() if parameter.requires_grad}
    assert trained == {"projector", "predictor"}
    decays = [TrainConfig(steps=100).momentum_at(step) for step in (0, 50, 100)]
    assert decays == pytest.approx([0.99, 0.995, 1])


def test_spread_tells_collapsed_features() -> None:
    same = torch.nn.functional.normalize(torch.randn(1, 8, 1, 1), dim=1).expand(2, 8, 4, 4)
    assert spread(same) == pytest.approx(0, abs=1e-6)
    assert spread(torch.cat([same, -same])) == pytest.approx(1)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("stride", [4, 8])
def test_each_objective_trains_at_each_stride(sampler: ClipSampler, objective: str, stride: int) -> None:
    """Losses of the objective are logged, and all trained networks change."""
    config = replace(SMALL, objective=objective, accumulate=2)
    codebook = torch.rand(4, 3) * 50
    trainer = Trainer.create(replace(NORMALISED, stride=stride), config, codebook)
    before = {name: tensor.clone() for name, tensor in trainer.encoder.state_dict().items()}
    heads = copy.deepcopy(trainer.pixel.state_dict()) if trainer.pixel else {}
    load = loop.batch_loader(trainer, sampler)
    results = []
    for step in range(2):
        clips, pairs, frame_pairs = load(step)
        assert (clips is None) == (objective == "pixel") and (pairs is None) == (objective == "reconstruction")
        assert frame_pairs is None
        results.append(trainer.step(clips, step, pairs))
    names = {"reconstruction": {"forward", "cycle"}, "pixel": {"pixel", "spread"}}
    names[BOTH] = names["reconstruction"] | names["pixel"]
    assert results[-1].losses(config).keys() == names[objective]
    assert all(math.isfinite(value) and value != 0 for value in results[-1].losses(config).values())
    state = trainer.encoder.state_dict()
    assert all(not torch.equal(state[name], before[name]) for name in ("stem.weight", "blocks.7.conv2.weight"))
    if trainer.pixel is not None:
        assert all(
            not torch.equal(tensor, heads[name])
            for name, tensor in trainer.pixel.named_parameters()
            if "head_norm" not in name
        )


def test_both_objectives_add_their_gradients(sampler: ClipSampler) -> None:
    """The gradient is the weighted sum of the objectives' gradients, and no step mixes their inputs."""
    config = replace(SMALL, precision="float64", pixel_weight=0.5)
    codebook = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) * 50
    gradients = {}
    for objective in OBJECTIVES:
        trainer = Trainer.create(TINY, replace(config, objective=objective), codebook)
        clips, pairs, _ = loop.batch_loader(trainer, sampler)(0)
        trainer.step(clips, 0, pairs)
        gradients[objective] = {name: p.grad for name, p in trainer.encoder.named_parameters()}
    for name, gradient in gradients[BOTH].items():
        torch.testing.assert_close(gradient, gradients["reconstruction"][name] + gradients["pixel"][name])


def test_the_objective_brings_crops_of_one_place_together(sampler: ClipSampler) -> None:
    config = replace(SMALL, steps=25, pairs=8, learning_rate=3e-3, image_share=0.0)
    trainer = Trainer.create(TINY, config, torch.zeros(4, 3))
    load = loop.batch_loader(trainer, sampler)
    losses = []
    for step in range(config.steps):
        clips, pairs, _ = load(step)
        result = trainer.step(clips, step, pairs)
        losses.append(result.pixel)
        assert result.spread > 0.05
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2


@pytest.mark.parametrize("objective", ["pixel", BOTH])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_has_the_same_bits(sampler: ClipSampler, tmp_path: Path, objective: str, precision: str) -> None:
    """The run is stopped after every step, so the checkpoint must contain all state, the target network included."""
    config = replace(SMALL, objective=objective, precision=precision, ema_decay=0.9)
    one, two = train_whole_and_in_parts(tmp_path, NORMALISED, config, sampler)
    assert_same_states(one, two, "model_state", "pixel", "ema", "optimiser")
    assert any(name.startswith("pixel.predictor") for name in one.optimiser)
    logs = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logs] == [1, 2, 3]
    plot_log(tmp_path / "parts" / "log.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_weights_of_another_run_start_both_networks(sampler: ClipSampler) -> None:
    first = Trainer.create(TINY, replace(SMALL, seed=7), torch.zeros(4, 3))
    # The other run had no normalisation of its features.
    second = loop.prepare(NORMALISED, SMALL, sampler, first.checkpoint(0, {}), DistributedContext())
    assert second.pixel is not None
    for encoder in (second.encoder, second.pixel.target_encoder):
        assert torch.equal(encoder.stem.weight, first.encoder.stem.weight)


@pytest.mark.parametrize("size", [(48, 64), (33, 50), (8, 8)], ids=str)
def test_stride_8_and_normalised_features_are_the_same_in_an_artifact(size: tuple[int, int]) -> None:
    encoder = new_encoder(ModelConfig(stride=8, feature_norm=True), 0)
    encoder.cells(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))  # fills the statistics
    encoder.eval()
    frame = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = normalise(frame.flip(3).permute(0, 3, 1, 2).float() / 255)
    with torch.no_grad():
        features = encoder(image)
        assert encoder.cells(image).shape[2:] == (-(-size[0] // 8), -(-size[1] // 8))
        torch.testing.assert_close(FrameEncoder(encoder)(frame), features, atol=1e-4, rtol=1e-3)
    assert features.shape == (1, 64, -(-size[0] // 4), -(-size[1] // 4))
    torch.testing.assert_close(features.square().sum(1), torch.ones_like(features[:, 0]))


def test_normalised_features_have_no_common_part() -> None:
    """A large bias of the last layer makes all features alike, unless they are normalised."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    spreads = []
    for feature_norm in (False, True):
        encoder = new_encoder(replace(TINY, feature_norm=feature_norm), 0).train()
        with torch.no_grad():
            assert encoder.head.bias is not None
            encoder.head.bias.fill_(5)
            spreads.append(spread(encoder.cells(images)))
    assert spreads[0] < 0.1 and spreads[1] > 0.9


def test_receptive_fields_of_stride_8_are_centred_beside_the_cells_centre() -> None:
    """The mean position of the pixels that influence feature (y, x) is (8y + 3, 8x + 3)."""
    influence = torch.zeros(128, 128)
    for seed in range(8):
        encoder = new_encoder(replace(preset("quarter"), stride=8), seed).eval()
        image = torch.rand(1, 3, 128, 128, requires_grad=True)
        encoder.cells(normalise(image))[0, :4, 8, 8].square().sum().backward()
        assert image.grad is not None
        influence += image.grad[0].abs().sum(0)
    weights, positions = influence / influence.sum(), torch.arange(128)
    assert float((weights.sum(1) * positions).sum()) == pytest.approx(8 * 8 + 3, abs=1.2)
    assert float((weights.sum(0) * positions).sum()) == pytest.approx(8 * 8 + 3, abs=1.2)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(
        InputError,
        match="objective among reconstruction, pixel, frame, distil, or several such as pixel,frame, got 'contrast'",
    ):
        replace(SMALL, objective="contrast")
    with pytest.raises(InputError, match="got 'pixel,pixel'"):
        replace(SMALL, objective="pixel,pixel")
    assert train_config("quarter", {"objective": "frame,pixel"}, []).objective == "pixel,frame"
    for change in ({"pair_crop": 36}, {"pairs": 3, "accumulate": 2}, {"min_crop_area": 0.0}):
        with pytest.raises(InputError, match="expected"):
            replace(SMALL, **change)
    with pytest.raises(InputError, match="stride of 4 or 8"):
        ModelConfig(stride=16)
    with pytest.raises(InputError, match="stride of 4 or 8"):
        ModelConfig(stride=8, unit_norm=False)
    with pytest.raises(InputError, match="got 4; change --batch"):
        DistributedContext(0, 3).check(SMALL)
    assert train_config("quarter", {"objective": "pixel"}, []).learning_rate == 1e-3
    assert train_config("quarter", {"objective": "pixel", "learning_rate": 0.5}, []).learning_rate == 0.5
    assert train_config("quarter", {"objective": BOTH}, []).learning_rate == TrainConfig.learning_rate


def command(footage: Path, out: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "corrflow.train.cli", "--data", str(footage / "videos"),
        "--images", str(footage / "images"), "--out", str(out), "--cache", str(footage / "cache"),
        "--pairs", "2", "--pair-crop", "32", "--batch", "1", "--crop", "32", "--radius", "2", "--threads", "1",
        "--device", "cpu", "--log-images-every", "2", *options,
    ]  # fmt: skip


def test_the_command_trains_with_the_objective_and_resumes(footage: Path, tmp_path: Path) -> None:
    options = ("--objective", "pixel", "--stride", "8", "--pair-gap", "1", "--steps", "2")
    done = subprocess.run(command(footage, tmp_path / "run", *options), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    checkpoint = load_checkpoint(tmp_path / "run")
    assert (checkpoint.step, checkpoint.model.stride, checkpoint.train.objective) == (2, 8, "pixel")
    assert checkpoint.train.learning_rate == 1e-3 and checkpoint.model.feature_norm
    assert list((tmp_path / "run" / "pair_matches").iterdir())
    assert not (tmp_path / "run" / "reconstructions").exists()
    other = subprocess.run(
        command(footage, tmp_path / "run", "--objective", BOTH, "--stride", "8", "--steps", "2"),
        capture_output=True, text=True,
    )  # fmt: skip
    assert other.returncode == 2 and "run with other settings" in other.stderr
    on_top = ("--stride", "8", "--steps", "1", "--start-from", str(tmp_path / "run"))
    done = subprocess.run(command(footage, tmp_path / "next", *on_top), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "next").model == checkpoint.model, "reconstruction keeps the shape of its start"


def test_checkpoints_without_the_objective_can_be_read(tmp_path: Path) -> None:
    """A run without pairs has no heads in its checkpoint, as runs before the objective existed."""
    trainer = Trainer.create(TINY, replace(SMALL, objective="reconstruction"), torch.zeros(4, 3))
    save_checkpoint(tmp_path / FILE_NAME, trainer.checkpoint(0, {}))
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.pixel == {} and checkpoint.encoder().config == TINY


def test_a_slice_of_pairs_keeps_crops_and_positives_together() -> None:
    pairs = Pairs(np.arange(4)[:, None], [np.full((1, 2), number) for number in range(4)])
    part = pairs[slice(2, 4)]
    assert len(part) == 2 and [int(positives[0, 0]) for positives in part.positives] == part.crops[:, 0].tolist()


def test_two_processes_train_both_objectives_as_one_process(footage: Path, tmp_path: Path) -> None:
    """Weights, heads and target network agree to 1e-5; float64, because rounding can switch a ReLU."""
    options = ("--objective", BOTH, "--pairs", "4", "--batch", "2", "--steps", "2", "--precision", "float64")
    done = subprocess.run(command(footage, tmp_path / "one", *options), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = command(footage, tmp_path / "two", *options)
    module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "corrflow.train"]
    done = subprocess.run([line[0], *module, *line[3:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    one, two = load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "two")
    assert one.step == two.step == 2 and one.pixel
    for states, others in ((one.model_state, two.model_state), (one.pixel, two.pixel), (one.optimiser, two.optimiser)):
        for name, tensor in states.items():
            torch.testing.assert_close(others[name], tensor, atol=1e-5, rtol=1e-5)
