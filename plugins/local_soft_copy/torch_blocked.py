"""LocalSoftCopy (top-k local cross-attention) in tiles with a halo: fast plain PyTorch, differentiable, any device.

A tile of T x T queries shares one patch of (T + 2 * radius)^2 keys, so its scores are one matrix product. Each patch
is used T * T times, which makes the form fast. A bias of minus infinity excludes scores outside a query's own window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from corrflow.plugins.local_soft_copy.spec import Attributes, output_shape

TILE = 8


def local_soft_copy(query: Tensor, keys: Tensor, values: Tensor, attributes: Attributes) -> Tensor:
    """Compute `torch_reference.local_soft_copy` without `references`: same shapes, dtypes, errors and tie rule.

    Reference frames are searched one at a time, to hold the scores of one frame only. Partial softmaxes (without
    top_k) or the best scores of each frame (with top_k) are then merged.
    """
    output_shape(query.shape, keys.shape, values.shape)  # raises for shapes that do not agree
    K = keys.shape[1]
    accumulate = torch.promote_types(query.dtype, torch.float32)
    query, keys, values_wide = query.to(accumulate), keys.to(accumulate), values.to(accumulate)
    query = query / attributes.temperature
    windows = attributes.windows(K)
    if attributes.top_k:
        copied = _best_of_all(query, keys, values_wide, windows, attributes.top_k)
    else:
        copied = _softmax_over_all(query, keys, values_wide, windows)
    # A frame of one tile comes out with its channels last, which nll_loss's backward pass refuses.
    return copied.to(values.dtype).contiguous()


def _softmax_over_all(query: Tensor, keys: Tensor, values: Tensor, windows: tuple[tuple[int, int], ...]) -> Tensor:
    """Return [B, N, H, W]: softmax over all window positions of all reference frames."""
    if len(windows) == 1:
        return _by_phase(_softmax_copy, query, keys[:, 0], values[:, 0], *windows[0])[:, :-1]
    partial = [
        _by_phase(_softmax_copy, query, keys[:, k], values[:, k], radius, dilation)
        for k, (radius, dilation) in enumerate(windows)
    ]
    log_mass = torch.stack([part[:, -1:] for part in partial], 1)  # [B, K, 1, H, W]
    weight = log_mass.softmax(1)
    return sum((weight[:, k] * part[:, :-1] for k, part in enumerate(partial)), torch.zeros(()))


def _best_of_all(
    query: Tensor, keys: Tensor, values: Tensor, windows: tuple[tuple[int, int], ...], top_k: int
) -> Tensor:
    """Return [B, N, H, W]: softmax over the `top_k` best positions, which are among the best of each frame."""
    N = values.shape[2]
    scores, candidates = [], []
    for k, (radius, dilation) in enumerate(windows):
        best = _by_phase(_best_candidates, query, keys[:, k], values[:, k], radius, dilation, top_k)
        count = best.shape[1] // (N + 1)
        scores.append(best[:, :count])  # [B, count, H, W]
        candidates.append(best[:, count:].unflatten(1, (count, N)))  # [B, count, N, H, W]
    score, value = torch.cat(scores, 1), torch.cat(candidates, 1)
    order = score.argsort(dim=1, descending=True, stable=True)[:, :top_k]
    weight = score.gather(1, order).softmax(1)
    value = value.gather(1, order[:, :, None].expand(-1, -1, N, -1, -1))
    return (weight[:, :, None] * value).sum(1)


def _by_phase(copy, query: Tensor, key: Tensor, value: Tensor, radius: int, dilation: int, *rest) -> Tensor:
    """Run `copy` with a dilation. Only positions a dilation apart interact, so each phase is a separate image.

    query, key [B, C, H, W], value [B, N, H, W] -> [B, M, H, W], M as `copy` returns it.
    """
    if dilation == 1:
        H, W = query.shape[-2:]
        inside = torch.ones(1, H, W, dtype=torch.bool, device=query.device)
        return copy(query, key, value, inside, radius, *rest)
    B, _, H, W = query.shape
    d = dilation
    down, right = -H % d, -W % d

    def split(image: Tensor) -> Tensor:  # [B, C, H, W] -> [d * d * B, C, ceil(H / d), ceil(W / d)]
        padded = F.pad(image, (0, right, 0, down))
        phases = padded.unflatten(3, (-1, d)).unflatten(2, (-1, d))  # [B, C, h, d, w, d]
        return phases.permute(3, 5, 0, 1, 2, 4).flatten(0, 2)

    inside = split(torch.ones(B, 1, H, W, device=query.device))[:, 0] > 0
    copied = copy(split(query), split(key), split(value), inside, radius, *rest)
    phases = copied.unflatten(0, (d, d, B)).permute(2, 3, 4, 0, 5, 1)  # [B, M, h, d, w, d]
    return phases.flatten(4, 5).flatten(2, 3)[:, :, :H, :W]


def _tile_scores(query: Tensor, key: Tensor, inside: Tensor, radius: int) -> tuple[Tensor, int, int]:
    """Compute the scores of each tile of queries with its patch of keys; minus infinity outside window or frame.

    query, key [B, C, H, W]; inside [B or 1, H, W] bool -> [B, rows, columns, T * T, P * P] with P = T + 2 * radius.
    """
    H, W = query.shape[-2:]
    T, P = TILE, TILE + 2 * radius
    rows, columns = -(-H // T), -(-W // T)
    patches = _patches(key, rows, columns, radius)  # [B, rows, columns, C, P * P]
    scores = _tiles(query, rows, columns) @ patches  # [B, rows, columns, T * T, P * P]

    offset = torch.arange(P, device=query.device)[None, :] - torch.arange(T, device=query.device)[:, None]
    near = (offset >= 0) & (offset <= 2 * radius)  # [T, P]
    window = (near[:, None, :, None] & near[None, :, None, :]).reshape(T * T, P * P)
    frame = _patches(inside[:, None].float(), rows, columns, radius) > 0  # [B or 1, rows, columns, 1, P * P]
    # A padding query keeps all scores: without any, its softmax and the gradient of the keys would be NaN.
    padding = _tiles(inside[:, None].float(), rows, columns) == 0  # [B or 1, rows, columns, T * T, 1]
    bias = scores.new_zeros(()).masked_fill(~(window & frame | padding), float("-inf"))
    return scores.add_(bias), rows, columns


def _tiles(image: Tensor, rows: int, columns: int) -> Tensor:
    """Cut an image into tiles, zeros outside: [B, C, H, W] -> [B, rows, columns, T * T, C]."""
    H, W = image.shape[-2:]
    padded = F.pad(image, (0, columns * TILE - W, 0, rows * TILE - H))
    tiles = padded.unflatten(3, (columns, TILE)).unflatten(2, (rows, TILE))  # [B, C, rows, T, columns, T]
    return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)


def _patches(image: Tensor, rows: int, columns: int, radius: int) -> Tensor:
    """Cut out the patch around each tile, zeros outside: [B, C, H, W] -> [B, rows, columns, C, P * P]."""
    H, W = image.shape[-2:]
    T, P = TILE, TILE + 2 * radius
    padded = F.pad(image, (radius, radius + columns * T - W, radius, radius + rows * T - H))
    return padded.unfold(2, P, T).unfold(3, P, T).permute(0, 2, 3, 1, 4, 5).flatten(4, 5)


def _untile(tiled: Tensor, H: int, W: int) -> Tensor:
    """Join tiles to an image: [B, rows, columns, T * T, M] -> [B, M, H, W]."""
    image = tiled.unflatten(3, (TILE, TILE)).permute(0, 5, 1, 3, 2, 4)  # [B, M, rows, T, columns, T]
    return image.flatten(4, 5).flatten(2, 3)[:, :, :H, :W]


def _softmax_copy(query: Tensor, key: Tensor, value: Tensor, inside: Tensor, radius: int) -> Tensor:
    """Return [B, N + 1, H, W]: the copied values of one frame, and the logarithm of the softmax's denominator."""
    H, W = query.shape[-2:]
    if radius >= max(H, W) - 1:
        # Every window holds the whole frame, so patches would be padded copies of the frame.
        score = query.flatten(2).transpose(1, 2) @ key.flatten(2)  # [B, H * W, H * W]
        valid = inside.flatten(1)
        # A padding query keeps all scores, as in the tiles.
        score = score.masked_fill(valid[:, :, None] & ~valid[:, None, :], float("-inf"))
        return _copied(score, value.flatten(2)).transpose(1, 2).unflatten(2, (H, W))
    score, rows, columns = _tile_scores(query, key, inside, radius)
    patches = _patches(value, rows, columns, radius)  # [B, rows, columns, N, P * P]
    return _untile(_copied(score, patches), H, W)


