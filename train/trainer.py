"""Trainer: training steps and the state that they change."""

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
from corrflow.train.colours import apply_bottleneck, cell_colours, colour_classes, rgb_to_lab, sample_bottleneck
from corrflow.train.config import ModelConfig, TrainConfig
from corrflow.train.distributed import DistributedContext, sync_batch_norm
from corrflow.train.losses import cosine_distance, reconstruct
from corrflow.train.model import STRIDE, Encoder, new_encoder, normalise

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def full_dtype(config: TrainConfig) -> torch.dtype:
    """Return the type of weights, losses and all operations that autocast does not change."""
    return torch.float64 if config.precision == "float64" else torch.float32


@dataclass(frozen=True)
class StepResult:
    """Losses of a step over the clips of this process, and predicted colours of its first clips.

    forward, cycle: losses; with a teacher, the distance from its features and 0
    predicted:      [b, T-1, K, h, w] colours predicted in the forward terms; None with a teacher
    lab:            [b, T, 3, S, S] the clips' frames in Lab; None with a teacher
    """

    forward: float
    cycle: float
    predicted: Tensor | None
    lab: Tensor | None


@dataclass(frozen=True)
class _Losses:
    """Losses and predictions as in StepResult, before the backward pass."""

    forward: Tensor
    cycle: Tensor
    predicted: Tensor | None = None
    lab: Tensor | None = None


