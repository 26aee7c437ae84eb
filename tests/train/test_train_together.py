"""Training in several processes equals training in one process; presets and ablations change what they name."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import assert_same_tensors, train_whole_and_in_parts, write_footage

from corrflow.errors import InputError
from corrflow.train import loop
from corrflow.train.checkpoint import FILE_NAME, load_checkpoint
from corrflow.train.config import ABLATIONS, TrainConfig, preset, train_config
from corrflow.train.data.clips import ClipSampler, open_cache
from corrflow.train.data.frames import find_videos
from corrflow.train.distributed import DistributedContext
from corrflow.train.trainer import Trainer
from corrflow.train.visualisation import best_matches, feature_image, match_image

SMALL = TrainConfig(steps=4, batch=4, crop=32, radius=2, colours=4, threads=1)


@pytest.fixture(scope="module")
def sampler(footage: Path) -> ClipSampler:
    return ClipSampler(open_cache(find_videos(footage / "videos"), 6.0, 64, footage / "cache"), None, SMALL)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create two folders of twelve frames that pan over a texture."""
    return write_footage(tmp_path_factory.mktemp("footage"))


def command(footage: Path, out: Path, *options: str, processes: int = 1) -> list[str]:
    module = ["-m", "corrflow.train"]
    if processes > 1:
        module = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *module]
    return [
        sys.executable, *module, "--data", str(footage / "videos"), "--out", str(out),
        "--cache", str(footage / "cache"), "--crop", "32", "--radius", "2", "--threads", "1",
        "--device", "cpu", "--precision", "float32",
        "--log-images-every", "1000", *options,
    ]  # fmt: skip


