"""Oracle of the op: LocalSoftCopy written down from its definition in float64, one query position after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def oracle(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    windows: Sequence[tuple[int, int]],
    top_k: int,
    temperature: float,
    references: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """windows: (radius, dilation) of each reference; shapes as in spec.py; returns [B, N, H, W] float64.

    references: (picture, down, right) of each; None: the pictures in turn, unmoved
    """
    query, keys, values = (array.astype(np.float64) for array in (query, keys, values))
    B, _, H, W = query.shape
    copied = np.zeros((B, values.shape[2], H, W))
    named = references or [(k, 0, 0) for k in range(len(windows))]
    for b in range(B):
        for y in range(H):
            for x in range(W):
                scores, sources = [], []
                for (k, down, right), (radius, dilation) in zip(named, windows, strict=True):
                    steps = range(-radius * dilation, radius * dilation + 1, dilation)
                    for row in (y + down + step for step in steps):
                        for column in (x + right + step for step in steps):
                            if 0 <= row < H and 0 <= column < W:
                                scores.append(float(query[b, :, y, x] @ keys[b, k, :, row, column]) / temperature)
                                sources.append(values[b, k, :, row, column])
                if not scores:
                    continue
                # Python's sort is stable, so equal scores stay in the order of reference, row and column.
                best = sorted(range(len(scores)), key=lambda i: -scores[i])[: top_k or None]
                kept = np.array([scores[i] for i in best])
                weight = np.exp(kept - kept.max())
                copied[b, :, y, x] = (weight[:, None] * np.array([sources[i] for i in best])).sum(0) / weight.sum()
    return copied
