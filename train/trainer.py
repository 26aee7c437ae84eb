"""Trainer: training steps and the state that they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from corrflow.errors import CorrflowError
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.train.checkpoint import Checkpoint, optimiser_tensors, restore_optimiser
from corrflow.train.colours import apply_bottleneck, cell_colours, colour_classes, rgb_to_lab, sample_bottleneck
from corrflow.train.config import ModelConfig, TrainConfig
from corrflow.train.data.pairs import Pairs
from corrflow.train.distil import Distillation, regression_loss, relation_loss
from corrflow.train.distributed import DistributedContext, sync_batch_norm
from corrflow.train.frame_level import FrameLevel, frame_loss, mean_feature
from corrflow.train.losses import reconstruct
from corrflow.train.model import STRIDE, Encoder, new_encoder, normalise, of_unit_length
from corrflow.train.networks import Networks, trained_parameters
from corrflow.train.pixel_level import PixelLevel, pixel_loss, spread
from corrflow.train.teachers import Teachers

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def full_dtype(config: TrainConfig) -> torch.dtype:
    """Return the type of weights, losses and all operations that autocast does not change."""
    return torch.float64 if config.precision == "float64" else torch.float32


@dataclass(frozen=True)
class StepResult:
    """Losses of a step over the clips and pairs of this process, and predicted colours of its first clips.

    forward, cycle: losses of reconstruction
    predicted:      [b, T-1, K, h, w] colours predicted in the forward terms; None without reconstruction
    lab:            [b, T, 3, S, S] the clips' frames in Lab; None without reconstruction
    pixel, spread:  pixel-level loss, and spread of the pairs' features, 0 if they have collapsed
    frame, frame_spread: frame-level loss, and spread of the mean features of frames, 0 if they have collapsed
    distil, relation: losses of distillation, of predicted features and of matches
    """

    forward: float = 0.0
    cycle: float = 0.0
    predicted: Tensor | None = None
    lab: Tensor | None = None
    pixel: float = 0.0
    spread: float = 0.0
    frame: float = 0.0
    frame_spread: float = 0.0
    distil: float = 0.0
    relation: float = 0.0

    def losses(self, config: TrainConfig) -> dict[str, float]:
        """Return the losses of the run's objective by name."""
        names = ["forward", "cycle"] if config.uses_clips else []
        names += ["pixel"] if config.uses_pixel else []
        names += ["distil", "relation"] if config.uses_distillation else []
        names += ["spread"] if config.uses_pairs else []
        names += ["frame", "frame_spread"] if config.uses_frame_pairs else []
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Losses:
    """Losses and predictions of clips as in StepResult, before the backward pass."""

    forward: Tensor
    cycle: Tensor
    predicted: Tensor
    lab: Tensor


