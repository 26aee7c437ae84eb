"""corrflow-bench train: steps per second, and time of the parts of a step: encoder, op, data."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corrflow.bench.step_memory import step_memory, step_memory_on_gpu, training_step
from corrflow.bench.timing import Timing, time_in_turn
from corrflow.plugins.local_soft_copy import cpu, torch_blocked
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.train.config import TrainConfig, preset
from corrflow.train.model import STRIDE
from corrflow.train.trainer import Trainer

STEP, UNFOLD, ENCODER, OP, OP_FORWARD, OP_FUSED, DATA = (
    "whole step",
    "the same step with unfold in float32",
    "encoder, forward and backward",
    "op, forward and backward",
    "op, forward alone",
    "op, forward alone, fused kernel",
    "data, sampled during the step",
)


@dataclass(frozen=True)
class TrainResult:
    """Measurements of one preset in one precision: timings of the parts of a step by name.

    frames: frames per step; memory: bytes of a step and of the same step with unfold in float32, each in a separate
    process; None if unknown
    """

    preset: str
    precision: str
    timings: dict[str, Timing]
    frames: int
    memory: dict[str, int | None]

    def frames_per_second(self, step: str) -> float:
        """Return the speed of STEP or UNFOLD."""
        return self.frames / self.timings[step].median

    def share(self, part: str) -> float:
        """Return the time of a part relative to the whole step."""
        return self.timings[part].median / self.timings[STEP].median

    @property
    def ceiling(self) -> float | None:
        """Speedup of a step if the fused kernel replaced the op's forward pass; None if the kernel was not built."""
        if OP_FUSED not in self.timings:
            return None
        step, forward, fused = (self.timings[name].median for name in (STEP, OP_FORWARD, OP_FUSED))
        return step / (step - forward + fused)


def measure_on_gpu(
    name: str, precision: str, config: TrainConfig, rounds: int, device: torch.device, report: Callable
) -> TrainResult:
    """Time a whole step and the same step with unfold on a GPU; memory is that of the GPU."""
    forms = {
        STEP: training_step("tiles", name, config, device),
        UNFOLD: training_step("unfold", name, replace(config, precision="float32"), device),
    }
    timings = time_in_turn(forms, rounds, report=report)
    memory: dict[str, int | None] = {form: step_memory_on_gpu(step, device) for form, step in forms.items()}
    return TrainResult(name, precision, timings, config.batch * config.frames, memory)


def measure(
    name: str, precision: str, config: TrainConfig, rounds: int, data: Path | None, cache: Path, report: Callable
) -> TrainResult:
    """Time the parts of a step on the CPU in turn. data: folder of videos for clips, or None"""
    torch.set_num_threads(config.threads)
    generator = np.random.default_rng(0)
    colours = torch.from_numpy(generator.uniform(-40, 80, (config.colours, 3 if config.lightness else 2)))
    trainer = Trainer.create(preset(name), config, colours.float())
    plain = replace(config, precision="float32")
    report("memory")
    memory = {STEP: step_memory("tiles", name, config), UNFOLD: step_memory("unfold", name, plain)}
    calls: dict[str, Callable[[], object]] = {
        STEP: training_step("tiles", name, config),
        UNFOLD: training_step("unfold", name, plain),
        ENCODER: _encoder_pass(trainer, config),
        OP: lambda: [_differentiate(*pair) for pair in pairs],
        OP_FORWARD: lambda: [_copy(*pair) for pair in pairs],
    }
    pairs = _pairs(trainer, config)
    if cpu.kernels():
        attributes = _attributes(config)
        arrays = [
            (query.detach().numpy(), keys.detach().numpy(), values.detach().numpy()) for query, keys, values, _ in pairs
        ]
        calls[OP_FUSED] = lambda: [cpu.local_soft_copy(*tensors, attributes, config.threads) for tensors in arrays]
    if data is not None:
        calls[DATA] = _sampling(data, cache, config)
    timings = time_in_turn(calls, rounds, report=report)
    return TrainResult(name, precision, timings, config.batch * config.frames, memory)


def _attributes(config: TrainConfig) -> Attributes:
    return Attributes((config.radius or config.crop // STRIDE,), temperature=config.temperature)


def _pairs(trainer: Trainer, config: TrainConfig) -> list[tuple[Tensor, Tensor, Tensor, Attributes]]:
    """Make the inputs of the op in a step: forward with true and predicted colours, backward through every cycle."""
    side, channels = config.crop // STRIDE, trainer.encoder.config.feature_channels
    widths = [2] * (config.frames - 1) + list(range(1, config.frames))
    pairs = []
    for width in widths:
        features = torch.randn(config.batch, 2, channels, side, side)
        features = torch.nn.functional.normalize(features, dim=2).requires_grad_()
        values = torch.rand(config.batch, 1, width * config.colours, side, side, requires_grad=True)
        pairs.append((features[:, 0].detach().requires_grad_(), features[:, 1:].detach().requires_grad_(), values,
                      _attributes(config)))  # fmt: skip
    return pairs


def _copy(query: Tensor, keys: Tensor, values: Tensor, attributes: Attributes) -> Tensor:
    with torch.no_grad():
        return torch_blocked.local_soft_copy(query, keys, values, attributes)


def _differentiate(query: Tensor, keys: Tensor, values: Tensor, attributes: Attributes) -> object:
    copied = torch_blocked.local_soft_copy(query, keys, values, attributes)
    return torch.autograd.grad(copied.sum(), (query, keys, values))


def _encoder_pass(trainer: Trainer, config: TrainConfig) -> Callable[[], object]:
    images = torch.randn(config.batch * config.frames, 3, config.crop, config.crop)
    images = images.contiguous(memory_format=torch.channels_last)
    parameters = list(trainer.encoder.parameters())

    def call() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            features = trainer.encoder(images)
        return torch.autograd.grad(features.float().square().sum(), parameters)

    return call


def _sampling(data: Path, cache: Path, config: TrainConfig) -> Callable[[], object]:
    from corrflow.train.data.clips import ClipSampler, open_cache
    from corrflow.train.data.frames import find_videos

    videos = open_cache(find_videos(data), config.frames_per_second, 256, cache, lambda done, total: None)
    sampler, starts = ClipSampler(videos, None, config), itertools.count(0, config.batch)

    def sample() -> object:
        first = next(starts)
        return sampler.clips(range(first, first + config.batch))

    return sample


def description(result: TrainResult) -> dict[str, Any]:
    """Return JSON-ready values."""
    return {
        "preset": result.preset,
        "precision": result.precision,
        "steps_per_second": 1 / result.timings[STEP].median,
        "frames_per_second": {name: result.frames_per_second(name) for name in (STEP, UNFOLD)},
        "memory_bytes": result.memory,
        "parts": {
            name: {"seconds": asdict(timing), "share": result.share(name)} for name, timing in result.timings.items()
        },
        "ceiling_with_fused_forward": result.ceiling,
    }
