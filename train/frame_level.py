"""Frame-level objective without labels and without negatives: two frames of a clip have the same mean feature.

An online network predicts, from the mean of one frame's features, what a target network computes from the mean of the
other's. Both frames show the same objects, often in another position and another light. This is VFS (Xu and Wang,
2021), with the moving average of the pixel-level objective as the target.
"""

from __future__ import annotations

from torch import Tensor

from corrflow.train.model import of_unit_length
from corrflow.train.pixel_level import PixelLevel


class FrameLevel(PixelLevel):
    """Projector and predictor of the online network, and the target network, for mean features of frames."""

    def pooled(self, cells: Tensor) -> Tensor:
        """Average features [B, C, h, w] over the frame: [B, C, 1, 1]."""
        return mean_feature(cells)


def mean_feature(cells: Tensor) -> Tensor:
    """Average features [B, C, h, w] over the frame: [B, C, 1, 1]."""
    return cells.mean((2, 3), keepdim=True)


def frame_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Compute minus the mean cosine similarity of each frame's prediction and the other frame's target.

    predictions, targets: [B, 2, C, 1, 1] of the two frames of each pair. From -1 to 1.
    """
    online, goal = (of_unit_length(maps.flatten(0, 1)).unflatten(0, (-1, 2)) for maps in (predictions, targets))
    return -(online * goal.detach().flip(1)).sum(2).mean()
