"""The definition of LocalSoftCopy in plain PyTorch: short and slow, for reading and for testing the other forms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from corrflow.plugins.local_soft_copy.spec import Attributes, SearchWindow, copied_shape, named_references


def local_soft_copy(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    attributes: Attributes,
    references: Sequence[SearchWindow] | None = None,
) -> Tensor:
    """Copy values to each query position from where the keys match it best (spec.py has the full definition).

    query [B, C, H, W], keys [B, K, C, H, W], values [B, K, N, H, W], floating point -> copied [B, N, H, W] in the
    dtype of the values. Accumulates in fp32 (fp64 for fp64 inputs). Raises InputError where shapes do not agree.

    The windows are written out with unfold: memory grows with the window, C * (2 * radius + 1)^2 numbers a position.
    """
    B, N, H, W = copied_shape(query.shape, keys.shape, values.shape)
    named = named_references(references, keys.shape[1])
    accumulate = torch.promote_types(query.dtype, torch.float32)

    scores, candidates = [], []
    for k, number, down, right in named:
        window = *attributes.window(number), down, right
        # [B, C, window, H * W] against [B, C, 1, H * W]
        windows = _windows(keys[:, k].to(accumulate), *window)
        score = (query.to(accumulate).reshape(B, -1, 1, H * W) * windows).sum(1) / attributes.temperature
        inside = _windows(torch.ones(1, 1, H, W, device=query.device), *window)[:, 0] > 0
        scores.append(score.masked_fill(~inside, float("-inf")))
        candidates.append(_windows(values[:, k].to(accumulate), *window))
    score = torch.cat(scores, 1)  # [B, positions, H * W], positions in the order of the tie rule
    value = torch.cat(candidates, 2)  # [B, N, positions, H * W]

    if 0 < attributes.top_k < score.shape[1]:
        # A stable sort, because topk promises nothing about ties.
        order = score.argsort(dim=1, descending=True, stable=True)[:, : attributes.top_k]
        score = score.gather(1, order)
        value = value.gather(2, order[:, None].expand(-1, N, -1, -1))
    copied = (score.softmax(1).nan_to_num()[:, None] * value).sum(2)  # moved windows may hold no position at all
    return copied.reshape(B, N, H, W).to(values.dtype)


def _windows(image: Tensor, radius: int, dilation: int, down: int, right: int) -> Tensor:
    """Every moved window of an image, row by row, zeros outside: [B, C, H, W] -> [B, C, (2 * radius + 1)^2, H * W]."""
    B, C, H, W = image.shape
    size, reach = 2 * radius + 1, radius * dilation
    # Moves beyond those that leave nothing inside make no difference.
    down, right = max(-H - reach, min(H + reach, down)), max(-W - reach, min(W + reach, right))
    around = F.pad(image, (reach - right, reach + right, reach - down, reach + down))
    return F.unfold(around, size, dilation=dilation).reshape(B, C, size * size, H * W)
