"""What several test files share: the oracle of the op, a small artifact, and the data that users do not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips with real masks; skips where they are not beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the development data is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def oracle() -> Callable[..., np.ndarray]:
    """LocalSoftCopy written down from its definition in float64, one query position after another."""
    return local_soft_copy_oracle


def local_soft_copy_oracle(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    windows: list[tuple[int, int]],
    top_k: int,
    temperature: float,
) -> np.ndarray:
    """windows: (radius, dilation) of each reference; shapes as in spec.py; returns [B, N, H, W] float64."""
    query, keys, values = (array.astype(np.float64) for array in (query, keys, values))
    B, _, H, W = query.shape
    copied = np.zeros((B, values.shape[2], H, W))
    for b in range(B):
        for y in range(H):
            for x in range(W):
                scores, sources = [], []
                for k, (radius, dilation) in enumerate(windows):
                    for row in range(y - radius * dilation, y + radius * dilation + 1, dilation):
                        for column in range(x - radius * dilation, x + radius * dilation + 1, dilation):
                            if 0 <= row < H and 0 <= column < W:
                                scores.append(float(query[b, :, y, x] @ keys[b, k, :, row, column]) / temperature)
                                sources.append(values[b, k, :, row, column])
                # Python's sort is stable, so equal scores stay in the order of reference, row and column.
                best = sorted(range(len(scores)), key=lambda i: -scores[i])[: top_k or None]
                kept = np.array([scores[i] for i in best])
                weight = np.exp(kept - kept.max())
                copied[b, :, y, x] = (weight[:, None] * np.array([sources[i] for i in best])).sum(0) / weight.sum()
    return copied


@pytest.fixture(scope="session")
def small_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with an untrained quarter-width encoder, 64 rows, three recent frames, a window of 5x5, top 10."""
    from corrflow.export.to_onnx import export_artifact
    from corrflow.runtime.artifact import TrackingSettings

    folder = tmp_path_factory.mktemp("artifacts") / "small"
    settings = TrackingSettings(rows=64, ages=(1, 2, 3), radius=(2,), top_k=10, temperature=0.1)
    export_artifact("untrained:quarter", folder, settings, (64, 96))
    return folder


@pytest.fixture(scope="session")
def moving_square() -> tuple[np.ndarray, np.ndarray]:
    """Eight textured frames [8, 66, 98, 3] uint8 in which a red square moves 2 pixels a frame, and its masks."""
    generator = np.random.default_rng(0)
    background = generator.integers(60, 120, (66, 98, 3), np.uint8)
    texture = generator.integers(0, 60, (20, 20, 1), np.uint8)
    frames, masks = [], []
    for t in range(8):
        frame, mask = background.copy(), np.zeros((66, 98), bool)
        top, left = 14 + t, 20 + 2 * t
        frame[top : top + 20, left : left + 20] = np.array([30, 30, 180], np.uint8) + texture
        mask[top : top + 20, left : left + 20] = True
        frames.append(frame)
        masks.append(mask)
    return np.stack(frames), np.stack(masks)
