"""Displacement of an object from one frame to the next, measured before its mask is propagated.

The object's cells on the previous frame are compared with the next frame at every displacement within REACH. The sum
over an object is far more certain than the match of one cell, so it may look far beyond a search window.
"""

from __future__ import annotations

import numpy as np

from corrflow.runtime.tracking.blas import matmul_single_threaded

REACH = 128
"""Largest displacement in cells along each axis."""
LARGE_OBJECT = 256
"""Cells from which an object is measured on blocks of 4x4 cells; smaller ones are measured on 2x2."""
MAX_BLOCKS = 256
"""Blocks that represent an object."""
MIN_GAIN = 0.02
"""Similarity by which a displacement has to exceed that of an object at rest."""
COST_PER_CELL = 0.001
"""Similarity that each cell of a displacement costs: among equal ones, the shortest wins."""


class FeatureBlocks:
    """Features of one frame, averaged over square blocks of cells, and of unit length again."""

    def __init__(self, features: np.ndarray) -> None:
        """Take features [C, h, w] float32; blocks are averaged where they are first asked for."""
        self._features = features
        self._blocks: dict[int, np.ndarray] = {}

    def of_side(self, side: int) -> np.ndarray:
        """Return blocks [C, h // side, w // side] float32; cells beyond the last whole block are left out."""
        if side not in self._blocks:
            summed = sum_blocks(self._features, side)
            self._blocks[side] = summed / np.maximum(np.sqrt((summed * summed).sum(0)), np.float32(1e-12))
        return self._blocks[side]


def sum_blocks(values: np.ndarray, side: int) -> np.ndarray:
    """Sum [..., h, w] over blocks of side x side: [..., h // side, w // side]."""
    height, width = (length // side * side for length in values.shape[-2:])
    rows = sum(values[..., start:height:side, :width] for start in range(side))
    assert isinstance(rows, np.ndarray)
    total = sum(rows[..., start::side] for start in range(side))
    assert isinstance(total, np.ndarray)
    return total


def measure_displacement(previous: FeatureBlocks, current: FeatureBlocks, soft_mask: np.ndarray) -> np.ndarray:
    """Return the displacement (down, right) in cells of an object, [2] float64; zeros where none is certain.

    previous, current: features of the two frames
    soft_mask: [h, w] float32, 0..1, the object on the previous frame
    """
    side = 4 if (soft_mask > 0.5).sum() >= LARGE_OBJECT else 2
    coverage = sum_blocks(soft_mask, side) / side**2
    blocks = np.flatnonzero(coverage > 0.5)
    if not coverage.size or not coverage.max() > 0.05:
        return np.zeros(2)
    if not len(blocks):
        blocks = np.array([coverage.argmax()])
    if len(blocks) > MAX_BLOCKS:
        blocks = blocks[np.linspace(0, len(blocks) - 1, MAX_BLOCKS).astype(int)]
    similarities = _mean_similarities(previous.of_side(side), current.of_side(side), blocks, REACH // side)
    centre = REACH // side
    down, right = np.ogrid[-centre : centre + 1, -centre : centre + 1]
    scores = similarities - COST_PER_CELL * side * np.hypot(down, right)
    row, column = (int(index) for index in np.unravel_index(int(scores.argmax()), scores.shape))
    if scores[row, column] - scores[centre, centre] <= MIN_GAIN:
        return np.zeros(2)
    peak = row + _vertex(scores[:, column], row), column + _vertex(scores[row], column)
    return (np.array(peak) - centre) * side


def _mean_similarities(previous: np.ndarray, current: np.ndarray, blocks: np.ndarray, reach: int) -> np.ndarray:
    """Return the mean cosine similarity of blocks [n] of `previous` at each displacement: [2 reach + 1, 2 reach + 1].

    What would lie outside the frame counts as 0.
    """
    channels, height, width = current.shape
    features = np.ascontiguousarray(previous.reshape(channels, -1)[:, blocks].T)
    similarities = matmul_single_threaded(features, current.reshape(channels, -1)).reshape(-1, height, width)
    total = np.zeros((2 * reach + 1, 2 * reach + 1), np.float64)
    for similarity, block in zip(similarities, blocks, strict=True):
        row, column = divmod(int(block), width)
        # The part of the frame within reach, and its place among the displacements.
        top, left = max(0, row - reach), max(0, column - reach)
        part = similarity[top : row + reach + 1, left : column + reach + 1]
        first_row, first_column = top - row + reach, left - column + reach
        total[first_row : first_row + part.shape[0], first_column : first_column + part.shape[1]] += part
    return total / len(blocks)


def _vertex(values: np.ndarray, index: int) -> float:
    """Return the offset of a parabola's vertex from the largest of three neighbours, -0.5..0.5; 0 at the ends."""
    if not 0 < index < len(values) - 1:
        return 0.0
    before, here, after = values[index - 1 : index + 2]
    curvature = before - 2 * here + after
    return float(np.clip((before - after) / (2 * curvature), -0.5, 0.5)) if curvature < 0 else 0.0
