"""What a training step does to the encoder, and everything that it changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corrflow.errors import CorrflowError
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.train.checkpoint import Checkpoint, optimiser_tensors, restore_optimiser
from corrflow.train.colors import bottlenecked, cell_colours, colour_classes, draw_bottleneck, rgb_to_lab
from corrflow.train.config import ModelConfig, TrainConfig
from corrflow.train.distributed import DistributedContext, normalised_together
from corrflow.train.losses import distance, reconstruct
from corrflow.train.model import STRIDE, Encoder, new_encoder, normalise

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def exact_dtype(config: TrainConfig) -> torch.dtype:
    """What weights, losses and whatever autocast leaves alone are computed in."""
    return torch.float64 if config.precision == "float64" else torch.float32


@dataclass(frozen=True)
class StepResult:
    """forward, cycle: losses of the step, of this process's clips; copied, lab: of its first clips.

    copied [b, T-1, K, h, w] is what the forward terms copied, lab [b, T, 3, S, S] the frames. With a teacher, forward
    is the distance from its features, cycle 0, and nothing is copied: both are None.
    """

    forward: float
    cycle: float
    copied: Tensor | None
    lab: Tensor | None


@dataclass(frozen=True)
class _Losses:
    """As in StepResult, before the backward pass."""

    forward: Tensor
    cycle: Tensor
    copied: Tensor | None = None
    lab: Tensor | None = None


@dataclass
class Trainer:
    """The state that a step changes, and nothing else.

    call:    the encoder as it is called in training: over all processes, and compiled where that was asked for
    average: moving average of the encoder's state, or empty
    teacher: the encoder whose features are learned, in evaluation mode, or None
    """

    encoder: Encoder
    call: Callable[[Tensor], Tensor]
    optimiser: torch.optim.Adam
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    codebook: Tensor
    config: TrainConfig
    processes: DistributedContext
    average: dict[str, Tensor] = field(default_factory=dict)
    teacher: Encoder | None = None

    @classmethod
    def fresh(
        cls,
        model: ModelConfig,
        config: TrainConfig,
        codebook: Tensor,
        processes: DistributedContext | None = None,
        teacher: Encoder | None = None,
    ) -> Trainer:
        processes = processes or DistributedContext()
        processes.clip_numbers(0, config.batch, config.accumulate)  # raises where they cannot be shared out
        encoder = new_encoder(model, config.seed).to(processes.device, exact_dtype(config))
        encoder = normalised_together(encoder.to(memory_format=torch.channels_last), processes).train()  # type: ignore[call-overload]
        assert isinstance(encoder, Encoder)
        # Under float16 small gradients would be zero without it; elsewhere it does nothing.
        scaler = torch.amp.GradScaler(processes.device.type, enabled=config.precision == "float16")  # pyright: ignore[reportPrivateImportUsage]
        optimiser = torch.optim.Adam(encoder.parameters(), lr=config.learning_rate)
        call: Any = torch.compile(encoder) if config.compile else encoder
        if processes.count > 1:
            from torch.nn.parallel import DistributedDataParallel

            # Statistics are over all processes already, so there is nothing to hand out before each step.
            call = DistributedDataParallel(call, broadcast_buffers=False)
        if teacher is not None:
            teacher.requires_grad_(False).to(processes.device, exact_dtype(config), memory_format=torch.channels_last)  # type: ignore[call-overload]
        learner = cls(
            encoder, call, optimiser, scaler, codebook.to(encoder.stem.weight), config, processes, teacher=teacher
        )
        learner.start_average()
        return learner

    @property
    def names(self) -> list[str]:
        """Names of the parameters in the optimiser's order."""
        return [name for name, _ in self.encoder.named_parameters()]

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint as if there had been no stop."""
        self.encoder.load_state_dict(checkpoint.model_state)
        restore_optimiser(self.optimiser, self.names, checkpoint.optimiser)
        self.average = {name: tensor.to(self.processes.device) for name, tensor in checkpoint.average.items()}
        if self.scaler.is_enabled():
            scale, since = checkpoint.scaler.tolist()
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(since)})

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Take another run's weights (their average, where it kept one) and nothing else of it."""
        self.encoder.load_state_dict(checkpoint.average or checkpoint.model_state)
        self.start_average()

    def start_average(self) -> None:
        """Begin the moving average with the weights as they are."""
        if self.config.average:
            self.average = {name: tensor.detach().clone() for name, tensor in self.encoder.state_dict().items()}

    def step(self, clips: np.ndarray, step: int) -> StepResult:
        """One optimiser step on this process's clips [b, T, S, S, 3] uint8, RGB, as `clip_numbers` orders them."""
        config = self.config
        numbers = self.processes.clip_numbers(step, config.batch, config.accumulate)
        share = len(numbers) // config.accumulate
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate_at(step)
        self.optimiser.zero_grad(set_to_none=True)
        forward = cycle = 0.0
        first: _Losses | None = None
        for part in range(config.accumulate):
            own = slice(part * share, (part + 1) * share)
            last = part == config.accumulate - 1
            # Gradients travel once a step, with the last part's backward pass.
            with nullcontext() if last or self.processes.count == 1 else self.call.no_sync():  # type: ignore[attr-defined]
                result = self._losses(clips[own], numbers[own], step)
                loss = (result.forward + config.cycle_weight * result.cycle) / config.accumulate
                self._check(loss, step)
                self.scaler.scale(loss).backward()
            forward += result.forward.item() / config.accumulate
            cycle += result.cycle.item() / config.accumulate
            first = first or result
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._update_average(step)
        assert first is not None
        return StepResult(forward, cycle, first.copied, first.lab)

    def _losses(self, clips: np.ndarray, numbers: Sequence[int], step: int) -> _Losses:
        device, exact = self.processes.device, exact_dtype(self.config)
        frames = torch.from_numpy(clips).to(device).permute(0, 1, 4, 2, 3).to(exact) / 255
        if self.teacher is not None:
            # As in tracking: whole colours, and each frame by itself.
            images = normalise(frames.flatten(0, 1))
            with torch.no_grad():
                taught = self._encoded(self.teacher, images)
            forward = distance(self._encoded(self.call, images), taught)
            return _Losses(forward, forward.new_zeros(()))
        return self._reconstruct(frames, numbers, step)

    def _encoded(self, encoder: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Features [B, C, h, w] of normalised images, in the exact type."""
        dtype = AUTOCAST.get(self.config.precision)
        with torch.autocast(self.processes.device.type, dtype, enabled=dtype is not None):
            features = encoder(images.contiguous(memory_format=torch.channels_last))
        return features.to(exact_dtype(self.config)).contiguous()

    def _reconstruct(self, frames: Tensor, numbers: Sequence[int], step: int) -> _Losses:
        config = self.config
        B, T = frames.shape[:2]
        drawn, truths = [], []
        for number in numbers:
            # One stream for each clip, so that it does not matter which process has it; apart from the one that draws
            # its frames.
            generator = np.random.default_rng([config.seed, number, 1])
            drawn.append(draw_bottleneck(generator, T, config.dropout, config.jitter))
            truths.append(generator.random(T - 1) < config.truth_probability_at(step))
        factors, channels = (torch.from_numpy(np.stack(part)).to(frames) for part in zip(*drawn, strict=True))
        use_truth = torch.from_numpy(np.stack(truths)).to(frames.device)
        with torch.no_grad():
            lab = rgb_to_lab(frames)
            cells = cell_colours(lab.flatten(0, 1), self.codebook).unflatten(0, (B, T))
            classes = colour_classes(lab.flatten(0, 1), self.codebook).unflatten(0, (B, T))
            images = bottlenecked(frames, factors, channels, config.grey_input)
        features = self._encoded(self.call, images.flatten(0, 1))
        radius = config.radius or config.crop // STRIDE  # 0: the whole frame
        result = reconstruct(
            features.unflatten(0, (B, T)),
            cells,
            classes,
            use_truth,
            Attributes((radius,), temperature=config.temperature),
            with_cycle=config.cycle_weight > 0,
        )
        return _Losses(result.forward, result.cycle, result.copied.detach(), lab)

    def features(self, clip: np.ndarray) -> Tensor:
        """Features [T, C, S / 4, S / 4] float32 of a clip [T, S, S, 3] uint8, RGB, as they would be in tracking."""
        frames = torch.from_numpy(clip).to(self.codebook).permute(0, 3, 1, 2) / 255
        self.encoder.eval()
        with torch.no_grad():
            features = self.encoder(normalise(frames))
        self.encoder.train()
        return features.float().cpu().contiguous()

    def _check(self, loss: Tensor, step: int) -> None:
        if torch.isfinite(loss):
            return
        # In float16 a step that overflows is left out and the next is scaled down, unless that does not help any more.
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            raise CorrflowError(
                f"the loss is {loss.item()} at step {step}; the last checkpoint is good: lower --learning-rate"
            )

    def _update_average(self, step: int) -> None:
        if not self.average:
            return
        keep = min(self.config.average, (1 + step) / (10 + step))  # the first weights are soon forgotten
        for name, tensor in self.encoder.state_dict().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - keep)
            else:
                self.average[name].copy_(tensor)

    def checkpoint(self, step: int, provenance: dict[str, Any]) -> Checkpoint:
        """Everything that is needed to go on."""
        scaler = self.scaler.state_dict()
        return Checkpoint(
            self.encoder.config,
            self.config,
            step,
            self.encoder.state_dict(),
            optimiser_tensors(self.optimiser, self.names),
            self.codebook.cpu(),
            provenance,
            self.average,
            torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
            if scaler
            else torch.empty(0, dtype=torch.float64),
        )
