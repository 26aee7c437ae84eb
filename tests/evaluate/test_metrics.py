"""DAVIS measures compared with official values, and with a direct implementation of their definition."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from helpers.paths import SHARED_DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corrflow.evaluate.metrics.continuity import areas_of_frames
from corrflow.evaluate.metrics.masks import (
    OFFICIAL_BOUND,
    contour_accuracy,
    mean_recall_decay,
    object_score,
    region_similarity,
    score_object,
)

GOLDEN = SHARED_DATA / "golden" / "davis_metrics.npz"

SEQUENCES = (
    "bear",
    "bmx-bumps",
    "dance-jump",
    "flamingo",
    "horsejump-low",
    "mallard-fly",
    "scooter-gray",
    "soccerball",
)

# Every step is a count of pixels or one division, so values differ by the order of operations at most.
ROUNDING = 1e-12


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"no official values at {GOLDEN}")
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_scores_match_golden_values(sequence: str) -> None:
    with np.load(GOLDEN, allow_pickle=False) as golden:
        assert {key.partition("/")[0] for key in golden.files} == set(SEQUENCES)
        shape = tuple(golden[f"{sequence}/shape"])
        prediction, truth = (
            np.unpackbits(golden[f"{sequence}/{name}"], count=math.prod(shape)).reshape(shape).astype(bool)
            for name in ("pred", "gt")
        )
        all_frames = score_object(prediction, truth)
        # The statistics exclude the prompted first frame and the last frame.
        score = score_object(prediction[1:-1], truth[1:-1])
        for value, name in (
            (all_frames.region_similarity, "J"),
            (all_frames.contour_accuracy, "F"),
            ([score.region.mean, score.region.recall, score.region.decay], "J_stats"),
            ([score.contour.mean, score.contour.recall, score.contour.decay], "F_stats"),
        ):
            np.testing.assert_allclose(value, golden[f"{sequence}/{name}"], rtol=0, atol=ROUNDING)


# --- definition ------------------------------------------------------------------------------------------------


def direct_region_similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    predicted = {tuple(point) for point in np.argwhere(prediction)}
    true = {tuple(point) for point in np.argwhere(truth)}
    return len(predicted & true) / len(predicted | true) if predicted | true else 1.0


def direct_contour_accuracy(prediction: np.ndarray, truth: np.ndarray, bound: float = OFFICIAL_BOUND) -> float:
    radius = int(bound) if bound >= 1 else math.ceil(bound * np.linalg.norm(prediction.shape))
    disk = [
        (y, x)
        for y in range(-radius, radius + 1)
        for x in range(-radius, radius + 1)
        if y * y + x * x <= radius * radius
    ]
    predicted, true = direct_boundary(prediction), direct_boundary(truth)
    if not predicted and not true:
        return 1.0
    if not predicted or not true:
        return 0.0
    near_predicted = {(y + dy, x + dx) for y, x in predicted for dy, dx in disk}
    near_true = {(y + dy, x + dx) for y, x in true for dy, dx in disk}
    precision = len(predicted & near_true) / len(predicted)
    recall = len(true & near_predicted) / len(true)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def direct_boundary(mask: np.ndarray) -> set[tuple[int, int]]:
    height, width = mask.shape
    rows = (mask != 0).tolist()
    boundary = set()
    for y in range(height):
        for x in range(width):
            last_row, last_column = y == height - 1, x == width - 1
            if last_row and last_column:
                continue
            neighbours = [(y, x + 1)] if last_row else [(y + 1, x)] if last_column else []
            if not neighbours:
                neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if any(rows[y][x] != rows[ny][nx] for ny, nx in neighbours):
                boundary.add((y, x))
    return boundary


def blob(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw an ellipse that may leave the image."""
    y, x = np.mgrid[:height, :width]
    centre_y, centre_x = generator.uniform(0, height), generator.uniform(0, width)
    radius_y, radius_x = generator.uniform(0.5, height), generator.uniform(0.5, width)
    return ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1


