"""Distillation: the student's features give the matches of a teacher's features, of any number of channels.

Two losses need no labels. A linear head, which is dropped after training, predicts the teacher's features from the
student's. This loss carries much information, but leaves the student's distances free. So a second loss compares
matches: similarities of cells of one crop to the cells of the other, after the softmax of tracking.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrflow.train.model import of_unit_length

QUERIES = 128
"""Number of cells of a crop, about, whose similarities are compared; all of them would cost too much memory."""


class Distillation(nn.Module):
    """Linear head from a student's features [B, channels, h, w] to a teacher's [B, teacher_channels, h, w]."""

    def __init__(self, channels: int, teacher_channels: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # The bias takes what all features of a teacher have in common, and no match depends on.
            self.head = nn.Conv2d(channels, teacher_channels, 1)

    def predict(self, cells: Tensor) -> Tensor:
        """Predict the teacher's features from the student's."""
        return self.head(cells)


def regression_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean of 1 - cosine similarity of predictions [..., C, h, w] and unit features of that shape."""
    predictions, targets = predictions.flatten(0, -4), targets.flatten(0, -4)
    return 1 - (of_unit_length(predictions) * targets).sum(1).mean()


def relation_loss(features: Tensor, targets: Tensor, temperature: float, step: int) -> Tensor:
    """Compute how far the student's matches between two crops are from the teacher's, in both directions.

    features, targets: [B, 2, C, h, w] and [B, 2, D, h, w], unit features of student and teacher for the crops of pairs
    temperature:       divisor of the similarities
    step:              number of the step, which chooses the queries: every k-th cell, from another one at each step

    Returns the mean KL divergence (nats) of softmax similarities of a query to all cells of the other crop.
    """
    cells = features.shape[3] * features.shape[4]
    every = max(1, cells // QUERIES)
    queries = slice(step % every, None, every)
    student, teacher = features.flatten(3), targets.flatten(3)
    loss = features.new_zeros(())
    for here, there in ((0, 1), (1, 0)):
        log_probabilities, goals = (
            F.log_softmax(maps[:, here, :, queries].transpose(1, 2) @ maps[:, there] / temperature, 2)
            for maps in (student, teacher)
        )
        divergence = F.kl_div(log_probabilities, goals, reduction="sum", log_target=True)
        loss = loss + divergence / (2 * goals.shape[0] * goals.shape[1])
    return loss
