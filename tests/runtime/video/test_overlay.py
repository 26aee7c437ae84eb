"""The overlay has the right colours in the right places and nothing elsewhere, for every input."""

from __future__ import annotations

import numpy as np
import pytest

from corrflow.runtime.types import Frame, FrameResult, ObjectResult
from corrflow.runtime.video.overlay import davis_palette, draw_overlay

GREY = np.full((240, 320, 3), 90, np.uint8)


def empty_mask() -> np.ndarray:
    return np.zeros(GREY.shape[:2], np.uint8)


def result(mask: np.ndarray, objects: tuple[ObjectResult, ...] = (), image: np.ndarray = GREY) -> FrameResult:
    return FrameResult(mask, objects, Frame(image, 0, 0.0, "00000"))


def changed(result: FrameResult) -> np.ndarray:
    """Return [H, W] bool: pixels where the overlay differs from the frame."""
    return (draw_overlay(result) != result.frame.image).any(axis=2)


def points_track(points: list[tuple[float, float]], confidence: list[float] | None = None) -> ObjectResult:
    certainty = None if confidence is None else np.array(confidence, np.float32)
    names = tuple(f"p{index}" for index in range(len(points)))
    return ObjectResult(2, "", 1.0, True, None, np.array(points, np.float32), names, certainty)


def test_palette_is_the_one_of_davis() -> None:
    palette = davis_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 7: (128, 128, 128)}
    known |= {8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {index: tuple(palette[index].tolist()) for index in known} == known
    assert len(np.unique(palette, axis=0)) == 256


def test_an_empty_result_leaves_the_frame_as_it_is_in_a_new_array() -> None:
    drawn = draw_overlay(result(empty_mask()))
    assert np.array_equal(drawn, GREY) and not np.shares_memory(drawn, GREY)


def test_the_frame_is_not_changed() -> None:
    image = GREY.copy()
    mask = empty_mask()
    mask[50:100, 50:100] = 1
    draw_overlay(result(mask, (points_track([(10, 10)]),), image=image))
    assert np.array_equal(image, GREY)


def test_fill_is_translucent_and_has_the_hue_of_the_object_and_stays_inside() -> None:
    image = np.random.default_rng(0).integers(0, 200, GREY.shape, np.uint8)
    mask = empty_mask()
    mask[50:150, 60:200] = 1
    drawn = draw_overlay(result(mask, image=image))
    inside = drawn[70:130, 80:180].astype(int)
    assert np.corrcoef(inside[..., 1].ravel(), image[70:130, 80:180, 1].ravel())[0, 1] > 0.99  # shines through
    assert (inside[..., 2].mean() - image[70:130, 80:180, 2].mean()) > 20  # object 1 is red
    assert (inside[..., 0].mean() - image[70:130, 80:180, 0].mean()) < 0
    margin = changed(result(mask, image=image))
    margin[47:153, 57:203] = False
    assert not margin.any()


def test_touching_objects_are_told_apart_by_their_contours() -> None:
    mask = empty_mask()
    mask[50:150, 60:130] = 1
    mask[50:150, 130:200] = 2
    drawn = draw_overlay(result(mask)).astype(int)
    assert drawn[100, 90, 2] > drawn[100, 90, 1] and drawn[100, 170, 1] > drawn[100, 170, 2]
    for column, fill in ((130, drawn[100, 90]), (60, drawn[100, 90]), (199, drawn[100, 170])):
        line = drawn[100, column - 2 : column + 3]
        assert np.abs(line - fill).max() > 40


def test_point_is_drawn_round_its_place_with_a_dark_outline() -> None:
    where = changed(result(empty_mask(), (points_track([(100.0, 60.0)]),)))
    rows, columns = np.nonzero(where)
    assert abs(rows.mean() - 60) < 0.3 and abs(columns.mean() - 100) < 0.3
    drawn = draw_overlay(result(empty_mask(), (points_track([(100.0, 60.0)]),)))
    assert drawn[where].min(axis=1).min() < 50 and drawn[60, 100, 1] > 120  # dark rim, green heart


def test_doubtful_point_is_hollow_and_dimmer_than_a_sure_one() -> None:
    sure, doubtful = (
        draw_overlay(result(empty_mask(), (points_track([(100, 60)], [c]),))).astype(int) for c in (0.9, 0.1)
    )
    assert np.abs(doubtful[60, 100] - GREY[60, 100]).max() < 10 < np.abs(doubtful - GREY).max()
    assert 0 < np.abs(doubtful - GREY).max() < np.abs(sure - GREY).max()


def test_marks_grow_with_the_picture() -> None:
    def area(height: int, width: int) -> int:
        image = np.full((height, width, 3), 90, np.uint8)
        return int(changed(result(image[..., 0] * 0, (points_track([(100, 100)]),), image=image)).sum())

    assert area(1080, 1920) > 4 * area(240, 426)


def test_name_is_drawn_for_named_visible_objects_only() -> None:
    mask = empty_mask()
    mask[100:150, 100:200] = 1
    box = (100, 100, 200, 150)
    plain = changed(result(mask, (ObjectResult(1, "", 1.0, True, box),)))
    named = changed(result(mask, (ObjectResult(1, "cat", 1.0, True, box),)))
    lost = changed(result(mask, (ObjectResult(1, "cat", 1.0, False, box),)))
    assert named[:95].any() and not plain[:95].any() and not lost[:95].any()


@pytest.mark.parametrize("corner", [(0, 0), (318, 0), (318, 238), (0, 238)], ids=str)
@pytest.mark.parametrize("name", ["cat", "a name much longer than the picture is wide " * 3, "Käse", "猫", "\n"])
def test_names_at_the_border_and_of_any_length_and_script_fit_the_picture(corner: tuple[int, int], name: str) -> None:
    x, y = corner
    mask = empty_mask()
    mask[y : y + 2, x : x + 2] = 5
    drawn = draw_overlay(result(mask, (ObjectResult(5, name, 1.0, True, (x, y, x + 2, y + 2)),)))
    assert drawn.shape == GREY.shape and (drawn != GREY).sum() > 100


def test_points_far_outside_or_undefined_are_left_out() -> None:
    points = [(-50.0, 20.0), (1e30, 5.0), (float("nan"), 3.0), (float("inf"), -float("inf")), (20.0, 400.0)]
    assert not changed(result(empty_mask(), (points_track(points),))).any()


@pytest.mark.parametrize("place", [(0, 0), (319, 0), (319, 239), (0.4, 238.6)], ids=str)
@pytest.mark.parametrize("confidence", [0.9, 0.1])
def test_points_at_the_border_are_drawn(place: tuple[float, float], confidence: float) -> None:
    assert changed(result(empty_mask(), (points_track([place], [confidence]),))).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (33, 17)], ids=str)
def test_any_picture_size_works(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    mask = np.full(size, 255, np.uint8)
    track = ObjectResult(255, "thing", 1.0, True, (0, 0, size[1], size[0]))
    assert draw_overlay(result(mask, (track, points_track([(0, 0)])), image=image)).shape == image.shape


def test_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a mask of the frame's size \(240, 320\), got \(10, 10\)"):
        draw_overlay(result(np.zeros((10, 10), np.uint8)))
