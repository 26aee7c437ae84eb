"""Definition of LocalSoftCopy in plain PyTorch: short and slow, to be read and to test the other forms against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from corrflow.plugins.local_soft_copy.spec import Attributes, SearchWindow, output_shape, used_references


def local_soft_copy(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attributes: Attributes,
    references: Sequence[SearchWindow] | None = None,
) -> Tensor:
    """Copy values to each query position from the best-matching keys; spec.py has the full definition.

    query: [B, C, H, W]; keys: [B, K, C, H, W]; values: [B, K, N, H, W], all floating point
    references: rows of the op's input; None to search every frame once

    Returns [B, N, H, W] in the dtype of the values. Sums are float32, or float64 for float64 inputs. Raises InputError
    for shapes that do not agree.

    Unfolded windows need memory for C * (2 * radius + 1)^2 numbers for each position.
    """
    B, N, H, W = output_shape(query.shape, keys.shape, values.shape)
    accumulate = torch.promote_types(query.dtype, torch.float32)

    scores, candidates = [], []
    for frame, index, dy, dx in used_references(references, keys.shape[1]):
        window = *attributes.window(index), dy, dx
        # [B, C, window, H * W] against [B, C, 1, H * W]
        windows = _windows(keys[:, frame].to(accumulate), *window)
        score = (query.to(accumulate).reshape(B, -1, 1, H * W) * windows).sum(1) / attributes.temperature
        inside = _windows(torch.ones(1, 1, H, W, device=query.device), *window)[:, 0] > 0
        scores.append(score.masked_fill(~inside, float("-inf")))
        candidates.append(_windows(values[:, frame].to(accumulate), *window))
    score = torch.cat(scores, 1)  # [B, positions, H * W], positions in the order of the tie rule
    value = torch.cat(candidates, 2)  # [B, N, positions, H * W]

    if 0 < attributes.top_k < score.shape[1]:
        # A stable sort, because topk promises nothing about ties.
        order = score.argsort(dim=1, descending=True, stable=True)[:, : attributes.top_k]
        score = score.gather(1, order)
        value = value.gather(2, order[:, None].expand(-1, N, -1, -1))
    # Windows with an offset may hold no position at all, which makes the softmax NaN.
    copied = (score.softmax(1).nan_to_num()[:, None] * value).sum(2)
    return copied.reshape(B, N, H, W).to(values.dtype)


def _windows(image: Tensor, radius: int, dilation: int, dy: int, dx: int) -> Tensor:
    """Unfold all windows row by row, zeros outside: [B, C, H, W] -> [B, C, (2 * radius + 1)^2, H * W]."""
    B, C, H, W = image.shape
    size, reach = 2 * radius + 1, radius * dilation
    # Offsets beyond these leave no position inside either way.
    dy, dx = max(-H - reach, min(H + reach, dy)), max(-W - reach, min(W + reach, dx))
    padded = F.pad(image, (reach - dx, reach + dx, reach - dy, reach + dy))
    return F.unfold(padded, size, dilation=dilation).reshape(B, C, size * size, H * W)