def random_mask(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    kind = generator.choice(["noise", "blob", "ring", "point", "empty", "full", "edge"], p=[0.2, 0.3, *[0.1] * 5])
    mask = np.zeros((height, width), dtype=bool)
    if kind == "noise":
        mask = generator.random((height, width)) < generator.choice([0.02, 0.2, 0.5, 0.9])
    elif kind == "blob":
        mask = blob(generator, height, width)
    elif kind == "ring":
        mask = blob(generator, height, width) & ~blob(generator, height, width)
    elif kind == "point":
        mask[generator.integers(height), generator.integers(width)] = True
    elif kind == "full":
        mask[:] = True
    elif kind == "edge":
        side = generator.choice(["top", "bottom", "left", "right"])
        mask[{"top": np.s_[:1], "bottom": np.s_[-1:], "left": np.s_[:, :1], "right": np.s_[:, -1:]}[side]] = True
    return mask


def random_pairs(count: int) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    generator = np.random.default_rng(0)
    for _ in range(count):
        height, width = generator.integers(1, 34, size=2)
        bound = generator.choice([OFFICIAL_BOUND, 0.0, 0.05, 0.13, 0.5, 1, 2, 3, 7])
        yield random_mask(generator, height, width), random_mask(generator, height, width), float(bound)


def test_region_similarity_matches_direct_definition() -> None:
    for prediction, truth, _ in random_pairs(1000):
        assert region_similarity(prediction, truth) == direct_region_similarity(prediction, truth)


def test_contour_accuracy_matches_direct_definition() -> None:
    for prediction, truth, bound in random_pairs(1000):
        expected = direct_contour_accuracy(prediction, truth, bound)
        assert abs(contour_accuracy(prediction, truth, bound) - expected) <= ROUNDING


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 9), (9, 1), (2, 2), (7, 11)], ids=["pixel", "row", "column", "2x2", "7x11"]
)
def test_measures_match_direct_definition_for_every_single_pixel(shape: tuple[int, int]) -> None:
    truth = np.zeros(shape, dtype=bool)
    truth[shape[0] // 2, shape[1] // 2] = True
    for index in np.ndindex(shape):
        prediction = np.zeros(shape, dtype=bool)
        prediction[index] = True
        assert region_similarity(prediction, truth) == direct_region_similarity(prediction, truth)
        for bound in (0, 1, 2, 3):
            expected = direct_contour_accuracy(prediction, truth, bound)
            assert abs(contour_accuracy(prediction, truth, bound) - expected) <= ROUNDING


def test_contour_tolerance_of_480p_is_eight_pixels() -> None:
    truth = np.zeros((480, 854), dtype=bool)
    truth[200:240, 200:240] = True
    prediction = np.zeros_like(truth)
    prediction[200:240, 208:248] = True
    assert contour_accuracy(prediction, truth) == 1.0
    prediction = np.roll(prediction, 1, axis=1)
    assert contour_accuracy(prediction, truth) < 1.0
    assert contour_accuracy(prediction, truth) == contour_accuracy(prediction, truth, bound=8)


def test_contour_accuracy_with_one_empty_contour_is_zero() -> None:
    empty, full, part = np.zeros((9, 9), bool), np.ones((9, 9), bool), np.eye(9, dtype=bool)
    assert contour_accuracy(part, empty) == contour_accuracy(empty, part) == 0.0
    # A full mask has no contour, because no pixel differs from its neighbours.
    assert contour_accuracy(full, empty) == 1.0
    assert region_similarity(full, empty) == 0.0
    assert region_similarity(empty, empty) == contour_accuracy(empty, empty) == 1.0


def test_measures_do_not_depend_on_dtype_or_memory_order() -> None:
    for prediction, truth, bound in random_pairs(60):
        expected = region_similarity(prediction, truth), contour_accuracy(prediction, truth, bound)
        for other in (
            prediction.astype(np.uint8) * 255,
            prediction.astype(np.float32) * 0.5,
            np.asfortranarray(prediction),
            prediction.repeat(2, axis=1)[:, ::2],
        ):
            assert (region_similarity(other, truth), contour_accuracy(other, truth, bound)) == expected


@pytest.mark.parametrize("measure", [region_similarity, contour_accuracy])
def test_masks_of_other_shapes_are_refused(measure) -> None:
    for wrong in (np.zeros((4, 6), bool), np.zeros((4, 5, 1), bool), np.zeros(20, bool)):
        with pytest.raises(ValueError, match="two masks"):
            measure(wrong, np.zeros((4, 5), bool))
    with pytest.raises(ValueError, match="two masks"):
        measure(np.zeros((0, 5), bool), np.zeros((0, 5), bool))


@pytest.mark.parametrize("bound", [-0.1, 1.5, -1])
def test_invalid_bounds_are_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="whole pixels"):
        contour_accuracy(np.eye(4, dtype=bool), np.eye(4, dtype=bool), bound)


# --- properties ------------------------------------------------------------------------------------------------

# Other processes of a shared machine may delay an example past the default deadline.
no_deadline = settings(deadline=None)

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=16))
mask_pairs = hnp.array_shapes(min_dims=2, max_dims=2, max_side=16).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)
scores = hnp.arrays(np.float64, st.integers(1, 700), elements=st.floats(0, 1))


@given(masks)
@no_deadline
def test_equal_masks_score_one(mask: np.ndarray) -> None:
    assert region_similarity(mask, mask) == 1.0
    assert contour_accuracy(mask, mask) == 1.0