@dataclass
class Trainer:
    """Training state.

    networks: forward pass of the trained networks, distributed and compiled as configured
    ema:      moving average of the encoder's state_dict, or empty
    pixel:    heads and target network of the pixel-level objective, or None
    frame:    heads and target network of the frame-level objective, or None
    distil:   head of distillation, or None
    teachers: teachers of distillation, or None
    """

    encoder: Encoder
    networks: Callable[..., tuple[Tensor | None, ...]]
    optimiser: torch.optim.Adam
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    codebook: Tensor
    config: TrainConfig
    context: DistributedContext
    ema: dict[str, Tensor] = field(default_factory=dict)
    pixel: PixelLevel | None = None
    frame: FrameLevel | None = None
    distil: Distillation | None = None
    teachers: Teachers | None = None

    @classmethod
    def create(
        cls,
        model: ModelConfig,
        config: TrainConfig,
        codebook: Tensor,
        context: DistributedContext | None = None,
        teachers: Teachers | None = None,
    ) -> Trainer:
        """Create a trainer at step 0 with random weights.

        Raises InputError for a batch that cannot be divided, and for teachers without features of such crops.
        """
        context = context or DistributedContext()
        context.check(config)
        encoder = _placed(new_encoder(model, config.seed), config, context).train()
        assert isinstance(encoder, Encoder)
        pixel = frame = distil = None
        if config.uses_distillation:
            assert teachers is not None
            channels = teachers.channels(config.pair_crop, model.stride)
            distil = _placed(Distillation(model.feature_channels, channels, config.seed), config, context)
            assert isinstance(distil, Distillation)
            teachers.to(context.device, full_dtype(config), memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.uses_pixel:
            pixel = _placed(PixelLevel(encoder, config.seed), config, context).train()
            assert isinstance(pixel, PixelLevel)
        if config.uses_frame_pairs:
            frame = _placed(FrameLevel(encoder, config.seed), config, context).train()
            assert isinstance(frame, FrameLevel)
        # Without loss scaling small float16 gradients become zero; in other precisions the scaler does nothing.
        scaler = torch.amp.GradScaler(context.device.type, enabled=config.precision == "float16")  # pyright: ignore[reportPrivateImportUsage]
        parameters = [parameter for _, parameter in trained_parameters(encoder, pixel, frame, distil)]
        optimiser = torch.optim.Adam(parameters, lr=config.learning_rate)
        networks: Any = Networks(encoder, pixel, frame, distil)
        if config.compile:
            networks = torch.compile(networks)
            for heads in (pixel, frame):
                if heads is not None:
                    heads.targets = torch.compile(heads.targets)
        if context.world_size > 1:
            from torch.nn.parallel import DistributedDataParallel

            # Batch normalisation has the same statistics in all processes, so no broadcast is needed.
            networks = DistributedDataParallel(networks, broadcast_buffers=False)
        trainer = cls(
            encoder, networks, optimiser, scaler, codebook.to(encoder.stem.weight), config, context, pixel=pixel,
            frame=frame, distil=distil, teachers=teachers,
        )  # fmt: skip
        trainer._start_ema()
        return trainer

    @property
    def parameter_names(self) -> list[str]:
        """Names of the parameters in the optimiser's order."""
        return [name for name, _ in trained_parameters(self.encoder, self.pixel, self.frame, self.distil)]

    def load(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint of the same run; the following steps are those of a run without a stop."""
        self.encoder.load_state_dict(checkpoint.model_state)
        restore_optimiser(self.optimiser, self.parameter_names, checkpoint.optimiser)
        if self.pixel is not None:
            self.pixel.load_state_dict(checkpoint.pixel)
        if self.frame is not None:
            self.frame.load_state_dict(checkpoint.frame)
        if self.distil is not None:
            self.distil.load_state_dict(checkpoint.distil)
        self.ema = {name: tensor.to(self.context.device) for name, tensor in checkpoint.ema.items()}
        if self.scaler.is_enabled():
            scale, steps_since_change = checkpoint.scaler.tolist()
            state = {"scale": scale, "_growth_tracker": int(steps_since_change)}
            self.scaler.load_state_dict(self.scaler.state_dict() | state)

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Load only the encoder's weights of another run, averaged if the run has an average.

        Statistics of `feature_norm` stay initial if the other run has none.
        """
        state = checkpoint.ema or checkpoint.model_state
        norm = {name: tensor for name, tensor in self.encoder.state_dict().items() if name.startswith("head_norm.")}
        self.encoder.load_state_dict(norm | state)
        for heads in self._heads:
            heads.target_encoder.load_state_dict(self.encoder.state_dict())
        self._start_ema()

    def _start_ema(self) -> None:
        if self.config.ema_decay:
            self.ema = {name: tensor.detach().clone() for name, tensor in self.encoder.state_dict().items()}

    @property
    def _heads(self) -> list[PixelLevel]:
        return [heads for heads in (self.pixel, self.frame) if heads is not None]

    def step(
        self,
        clips: np.ndarray | None,
        step: int,
        pairs: Pairs | None = None,
        frame_pairs: np.ndarray | None = None,
    ) -> StepResult:
        """Run one optimiser step on the clips and pairs of this process.

        clips: [b, T, S, S, 3] uint8, RGB, in the order of `DistributedContext.clip_numbers`, if the objective uses
               clips
        pairs: pairs in the same order, if the objective uses pairs
        frame_pairs: [b, 2, S, S, 3] uint8, RGB, in the same order, if the objective uses pairs of frames

        Raises CorrflowError for a loss that is not finite.
        """
        config, parts = self.config, self.config.accumulate
        numbers = self.context.clip_numbers(step, config.batch, parts) if clips is not None else []
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate_at(step)
        self.optimiser.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        first: _Losses | None = None
        for part in range(parts):
            last = part == parts - 1
            # Gradients are exchanged once per step, in the backward pass of the last part.
            with nullcontext() if last or self.context.world_size == 1 else self.networks.no_sync():  # type: ignore[attr-defined]
                result, losses = self._losses(
                    clips[_part(clips, part, parts)] if clips is not None else None,
                    numbers[_part(numbers, part, parts)],
                    pairs[_part(pairs, part, parts)] if pairs is not None else None,
                    frame_pairs[_part(frame_pairs, part, parts)] if frame_pairs is not None else None,
                    step,
                )
                loss = config.total(losses) / parts
                self._check_loss(loss, step)
                self.scaler.scale(loss).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.item() / parts
            first = first or result
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._update_ema(step)
        for heads in self._heads:
            heads.update_target(self.encoder, config.momentum_at(step))
        return StepResult(**totals, predicted=first and first.predicted, lab=first and first.lab)

    def _losses(
        self,
        clips: np.ndarray | None,
        numbers: Sequence[int],
        pairs: Pairs | None,
        frame_pairs: np.ndarray | None,
        step: int,
    ) -> tuple[_Losses | None, dict[str, Tensor]]:
        """Compute the losses of clips, and scalars by their name in StepResult."""
        config = self.config
        images = crops = frame_crops = clip_losses = result = None
        if clips is not None:
            frames = self._as_tensor(clips)
            images, clip_losses = self._reconstruction(frames, numbers, step)
        if pairs is not None:
            crops = normalise(self._as_tensor(pairs.crops).flatten(0, 1))
        if frame_pairs is not None:
            frame_crops = normalise(self._as_tensor(frame_pairs).flatten(0, 1))
        features, cells, predictions, regressions, frame_cells, frame_predictions = self._run(
            self.networks, images, crops, frame_crops
        )
        losses: dict[str, Tensor] = {}
        if clip_losses is not None:
            result = clip_losses(features)
            losses |= {"forward": result.forward, "cycle": result.cycle}
        if pairs is not None and self.pixel is not None:
            loss = pixel_loss(_paired(predictions), _paired(*self._run(self.pixel.targets, crops)), pairs.positives)
            losses["pixel"] = loss
        if pairs is not None and (teachers := self.teachers) is not None:
            stride = self.encoder.config.stride
            (targets,) = self._run(lambda images: teachers(images, stride), crops)
            relation = relation_loss(_paired(cells), _paired(targets), config.temperature, step)
            losses |= {"distil": regression_loss(regressions, targets), "relation": relation}
        if pairs is not None:
            losses["spread"] = spread(cells)
        if frame_pairs is not None and self.frame is not None:
            loss = frame_loss(_paired(frame_predictions), _paired(*self._run(self.frame.targets, frame_crops)))
            losses |= {"frame": loss, "frame_spread": spread(of_unit_length(mean_feature(frame_cells)))}
        return result, losses

    def _as_tensor(self, images: np.ndarray) -> Tensor:
        """Convert RGB [B, T, H, W, 3] uint8 to [B, T, 3, H, W] from 0 to 1, on the device."""
        return torch.from_numpy(images).to(self.context.device).permute(0, 1, 4, 2, 3).to(full_dtype(self.config)) / 255

    def _run(self, networks: Callable[..., Any], *images: Tensor | None) -> list[Any]:
        """Apply networks to normalised images [B, 3, H, W]; the results have the type of the losses."""
        dtype = AUTOCAST.get(self.config.precision)
        inputs = [None if image is None else image.contiguous(memory_format=torch.channels_last) for image in images]
        with torch.autocast(self.context.device.type, dtype, enabled=dtype is not None):
            results = networks(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        return [None if maps is None else maps.to(full_dtype(self.config)).contiguous() for maps in results]

    def _reconstruction(
        self, frames: Tensor, numbers: Sequence[int], step: int
    ) -> tuple[Tensor, Callable[[Tensor], _Losses]]:
        """Return the encoder's input for clips [B, T, 3, H, W], and the losses as a function of its features."""
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

        def losses(features: Tensor) -> _Losses:
            result = reconstruct(
                features.unflatten(0, (B, T)),
                cells,
                classes,
                teacher_forced,
                Attributes((config.radius or config.crop // STRIDE,), temperature=config.temperature),  # 0: whole frame
                with_cycle=config.cycle_weight > 0,
            )
            return _Losses(result.forward, result.cycle, result.predicted.detach(), lab)

        return images.flatten(0, 1), losses

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
            self.pixel.state_dict() if self.pixel is not None else {},
            self.frame.state_dict() if self.frame is not None else {},
            self.distil.state_dict() if self.distil is not None else {},
        )


def _placed(module: nn.Module, config: TrainConfig, context: DistributedContext) -> nn.Module:
    """Prepare a network for training on the device, with batch normalisation over all processes."""
    module = module.to(context.device, full_dtype(config), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return sync_batch_norm(module, context)


def _paired(maps: Tensor) -> Tensor:
    """Reshape maps [2 B, C, h, w] of both crops of each pair to [B, 2, C, h, w]."""
    return maps.unflatten(0, (-1, 2))


def _part(items: Sized, part: int, parts: int) -> slice:
    """Return the slice of one of equal parts."""
    size = len(items) // parts
    return slice(part * size, (part + 1) * size)