def _copied(score: Tensor, value: Tensor) -> Tensor:
    """Return [..., Q, N + 1]: values [..., N, P] copied by scores [..., Q, P], and the logarithms of denominators."""
    # Division after the matrix product saves two passes over the scores and their gradient.
    highest = score.detach().amax(-1, keepdim=True)
    weight = (score - highest).exp()
    mass = weight.sum(-1, keepdim=True)
    copied = (weight @ value.transpose(-1, -2)) / mass
    return torch.cat([copied, highest + mass.log()], -1)


def _best_candidates(query: Tensor, key: Tensor, value: Tensor, inside: Tensor, radius: int, top_k: int) -> Tensor:
    """Return [B, count * (1 + N), H, W]: the best scores of one frame, in descending order, then their values."""
    H, W = query.shape[-2:]
    N = value.shape[1]
    score, rows, columns = _tile_scores(query, key, inside, radius)
    count = min(top_k, score.shape[-1])
    order = _stable_top_k(score, count)  # [B, rows, columns, T * T, count]
    patches = _patches(value, rows, columns, radius)[:, :, :, :, None, :].expand(-1, -1, -1, -1, TILE * TILE, -1)
    index = order[:, :, :, None].expand(-1, -1, -1, N, -1, -1)
    candidates = patches.gather(-1, index).permute(0, 1, 2, 4, 5, 3).flatten(4, 5)  # [.., T * T, count * N]
    return _untile(torch.cat([score.gather(-1, order), candidates], -1), H, W)


def _stable_top_k(score: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` highest scores, ties to the lower index, which torch.topk does not promise.

    All scores above the boundary value are selected, then the earliest scores equal to the boundary.
    """
    boundary = score.topk(count, dim=-1, sorted=True).values[..., -1:]
    above = score > boundary
    equal = score == boundary
    missing = count - above.sum(-1, keepdim=True)
    selected = above | (equal & (equal.cumsum(-1) <= missing))
    # Each row has exactly `count` selected entries, so nonzero's flat list can be reshaped.
    return selected.nonzero()[:, -1].reshape(*score.shape[:-1], count)