@given(mask_pairs)
@no_deadline
def test_measures_are_symmetric_and_within_zero_and_one(pair: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = pair
    assert 0.0 <= region_similarity(first, second) == region_similarity(second, first) <= 1.0
    # Precision and recall swap, and their sum is rounded equally in both orders.
    assert contour_accuracy(first, second) == pytest.approx(contour_accuracy(second, first), abs=ROUNDING)
    assert 0.0 <= contour_accuracy(first, second) <= 1.0 + ROUNDING


@given(mask_pairs, st.integers(1, 8), st.integers(1, 8))
@no_deadline
def test_wider_tolerance_never_lowers_contour_accuracy(
    pair: tuple[np.ndarray, np.ndarray], one: int, other: int
) -> None:
    narrow, wide = (contour_accuracy(*pair, bound=bound) for bound in sorted((one, other)))
    assert narrow <= wide + ROUNDING


@given(mask_pairs)
@no_deadline
def test_background_around_the_masks_does_not_change_measures(pair: tuple[np.ndarray, np.ndarray]) -> None:
    rim = [np.pad(mask, 3) for mask in pair]
    wide = [np.pad(mask, ((9, 20), (14, 5))) for mask in pair]
    assert region_similarity(*rim) == region_similarity(*wide) == region_similarity(*pair)
    assert contour_accuracy(*rim, bound=2) == contour_accuracy(*wide, bound=2)


# --- statistics ------------------------------------------------------------------------------------------------


def official_decay(values: np.ndarray) -> float:
    """Compute the decay edge by edge, with edges in 8 bits."""
    edges = []
    for share in range(5):
        position = 1 + share * (len(values) - 1) / 4 + 1e-10
        edges.append((math.floor(position + 0.5) - 1) % 256)
    bins = [values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]]
    return float(np.mean(bins[0]) - np.mean(bins[1])) if all(len(part) for part in bins) else math.nan


@pytest.mark.parametrize("count", range(1, 257))
def test_decay_up_to_256_frames_is_the_official_decay(count: int) -> None:
    values = np.random.default_rng(count).random(count)
    mean, recall, decay = mean_recall_decay(values)
    assert (mean, recall, decay) == mean_recall_decay(values, official_uint8_bins=True)
    assert decay == pytest.approx(official_decay(values), abs=ROUNDING)
    assert mean == pytest.approx(values.mean(), abs=ROUNDING)
    assert recall == np.count_nonzero(values > 0.5) / count


@pytest.mark.parametrize("count", [257, 300, 345, 400, 513, 800, 1025])
def test_decay_past_256_frames_is_correct_by_default(count: int) -> None:
    # On a falling line the mean of a quarter is the value at its middle, which only the correct edges give.
    values = np.linspace(1, 0, count)
    first, second, _, fourth, last = np.round(np.linspace(1, count, 5) + 1e-10).astype(int) - 1
    expected = (values[first] + values[second]) / 2 - (values[fourth] + values[last]) / 2
    assert mean_recall_decay(values)[2] == pytest.approx(expected, abs=ROUNDING)
    assert mean_recall_decay(values)[2] == pytest.approx(0.75, abs=2 / count)


@pytest.mark.parametrize("count", [257, 300, 345, 400, 513, 800, 1025])
def test_official_decay_past_256_frames_wraps(count: int) -> None:
    values = np.random.default_rng(count).random(count)
    decay = mean_recall_decay(values, official_uint8_bins=True)[2]
    assert decay == pytest.approx(official_decay(values), abs=ROUNDING, nan_ok=True)
    assert decay != mean_recall_decay(values)[2]


@given(scores)
@no_deadline
def test_statistics_stay_within_their_ranges(values: np.ndarray) -> None:
    mean, recall, decay = mean_recall_decay(values)
    assert values.min() - ROUNDING <= mean <= values.max() + ROUNDING
    assert 0.0 <= recall <= 1.0
    assert -1.0 - ROUNDING <= decay <= 1.0 + ROUNDING
    assert mean_recall_decay(values[::-1])[:2] == pytest.approx((mean, recall), abs=ROUNDING)


@given(st.floats(0, 1), st.integers(1, 700))
@no_deadline
def test_constant_scores_have_no_decay(value: float, count: int) -> None:
    assert mean_recall_decay([value] * count)[2] == pytest.approx(0.0, abs=ROUNDING)


@pytest.mark.parametrize("values", [[], np.zeros((3, 2)), np.float64(1)], ids=["none", "2d", "scalar"])
def test_statistics_of_other_shapes_are_refused(values) -> None:
    with pytest.raises(ValueError, match="one value per frame"):
        mean_recall_decay(values)


def test_objects_with_no_or_unequal_frames_are_refused() -> None:
    frames = np.ones((3, 4, 4), dtype=bool)
    with pytest.raises(ValueError, match="at least one"):
        score_object(frames[:0], frames[:0])
    with pytest.raises(ValueError, match="J, F and areas of each frame"):
        object_score([1, 2], [0.5], [0.5], areas_of_frames(*np.ones((3, 1))))
    with pytest.raises(ValueError, match="longer"):
        score_object(frames[:2], frames)