@dataclass
class Trainer:
    """Training state.

    forward: forward pass of the encoder in training, distributed and compiled as configured
    ema:     moving average of the encoder's state_dict, or empty
    teacher: encoder whose features are the target, in evaluation mode, or None
    """

    encoder: Encoder
    forward: Callable[[Tensor], Tensor]
    optimiser: torch.optim.Adam
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    codebook: Tensor
    config: TrainConfig
    context: DistributedContext
    ema: dict[str, Tensor] = field(default_factory=dict)
    teacher: Encoder | None = None

    @classmethod
    def create(
        cls,
        model: ModelConfig,
        config: TrainConfig,
        codebook: Tensor,
        context: DistributedContext | None = None,
        teacher: Encoder | None = None,
    ) -> Trainer:
        """Create a trainer at step 0 with random weights; raise InputError for a batch that cannot be divided."""
        context = context or DistributedContext()
        context.clip_numbers(0, config.batch, config.accumulate)
        encoder = new_encoder(model, config.seed).to(context.device, full_dtype(config))
        encoder = sync_batch_norm(encoder.to(memory_format=torch.channels_last), context).train()  # type: ignore[call-overload]
        assert isinstance(encoder, Encoder)
        # Without loss scaling small float16 gradients become zero; in other precisions the scaler does nothing.
        scaler = torch.amp.GradScaler(context.device.type, enabled=config.precision == "float16")  # pyright: ignore[reportPrivateImportUsage]
        optimiser = torch.optim.Adam(encoder.parameters(), lr=config.learning_rate)
        forward: Any = torch.compile(encoder) if config.compile else encoder
        if context.world_size > 1:
            from torch.nn.parallel import DistributedDataParallel

            # Batch normalisation has the same statistics in all processes, so no broadcast is needed.
            forward = DistributedDataParallel(forward, broadcast_buffers=False)
        if teacher is not None:
            teacher.requires_grad_(False).to(context.device, full_dtype(config), memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainer = cls(
            encoder, forward, optimiser, scaler, codebook.to(encoder.stem.weight), config, context, teacher=teacher
        )
        trainer._start_ema()
        return trainer

    @property
    def parameter_names(self) -> list[str]:
        """Names of the parameters in the optimiser's order."""
        return [name for name, _ in self.encoder.named_parameters()]

    def load(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint of the same run; the following steps are those of a run without a stop."""
        self.encoder.load_state_dict(checkpoint.model_state)
        restore_optimiser(self.optimiser, self.parameter_names, checkpoint.optimiser)
        self.ema = {name: tensor.to(self.context.device) for name, tensor in checkpoint.ema.items()}
        if self.scaler.is_enabled():
            scale, steps_since_change = checkpoint.scaler.tolist()
            state = {"scale": scale, "_growth_tracker": int(steps_since_change)}
            self.scaler.load_state_dict(self.scaler.state_dict() | state)

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Load only the weights of another run, averaged if the run has an average."""
        self.encoder.load_state_dict(checkpoint.ema or checkpoint.model_state)
        self._start_ema()

    def _start_ema(self) -> None:
        if self.config.ema_decay:
            self.ema = {name: tensor.detach().clone() for name, tensor in self.encoder.state_dict().items()}

    def step(self, clips: np.ndarray, step: int) -> StepResult:
        """Run one optimiser step on the clips of this process.

        clips: [b, T, S, S, 3] uint8, RGB, in the order of `DistributedContext.clip_numbers`. Raises CorrflowError for a
        loss that is not finite.
        """
        config = self.config
        numbers = self.context.clip_numbers(step, config.batch, config.accumulate)
        part_size = len(numbers) // config.accumulate
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate_at(step)
        self.optimiser.zero_grad(set_to_none=True)
        forward = cycle = 0.0
        first: _Losses | None = None
        for part in range(config.accumulate):
            part_slice = slice(part * part_size, (part + 1) * part_size)
            last = part == config.accumulate - 1
            # Gradients are exchanged once per step, in the backward pass of the last part.
            with nullcontext() if last or self.context.world_size == 1 else self.forward.no_sync():  # type: ignore[attr-defined]
                result = self._losses(clips[part_slice], numbers[part_slice], step)
                loss = (result.forward + config.cycle_weight * result.cycle) / config.accumulate
                self._check_loss(loss, step)
                self.scaler.scale(loss).backward()
            forward += result.forward.item() / config.accumulate
            cycle += result.cycle.item() / config.accumulate
            first = first or result
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._update_ema(step)
        assert first is not None
        return StepResult(forward, cycle, first.predicted, first.lab)

    def _losses(self, clips: np.ndarray, numbers: Sequence[int], step: int) -> _Losses:
        device, dtype = self.context.device, full_dtype(self.config)
        frames = torch.from_numpy(clips).to(device).permute(0, 1, 4, 2, 3).to(dtype) / 255
        if self.teacher is not None:
            # As in tracking: all colour channels, and frames that are independent of each other.
            images = normalise(frames.flatten(0, 1))
            with torch.no_grad():
                teacher_features = self._encode(self.teacher, images)
            forward = cosine_distance(self._encode(self.forward, images), teacher_features)
            return _Losses(forward, forward.new_zeros(()))
        return self._reconstruct(frames, numbers, step)

    def _encode(self, encoder: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Compute features [B, C, h, w] of normalised images, in the type of the losses."""
        dtype = AUTOCAST.get(self.config.precision)
        with torch.autocast(self.context.device.type, dtype, enabled=dtype is not None):
            features = encoder(images.contiguous(memory_format=torch.channels_last))
        return features.to(full_dtype(self.config)).contiguous()

    def _reconstruct(self, frames: Tensor, numbers: Sequence[int], step: int) -> _Losses:
        config = self.config
        B, T = frames.shape[:2]
        bottlenecks, forced = [], []
        for number in numbers:
            # A random stream per clip makes results independent of the number of processes. The frames of the clip
            # are sampled from another stream.
            generator = np.random.default_rng([config.seed, number, 1])
            bottlenecks.append(sample_bottleneck(generator, T, config.dropout, config.jitter))
            forced.append(generator.random(T - 1) < config.teacher_forcing_at(step))
        factors, channels = (torch.from_numpy(np.stack(part)).to(frames) for part in zip(*bottlenecks, strict=True))
        teacher_forced = torch.from_numpy(np.stack(forced)).to(frames.device)
        with torch.no_grad():
            lab = rgb_to_lab(frames)
            cells = cell_colours(lab.flatten(0, 1), self.codebook).unflatten(0, (B, T))
            classes = colour_classes(lab.flatten(0, 1), self.codebook).unflatten(0, (B, T))
            images = apply_bottleneck(frames, factors, channels, config.grey_input)
        features = self._encode(self.forward, images.flatten(0, 1))
        radius = config.radius or config.crop // STRIDE  # 0: the whole frame
        result = reconstruct(
            features.unflatten(0, (B, T)),
            cells,
            classes,
            teacher_forced,
            Attributes((radius,), temperature=config.temperature),
            with_cycle=config.cycle_weight > 0,
        )
        return _Losses(result.forward, result.cycle, result.predicted.detach(), lab)

    def features(self, clip: np.ndarray) -> Tensor:
        """Compute features [T, C, S / 4, S / 4] float32 of a clip [T, S, S, 3] uint8, RGB, as in tracking."""
        frames = torch.from_numpy(clip).to(self.codebook).permute(0, 3, 1, 2) / 255
        self.encoder.eval()
        with torch.no_grad():
            features = self.encoder(normalise(frames))
        self.encoder.train()
        return features.float().cpu().contiguous()

    def _check_loss(self, loss: Tensor, step: int) -> None:
        if torch.isfinite(loss):
            return
        # In float16 the scaler skips a step that overflows and lowers the scale, which helps down to a scale of 1.
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            raise CorrflowError(
                f"the loss is {loss.item()} at step {step}; the last checkpoint is good: lower --learning-rate"
            )

    def _update_ema(self, step: int) -> None:
        if not self.ema:
            return
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))  # the first weights fade soon
        for name, tensor in self.encoder.state_dict().items():
            if tensor.is_floating_point():
                self.ema[name].lerp_(tensor, 1 - decay)
            else:
                self.ema[name].copy_(tensor)

    def checkpoint(self, step: int, provenance: dict[str, Any]) -> Checkpoint:
        """Return the checkpoint of the state after `step` steps."""
        scaler = self.scaler.state_dict()
        return Checkpoint(
            self.encoder.config,
            self.config,
            step,
            self.encoder.state_dict(),
            optimiser_tensors(self.optimiser, self.parameter_names),
            self.codebook.cpu(),
            provenance,
            self.ema,
            torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
            if scaler
            else torch.empty(0, dtype=torch.float64),
        )
