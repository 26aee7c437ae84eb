"""Displacement of an object between two frames, from features alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.runtime.tracking.object_motion import REACH, FeatureBlocks, measure_displacement, sum_blocks

CELLS = 90, 160
SMALL, LARGE = 10, 24
"""Sides in cells of objects below and above LARGE_OBJECT."""


def texture(seed: int, *shape: int) -> np.ndarray:
    """Return features [8, *shape] float32 that vary slowly enough to survive averaging over blocks."""
    coarse = np.random.default_rng(seed).standard_normal((8, *(length // 4 + 2 for length in shape)))
    return coarse.repeat(4, 1).repeat(4, 2)[:, : shape[0], : shape[1]].astype(np.float32)


def scene(top: int, left: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features of an object, drawn as far as it lies within the frame, and its soft mask [h, w]."""
    features, soft_mask = texture(0, *CELLS), np.zeros(CELLS, np.float32)
    rows = slice(max(0, top), max(0, top + side))
    columns = slice(max(0, left), max(0, left + side))
    height, width = soft_mask[rows, columns].shape
    first_row, first_column = rows.start - top, columns.start - left
    drawn = texture(1, side, side)[:, first_row : first_row + height, first_column : first_column + width]
    features[:, rows, columns] = drawn
    soft_mask[rows, columns] = 1
    return features, soft_mask


def measure(start: tuple[int, int], end: tuple[int, int], side: int) -> np.ndarray:
    (before, soft_mask), (after, _) = scene(*start, side), scene(*end, side)
    return measure_displacement(FeatureBlocks(before), FeatureBlocks(after), soft_mask)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([SMALL, LARGE]), st.integers(0, 66), st.integers(0, 136))
def test_any_displacement_within_reach_is_measured_to_two_cells(side: int, top: int, left: int) -> None:
    moved = measure((32, 64), (top, left), side)
    assert np.abs(moved - (top - 32, left - 64)).max() <= 2.5


@pytest.mark.parametrize("side", [SMALL, LARGE])
def test_an_object_at_rest_does_not_move(side: int) -> None:
    assert measure((32, 64), (32, 64), side).tolist() == [0, 0]


def test_an_object_that_leaves_the_frame_is_measured_by_what_is_left() -> None:
    assert np.abs(measure((32, 20), (32, -8), LARGE) - (0, -28)).max() <= 2.5


def test_an_object_that_looks_like_nothing_on_the_next_frame_is_taken_for_at_rest() -> None:
    before, soft_mask = scene(32, 64, SMALL)
    after = -before
    assert measure_displacement(FeatureBlocks(before), FeatureBlocks(after * 0), soft_mask).tolist() == [0, 0]


@pytest.mark.parametrize("value", [0.0, 0.01])
def test_a_hidden_object_does_not_move(value: float) -> None:
    before, soft_mask = scene(32, 64, SMALL)
    after, _ = scene(32, 90, SMALL)
    hidden = np.full_like(soft_mask, value)
    assert measure_displacement(FeatureBlocks(before), FeatureBlocks(after), hidden).tolist() == [0, 0]


def test_an_object_smaller_than_a_block_is_measured() -> None:
    before, after, soft_mask = texture(0, *CELLS), texture(0, *CELLS), np.zeros(CELLS, np.float32)
    before[:, 40:42, 60:62], after[:, 40:42, 100:102], soft_mask[40, 60:62] = 5, 5, 1
    moved = measure_displacement(FeatureBlocks(before), FeatureBlocks(after), soft_mask)
    assert np.abs(moved - (0, 40)).max() <= 2.5


@pytest.mark.parametrize("cells", [(1, 1), (1, 9), (3, 2), (5, 300)])
def test_frames_of_any_size_are_measured(cells: tuple[int, int]) -> None:
    features = np.ones((8, *cells), np.float32)
    moved = measure_displacement(FeatureBlocks(features), FeatureBlocks(features), np.ones(cells, np.float32))
    assert moved.shape == (2,) and np.abs(moved).max() <= REACH


def test_blocks_are_sums_of_cells() -> None:
    values = np.arange(2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7)
    assert sum_blocks(values, 2)[1, 1, 2] == values[1, 2:4, 4:6].sum()
    assert sum_blocks(values, 2).shape == (2, 2, 3)
