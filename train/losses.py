"""The training objectives: reconstruct colours by copying, forward with scheduled sampling and around the cycle
(paper, sections 3.3 to 3.5), or have the features of another encoder (not in the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.plugins.local_soft_copy.torch_blocked import local_soft_copy


@dataclass(frozen=True)
class Reconstruction:
    """Losses (scalars) and what was copied.

    forward: mean cross entropy of frames 1..T-1, each copied from the frame before
    cycle:   mean cross entropy of frame 0 after k frames forward and k back, over k = 1..T-1
    copied:  [B, T-1, K, h, w] colour distribution of frames 1..T-1 in the forward terms
    """

    forward: Tensor
    cycle: Tensor
    copied: Tensor


def reconstruct(
    features: Tensor, cells: Tensor, classes: Tensor, use_truth: Tensor, attributes: Attributes, with_cycle: bool
) -> Reconstruction:
    """Copy colours along a clip and back.

    features  [B, T, C, h, w]; cells [B, T, K, h, w] one-hot colours at stride 4; classes [B, T, H, W] colour class of
    each pixel; use_truth [B, T-1] bool: whether step t copies the true colours of frame t or the model's own.
    """
    T = features.shape[1]
    copied: list[Tensor] = []  # forward terms: frames 1..T-1
    own = [cells[:, 0]]  # frames 0..T-1 from frame 0 by the model's own copies alone
    for t in range(T - 1):
        source = cells[:, t]
        if t > 0:
            source = torch.where(use_truth[:, t, None, None, None], source, copied[-1])
        values = [source, own[-1]] if with_cycle else [source]
        result = _copy(features[:, t + 1], features[:, t], values, attributes)
        copied.append(result[0])
        if with_cycle:
            own.append(result[1])
    forward = torch.stack([_cross_entropy(copied[t], classes[:, t + 1]) for t in range(T - 1)]).mean()

    cycle = forward.new_zeros(())
    if with_cycle:
        returning: list[Tensor] = []  # every cycle that has turned, the longest first
        for t in reversed(range(T - 1)):
            returning = _copy(features[:, t], features[:, t + 1], [*returning, own[t + 1]], attributes)
        cycle = torch.stack([_cross_entropy(colours, classes[:, 0]) for colours in returning]).mean()
    return Reconstruction(forward, cycle, torch.stack(copied, 1))


def distance(features: Tensor, taught: Tensor) -> Tensor:
    """Mean over cells of 1 - cosine of two maps of unit features [B, C, h, w]: scalar, 0 where they agree."""
    return 1 - (features * taught).sum(1).mean()


def _copy(target: Tensor, reference: Tensor, values: list[Tensor], attributes: Attributes) -> list[Tensor]:
    """Several value maps along one affinity: each [B, K, h, w] -> each [B, K, h, w]."""
    stacked = torch.cat(values, 1)
    copied = local_soft_copy(target, reference[:, None], stacked[:, None], attributes)
    return list(copied.split([value.shape[1] for value in values], 1))


def _cross_entropy(distribution: Tensor, classes: Tensor) -> Tensor:
    """Mean of -log p(class) over pixels: distribution [B, K, h, w], upsampled to the frame; classes [B, H, W]."""
    upsampled = F.interpolate(distribution, size=classes.shape[-2:], mode="bilinear", align_corners=False)
    return F.nll_loss(upsampled.clamp(min=1e-6).log(), classes)
