"""Pixel-level objective without negatives: places of two crops of one image have the same features.

An online network predicts, for each cell of one crop, what a target network computes for cells of the other crop. These
are the cells of the same place. The target network is a moving average of the online network, and has no gradient. The
loss is PixPro's (Xie et al., 2021) in the form of HVC (Pei et al., 2024): plain crops, and no negatives.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrflow.train.model import Encoder, of_unit_length

HIDDEN, PROJECTION = 256, 128


class Head(nn.Sequential):
    """Two 1x1 convolutions with batch normalisation and ReLU between: [B, channels, h, w] -> [B, PROJECTION, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, HIDDEN, 1, bias=False),
            nn.BatchNorm2d(HIDDEN),
            nn.ReLU(inplace=True),
            nn.Conv2d(HIDDEN, PROJECTION, 1),
        )


class PixelLevel(nn.Module):
    """Projector and predictor of the online network, and the target network, for one encoder."""

    def __init__(self, encoder: Encoder, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projector, self.predictor = Head(encoder.config.feature_channels), Head(PROJECTION)
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def pooled(self, cells: Tensor) -> Tensor:
        """Return the input of the heads for features [B, C, h, w]: here, every cell."""
        return cells

    def predict(self, cells: Tensor) -> Tensor:
        """Compute predictions [B, PROJECTION, h, w] of the online encoder's features [B, C, h, w]."""
        return self.predictor(self.projector(self.pooled(cells)))

    @torch.no_grad()
    def targets(self, crops: Tensor) -> Tensor:
        """Compute projections [B, PROJECTION, h, w] of normalised crops [B, 3, S, S] by the target network."""
        return self.target_projector(self.pooled(self.target_encoder.cells(crops)))

    @torch.no_grad()
    def update_target(self, encoder: Encoder, decay: float) -> None:
        """Move the target network's parameters to the online network's: decay * target + (1 - decay) * online.

        Statistics of batch normalisation are the target network's own.
        """
        for target, online in ((self.target_encoder, encoder), (self.target_projector, self.projector)):
            for parameter, goal in zip(target.parameters(), online.parameters(), strict=True):
                parameter.lerp_(goal.to(parameter), 1 - decay)


def pixel_loss(predictions: Tensor, targets: Tensor, positives: list[np.ndarray]) -> Tensor:
    """Compute minus the mean cosine similarity of predictions and targets of the same place, in both directions.

    predictions, targets: [B, 2, C, h, w] of the two crops of each pair
    positives: for each pair [P, 2] cell numbers, as in `Pairs`. The mean is over the positives of a pair and then over
               pairs; a pair without positives counts as 0. From -1 to 1.
    """
    B, _, C, h, w = predictions.shape
    cells = h * w
    online, goal = (
        of_unit_length(maps.flatten(0, 1)).flatten(2).transpose(1, 2).reshape(B, 2, cells, C)
        for maps in (predictions, targets.detach())
    )
    starts = np.repeat(np.arange(B) * cells, [len(pair) for pair in positives])
    flat = torch.from_numpy(np.concatenate(positives) + starts[:, None]).to(predictions.device)
    counts = torch.tensor([max(len(pair), 1) for pair in positives], device=predictions.device)
    loss = predictions.new_zeros(())
    for here, there in ((0, 1), (1, 0)):
        # The sum over positives of (online . goal) is online . (sum of goals), and goals have no gradient.
        sums = _sums_of_rows(goal[:, there].reshape(B * cells, C), flat[:, here], flat[:, there], B * cells)
        similarity = (online[:, here] * sums.reshape(B, cells, C)).sum((1, 2))
        loss = loss - (similarity / counts).mean() / 2
    return loss


def _sums_of_rows(rows: Tensor, bags: Tensor, numbers: Tensor, count: int) -> Tensor:
    """Sum rows [N, C] by bag: row i of the result [count, C] sums rows[numbers[k]] over all k with bags[k] = i."""
    order = torch.argsort(bags, stable=True)
    starts = torch.searchsorted(bags[order], torch.arange(count, device=bags.device))
    return F.embedding_bag(numbers[order], rows, starts, mode="sum")


def spread(features: Tensor) -> Tensor:
    """Compute 1 minus the squared length of the mean of unit features [B, C, h, w]: 0 for features that collapsed."""
    return 1 - features.detach().float().mean((0, 2, 3)).square().sum()
