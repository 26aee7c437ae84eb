"""Training objective of the paper: colour reconstruction (sections 3.3 to 3.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.plugins.local_soft_copy.torch_blocked import local_soft_copy


@dataclass(frozen=True)
class Reconstruction:
    """Losses (scalars) and predicted colours.

    forward:   mean cross entropy of frames 1..T-1, each predicted from the previous frame
    cycle:     mean cross entropy of frame 0 after k frames forward and k back, over k = 1..T-1
    predicted: [B, T-1, K, h, w] colour distribution of frames 1..T-1 in the forward terms
    """

    forward: Tensor
    cycle: Tensor
    predicted: Tensor


def reconstruct(
    features: Tensor, cells: Tensor, classes: Tensor, teacher_forced: Tensor, attributes: Attributes, with_cycle: bool
) -> Reconstruction:
    """Propagate colours along a clip and back.

    features:       [B, T, C, h, w]
    cells:          [B, T, K, h, w] one-hot colours at stride 4
    classes:        [B, T, H, W] colour class of each pixel
    teacher_forced: [B, T-1] bool; True if step t copies the true colours of frame t instead of predicted colours
    """
    T = features.shape[1]
    predicted: list[Tensor] = []  # forward terms: frames 1..T-1
    propagated = [cells[:, 0]]  # frames 0..T-1 from frame 0, without teacher forcing
    for t in range(T - 1):
        source = cells[:, t]
        if t > 0:
            source = torch.where(teacher_forced[:, t, None, None, None], source, predicted[-1])
        values = [source, propagated[-1]] if with_cycle else [source]
        result = _copy(features[:, t + 1], features[:, t], values, attributes)
        predicted.append(result[0])
        if with_cycle:
            propagated.append(result[1])
    forward = torch.stack([_cross_entropy(predicted[t], classes[:, t + 1]) for t in range(T - 1)]).mean()

    cycle = forward.new_zeros(())
    if with_cycle:
        returning: list[Tensor] = []  # backward part of every cycle, the longest first
        for t in reversed(range(T - 1)):
            returning = _copy(features[:, t], features[:, t + 1], [*returning, propagated[t + 1]], attributes)
        cycle = torch.stack([_cross_entropy(colours, classes[:, 0]) for colours in returning]).mean()
    return Reconstruction(forward, cycle, torch.stack(predicted, 1))


def _copy(target: Tensor, reference: Tensor, values: list[Tensor], attributes: Attributes) -> list[Tensor]:
    """Propagate several value maps [B, K, h, w] by one affinity."""
    stacked = torch.cat(values, 1)
    copied = local_soft_copy(target, reference[:, None], stacked[:, None], attributes)
    return list(copied.split([value.shape[1] for value in values], 1))


def _cross_entropy(distribution: Tensor, classes: Tensor) -> Tensor:
    """Compute the mean of -log p(class) over pixels.

    distribution [B, K, h, w], upsampled to the frame; classes [B, H, W]
    """
    upsampled = F.interpolate(distribution, size=classes.shape[-2:], mode="bilinear", align_corners=False)
    return F.nll_loss(upsampled.clamp(min=1e-6).log(), classes)