def run(line: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_train_as_one_process(footage: Path, tmp_path: Path) -> None:
    """Losses, weights, statistics and moments after three steps agree to 1e-5.

    The test uses float64. In float32, rounding can switch a ReLU or the clamp of the loss, which changes a gradient by
    a thousandth. Adam's first steps are as long for small gradients as for large ones.
    """
    options = ("--batch", "4", "--accumulate", "2", "--steps", "3", "--ema-decay", "0.9", "--precision", "float64")
    run(command(footage, tmp_path / "one", *options))
    distributed = run(command(footage, tmp_path / "two", *options, processes=2))
    assert "2 processes on cpu" in " ".join(distributed.stderr.split())
    one, two = load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "two")
    assert one.step == two.step == 3
    assert torch.equal(one.codebook, two.codebook)
    for line, other in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert other["forward"] == pytest.approx(line["forward"], abs=1e-5)
        assert other["cycle"] == pytest.approx(line["cycle"], abs=1e-5)
    start = Trainer.create(one.model, one.train, one.codebook).encoder.state_dict()
    for states, others in (
        (one.model_state, two.model_state),
        (one.ema, two.ema),
        (one.optimiser, two.optimiser),
    ):
        for name, tensor in states.items():
            torch.testing.assert_close(others[name], tensor, atol=1e-5, rtol=1e-5)
    assert float((one.model_state["stem.weight"] - start["stem.weight"]).abs().max()) > 1e-4, "nothing was learned"


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same_state(first: Path, second: Path) -> None:
    """Assert that two runs ended with identical states."""
    one, two = load_checkpoint(first), load_checkpoint(second)
    assert (one.step, one.train) == (two.step, two.train)
    for states, others in (
        (one.model_state, two.model_state),
        (one.ema, two.ema),
        (one.optimiser, two.optimiser),
        ({"codebook": one.codebook, "scaler": one.scaler}, {"codebook": two.codebook, "scaler": two.scaler}),
    ):
        assert_same_tensors(states, others)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_resumed_run_has_the_same_bits(sampler: ClipSampler, tmp_path: Path, precision: str) -> None:
    """The run is stopped after every step, so the checkpoint must contain all state."""
    config = replace(SMALL, precision=precision, ema_decay=0.9, accumulate=2)
    train_whole_and_in_parts(tmp_path, preset("quarter"), config, sampler, steps=4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert_same_state(whole, parts)
    checkpoint = load_checkpoint(whole)
    assert checkpoint.scaler.numel() == (2 if precision == "float16" else 0)
    assert [line["step"] for line in log(parts)] == [1, 2, 3, 4]


def test_kills_at_any_point_lose_at_most_one_interval(
    footage: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """A run that is killed --train-kills times at random ends like an uninterrupted run."""
    interval, steps = 3, 10_000
    generator = np.random.default_rng(0)
    kills, seen, resumed = int(pytestconfig.getoption("--train-kills") or 0), 0, 0
    line = command(footage, tmp_path / "killed", "--batch", "1", "--steps", str(steps), "--save-every", str(interval))
    for _ in range(kills):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None and steps_done(tmp_path / "killed") <= seen:
            time.sleep(0.01)
        time.sleep(float(generator.uniform(0, 0.5)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        written = log_until_cut(tmp_path / "killed")
        saved = load_checkpoint(tmp_path / "killed").step
        assert saved >= seen and saved % interval == 0
        assert written - saved <= interval, "a logged step is more than one interval after the checkpoint"
        resumed += saved > seen
        seen = saved
    assert resumed == kills, "a kill came before a new checkpoint"
    # Uninterrupted run of the same length.
    config, model = load_checkpoint(tmp_path / "killed").train, preset("quarter")
    cache = open_cache(find_videos(footage / "videos"), config.frames_per_second, 256, footage / "cache")
    sampler = ClipSampler(cache, None, config)
    (tmp_path / "unbroken").mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    trainer = loop.prepare(model, config, sampler, None, DistributedContext())
    loop.train(tmp_path / "unbroken", trainer, sampler, 0, {}, steps, steps, stop_at=seen)
    torch.set_num_threads(threads)
    assert_same_state(tmp_path / "unbroken", tmp_path / "killed")


def steps_done(run: Path) -> int:
    return load_checkpoint(run).step if (run / FILE_NAME).exists() else 0


def log_until_cut(run: Path) -> int:
    """Return the step of the last complete line; a kill may truncate a line."""
    found = 0
    for line in (run / "log.jsonl").read_text().splitlines():
        try:
            found = json.loads(line)["step"]
        except ValueError:
            break
    return found


def test_a_run_of_two_processes_stops_and_resumes(footage: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun ends both processes after the same step with a checkpoint, which one process resumes."""
    options = ("--batch", "2", "--steps", "100000", "--save-every", "100000")
    process = subprocess.Popen(
        command(footage, tmp_path / "run", *options, processes=2), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not (tmp_path / "run" / "tensorboard").exists():
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    stopped = load_checkpoint(tmp_path / "run").step
    assert 0 < stopped < 100000, error.decode()[-800:]
    sampler = ClipSampler(open_cache(find_videos(footage / "videos"), 6.0, 256, footage / "cache"), None, SMALL)
    trainer = loop.prepare(
        preset("quarter"), load_checkpoint(tmp_path / "run").train, sampler, None, DistributedContext()
    )
    trainer.load(load_checkpoint(tmp_path / "run"))
    assert loop.train(tmp_path / "run", trainer, sampler, stopped, {}, 100, 100, stop_at=stopped + 2) == stopped + 2


def test_every_clip_is_assigned_to_one_process() -> None:
    """Clips of a step are divided for any number of processes and parts; an impossible division is refused."""
    for count, accumulate in [(1, 1), (2, 1), (2, 2), (4, 3), (3, 4)]:
        shares = [DistributedContext(rank, count).clip_numbers(5, 24, accumulate) for rank in range(count)]
        assert sorted(number for share in shares for number in share) == list(range(120, 144))
        # A part of the accumulation has the same clips for any number of processes.
        first = {number for share in shares for number in share[: len(share) // accumulate]}
        assert first == set(range(120, 120 + 24 // accumulate))
    with pytest.raises(InputError, match=r"multiple of --accumulate times the processes \(2 x 3\), got 8"):
        DistributedContext(0, 3).clip_numbers(0, 8, 2)


def test_accumulation_averages_the_parts_gradients(sampler: ClipSampler) -> None:
    """The gradient equals the mean over parts that are computed alone, from the same weights."""
    accumulated = Trainer.create(preset("quarter"), replace(SMALL, accumulate=2), codebook())
    clips = sampler.clips(range(4))
    accumulated.step(clips, 0)
    gradients = []
    for part, step in ((0, 0), (1, 1)):
        alone = Trainer.create(preset("quarter"), replace(SMALL, batch=2, steps=1), codebook())
        # Step 1 of two clips has the clip numbers of the second part; its teacher forcing must be that of step 0.
        alone.config = replace(alone.config, teacher_forcing_end=SMALL.teacher_forcing_start)
        alone.step(clips[2 * part : 2 * part + 2], step)
        gradients.append({name: p.grad for name, p in alone.encoder.named_parameters()})
    for name, parameter in accumulated.encoder.named_parameters():
        mean = (gradients[0][name] + gradients[1][name]) / 2
        torch.testing.assert_close(parameter.grad, mean, atol=1e-6, rtol=1e-4)


def test_the_exported_average_follows_its_formula(sampler: ClipSampler) -> None:
    trainer = Trainer.create(preset("quarter"), replace(SMALL, ema_decay=0.5), codebook())
    expected = {name: tensor.clone() for name, tensor in trainer.encoder.state_dict().items()}
    for step in range(3):
        trainer.step(sampler.clips(range(4 * step, 4 * step + 4)), step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, tensor in trainer.encoder.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor
    exported = trainer.checkpoint(3, {}).encoder().state_dict()
    for name, tensor in exported.items():
        torch.testing.assert_close(tensor, expected[name])
    assert not torch.equal(exported["stem.weight"], trainer.encoder.state_dict()["stem.weight"])


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_changes_only_its_ingredient(ablation: str) -> None:
    complete, without = train_config("paper", {}, []), train_config("paper", {}, [ablation])
    changed = {name for name in vars(complete) if getattr(complete, name) != getattr(without, name)}
    assert changed == set(ABLATIONS[ablation])
    with pytest.raises(InputError, match="got both"):
        train_config("paper", {next(iter(ABLATIONS[ablation])): 0.3}, [ablation])


def test_colorization_is_the_baseline_of_the_paper(sampler: ClipSampler) -> None:
    """The baseline uses pairs of grey frames, (a, b) colours, whole frames and no cycle, and can be trained."""
    config = train_config("colorization", {"batch": 2, "steps": 2, "crop": 32, "colours": 4}, [])
    assert (config.frames, config.radius, config.grey_input, config.cycle_weight) == (2, 0, True, 0.0)
    assert (config.lightness, config.temperature, preset("colorization").unit_norm) == (False, 1.0, False)
    trainer = Trainer.create(replace(preset("colorization"), widths=(8, 8, 8, 8)), config, codebook()[:, 1:])
    result = trainer.step(sampler.clips(range(2))[:, :2], 0)
    assert result.predicted is not None and result.predicted.shape == (2, 1, 4, 8, 8) and result.cycle == 0
    assert train_config("colorization", {"radius": 4}, []).radius == 4


def test_mask_folders_and_second_sizes_are_no_videos(tmp_path: Path) -> None:
    """The layouts are DAVIS (two sizes, one sequence only in full size) and YouTube-VOS."""
    for name in (
        "davis/JPEGImages/480p/bear/0.jpg",
        "davis/JPEGImages/Full-Resolution/bear/0.jpg",
        "davis/JPEGImages/Full-Resolution/swan/0.jpg",
        "davis/Annotations/480p/bear/0.png",
        "davis/Annotations_unsupervised/480p/bear/0.png",
        "youtube/train/JPEGImages/a1/0.jpg",
        "youtube/train/Annotations/a1/0.png",
        "loose/clip.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_videos(tmp_path)] == [
        "davis/JPEGImages/480p/bear",
        "davis/JPEGImages/Full-Resolution/swan",
        "loose/clip.mp4",
        "youtube/train/JPEGImages/a1",
    ]


def test_a_match_is_the_position_of_the_highest_similarity() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(2, 5, 7, 9, generator=generator)
    rows, columns = best_matches(query, keys, 2)
    scores = torch.einsum("cyx,cuv->yxuv", query, keys)
    for y, x in [(0, 0), (3, 4), (6, 8), (2, 7)]:
        top, left = max(0, y - 2), max(0, x - 2)
        window = scores[y, x, top : y + 3, left : x + 3]
        best = int(window.argmax())
        expected = (top + best // window.shape[1], left + best % window.shape[1])
        assert (int(rows[y, x]), int(columns[y, x])) == expected


def test_images_distinguish_different_features() -> None:
    """Regions of different features have different colours, and shifted features have shifted matches."""
    features = torch.zeros(2, 6, 12, 12)
    features[:, 0, :, :6] = features[:, 1, :, 6:] = 1
    frames = np.zeros((2, 48, 48, 3), np.uint8)
    image = feature_image(frames, features)
    assert image.shape == (96, 96, 3)
    left, right = image[50, 4].astype(int), image[50, 40].astype(int)
    assert np.abs(left - right).max() == 255 and (image[48:, :24] == image[50, 4]).all()
    moved = torch.nn.functional.normalize(torch.randn(1, 6, 12, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    rows, columns = best_matches(moved[0].roll(1, 2)[:, :, 1:], moved[0][:, :, 1:], 2)
    assert torch.equal(columns[:, 1:], torch.arange(10.0).expand(12, -1))  # each match is the left neighbour
    assert torch.equal(rows[:, 1:], torch.arange(12.0)[:, None].expand(-1, 10))
    drawn = match_image(frames, torch.cat([moved, moved]), 2)
    assert drawn.shape == (48, 96, 3) and drawn.any()


def codebook() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-40, 80, (4, 3)).astype(np.float32))
