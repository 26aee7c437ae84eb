"""Packed masks unpack to the pixels that they were made of, know their place, and are small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from corrflow.file_budget import FileBudget
from corrflow.runtime.formats.packed_masks import BitMask, BoxMask, PackedMask, PolygonMask, RunMask
from corrflow.runtime.formats.polygons import filled_area
from corrflow.runtime.formats.rle import coco_rle, coco_runs

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20)))


def place_of(mask: np.ndarray) -> tuple[float, float, float]:
    rows, columns = np.nonzero(mask)
    return (float(columns.mean()), float(rows.mean()), len(rows) ** 0.5) if len(rows) else (0.0, 0.0, 0.0)


def assert_packs(packed: PackedMask, mask: np.ndarray) -> None:
    assert np.array_equal(packed.unpacked(), mask) and packed.shape == mask.shape
    assert packed.place == pytest.approx(place_of(mask))


@settings(max_examples=80, deadline=None)
@given(mask=MASKS)
def test_bits_and_runs_unpack_to_their_mask(mask: np.ndarray) -> None:
    assert_packs(BitMask.of(mask), mask)
    assert_packs(RunMask.of(coco_runs(coco_rle(mask), mask.shape), mask.shape), mask)


def test_a_part_of_an_image_unpacks_where_it_lies() -> None:
    whole = np.zeros((30, 40), bool)
    whole[5:9, 20:31] = True
    assert_packs(BitMask.of(whole[3:12, 18:35], (3, 18), (30, 40)), whole)
    assert_packs(BoxMask((30, 40), 20, 5, 31, 9), whole)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 30), st.floats(-9, 30)), min_size=3, max_size=6))
def test_polygons_are_filled_on_their_frame_and_none_without_a_pixel(corners: list[tuple[float, float]]) -> None:
    polygons, shape = [np.array(corners)], (17, 21)
    packed, mask = PolygonMask.of(polygons, shape, FileBudget()), filled_area(polygons, shape)
    assert (packed is None) == (not mask.any())
    if packed is not None:
        assert_packs(packed, mask)


def test_masks_of_different_content_have_different_bytes() -> None:
    boxes = [BoxMask((9, 9), 0, 0, 2, 2), BoxMask((9, 9), 0, 0, 2, 3)]
    packed = [*boxes, *(BitMask.of(one.unpacked()) for one in boxes)]
    assert len({one.content() for one in packed}) == len(packed)
    assert all(one.num_bytes < 1000 for one in packed)
