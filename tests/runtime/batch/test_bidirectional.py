"""Annotations on several frames: kept unchanged, tracked both ways, blended between, and nothing computed twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.counting import Counting, counting_tracker
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.batch.bidirectional import PassOptions, track_bidirectional
from corrflow.runtime.batch.label_discovery import LabelSource, find_annotations
from corrflow.runtime.batch.passes import FOLDER, blend_masks, blend_points, round_to_float16
from corrflow.runtime.batch.targets import targets_of
from corrflow.runtime.formats.annotations import Annotations, CompressedAnnotation
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, FrameResult, KeypointsObject, MaskObject, TrackedObject
from corrflow.runtime.video.source import FrameSource


class Frames(FrameSource):
    def __init__(self, images: np.ndarray) -> None:
        self.name, self.frame_count, self.frames_per_second = "clip", len(images), Fraction(25)
        self._images = images

    def __iter__(self) -> Iterator[Frame]:
        for index, image in enumerate(self._images):
            yield Frame(image, index, index / 25, f"{index:05d}")

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def tracker(small_artifact: Path) -> Iterator[Tracker]:
    with counting_tracker(small_artifact) as tracker:
        yield tracker


def labels(given: Mapping[int, Sequence[TrackedObject]]) -> Annotations:
    return Annotations({frame: [CompressedAnnotation.of(one) for one in objects] for frame, objects in given.items()})


def run(
    tracker: Tracker,
    images: np.ndarray,
    given: Mapping[int, Sequence[TrackedObject]],
    folder: Path,
    earlier: str = "none",
    now: str = "now",
    input_digest: str = "video and model",
) -> tuple[list[FrameResult], int]:
    """Return the result of every frame, and the number of frames that were encoded."""
    (folder / now).mkdir(parents=True)
    assert isinstance(tracker.backend, Counting)
    before = tracker.backend.encoded
    places = PassOptions(input_digest, folder / earlier, folder / now, True)
    found = list(track_bidirectional(Frames(images), tracker, labels(given), folder, places))
    assert [result.frame.index for result in found] == list(range(len(images)))
    return found, tracker.backend.encoded - before


def same(one: Sequence[FrameResult], other: Sequence[FrameResult]) -> bool:
    return all(np.array_equal(a.mask, b.mask) and repr(a) == repr(b) for a, b in zip(one, other, strict=True))


def test_between_two_labels_both_passes_count_by_time_and_confidence(
    tracker: Tracker, moving_square: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, masks = moving_square
    given = {index: [MaskObject(3, masks[index])] for index in (1, 6)}
    tracks, encoded = run(tracker, images, given, tmp_path)
    # Backward 6 to 2 and 1 to 0, forward 1 to 5 and 6 to 7: the labelled frames start both ways.
    assert encoded == 7 + 7
    soft: dict[tuple[int, int], np.ndarray] = {}
    for start, way in ((1, 1), (6, -1)):
        tracker.start(images[start], given[start])
        for index in range(start + way, start + 5 * way, way):
            soft[index, way] = round_to_float16(tracker.soft_step(images[index])[3])
    upsample = Geometry.of((66, 98), tracker.settings.short_side).upsampler()
    for index in range(2, 6):
        certain = [float(part[part > 0.5].mean()) for part in (soft[index, 1], soft[index, -1])]
        weights = (6 - index) / 5 * certain[0], (index - 1) / 5 * certain[1]
        wanted = (weights[0] * soft[index, 1] + weights[1] * soft[index, -1]) / sum(weights)
        differs = (tracks[index].mask == 3) != (upsample(wanted.astype(np.float32))[0] > 0.5)
        assert np.count_nonzero(differs) <= 1, index  # where the last bit decides
    for index in (1, 6):
        assert np.array_equal(tracks[index].mask == 3, masks[index])
    for index in range(8):
        overlap = np.count_nonzero((tracks[index].mask == 3) & masks[index])
        assert overlap / np.count_nonzero((tracks[index].mask == 3) | masks[index]) > 0.6, index


def test_an_added_label_recomputes_what_it_changes_and_nothing_else(
    tracker: Tracker, moving_square: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, masks = moving_square
    point = KeypointsObject(9, np.array([[30, 24]], np.float32), ("corner",))
    first = {0: [MaskObject(1, masks[0]), point], 4: [MaskObject(1, masks[4])]}
    more = first | {6: [MaskObject(1, masks[6])]}
    _, encoded = run(tracker, images, first, tmp_path, now="first")
    assert encoded == 4 + 8 + 8  # 4 to 1 backward, 0 to 7 forward, and the point's crop all the way
    again, encoded = run(tracker, images, first, tmp_path, "first", "again")
    assert encoded == 0
    added, encoded = run(tracker, images, more, tmp_path, "again", "added")
    assert encoded == 2 + 2  # 6 and 5 backward, 6 and 7 forward; 5 forward is there already
    fresh, _ = run(tracker, images, more, tmp_path, now="fresh")
    assert same(added, fresh) and same(added[:4], again[:4])
    # and a label taken away again
    less, encoded = run(tracker, images, first, tmp_path, "added", "less")
    assert encoded <= 1 + 3 and same(less, again)


def test_another_video_or_model_uses_no_earlier_pass(
    tracker: Tracker, moving_square: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, masks = moving_square
    given = {0: [MaskObject(1, masks[0])]}
    run(tracker, images, given, tmp_path, now="first")
    assert run(tracker, images, given, tmp_path, "first", "second", "another")[1] == 8
    moved = {0: [MaskObject(1, masks[1])]}
    assert run(tracker, images, moved, tmp_path, "first", "third")[1] == 8


def test_an_object_does_not_depend_on_the_others(
    tracker: Tracker, moving_square: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, masks = moving_square
    other = np.zeros_like(masks[0])
    other[40:60, 60:90] = True
    alone = {2: [MaskObject(1, masks[2])], 5: [MaskObject(1, masks[5])]}
    beside: dict[int, Sequence[TrackedObject]] = {
        0: [MaskObject(2, other)],
        2: [MaskObject(1, masks[2]), KeypointsObject(7, np.array([[30, 24], [50, 50]], np.float32), ("a", "b"))],
        4: [KeypointsObject(7, np.array([[34, 26]], np.float32), ("a",)), MaskObject(2, other)],
        5: [MaskObject(1, masks[5])],
    }
    one, _ = run(tracker, images, alone, tmp_path, now="alone")
    many, _ = run(tracker, images, beside, tmp_path, now="beside")
    for a, b in zip(one, many, strict=True):
        assert repr(a.objects[0]) == repr(b.objects[0])
    assert many[4].objects[2].point_names == ("a", "b")
    points = many[4].objects[2].points
    assert points is not None and points[0] == pytest.approx([34, 26])


def test_labelled_images_are_read_once_for_all_points(
    tracker: Tracker, moving_square: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points with labels on frames of their own are many targets; each would have its own copies of large images."""
    images, _ = moving_square
    places = np.array([[30, 24], [32, 26], [28, 22], [34, 30]], np.float32)
    names = ("a", "b", "c", "d")
    given = {frame: [KeypointsObject(1, places[:count], names[:count])] for frame, count in ((0, 4), (2, 3), (5, 2))}
    held = []
    started = Tracker.start

    def recorded(self: Tracker, frame, objects, labels=()) -> FrameResult:
        held.append([id(image) for image, _ in labels])
        return started(self, frame, objects, labels)

    monkeypatch.setattr(Tracker, "start", recorded)
    run(tracker, images, given, tmp_path)
    assert len(held) >= 2 and all(len(one) == len(set(one)) == 2 for one in held)


def test_points_keep_their_order_where_one_has_more_labels(
    tracker: Tracker, moving_square: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """Formats number points: a label more must not make the first point the last."""
    images, _ = moving_square
    three = KeypointsObject(1, np.array([[30, 24], [40, 30], [50, 40]], np.float32), ("a", "b", "c"))
    one = KeypointsObject(1, np.array([[60, 50]], np.float32), ("a",))
    few, _ = run(tracker, images, {0: [three]}, tmp_path, now="few")
    more, _ = run(tracker, images, {0: [three], 5: [one]}, tmp_path, now="more")
    for index, (before, after) in enumerate(zip(few, more, strict=True)):
        (was,), (now,) = before.objects, after.objects
        assert was.point_names == now.point_names == ("a", "b", "c")
        assert was.points is not None and now.points is not None
        assert np.abs(was.points[1:] - now.points[1:]).max() < 5
        if index == 5:
            assert now.points[0] == pytest.approx([60, 50])


def test_a_damaged_pass_is_one_sentence(
    tracker: Tracker, moving_square: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, masks = moving_square
    given = {0: [MaskObject(1, masks[0])]}
    run(tracker, images, given, tmp_path, now="first")
    (path,) = (tmp_path / "first" / FOLDER).iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(CorrflowError, match="damaged file"):
        run(tracker, images, given, tmp_path, "first", "second")


def test_a_video_without_any_usable_label_is_refused(
    tracker: Tracker, moving_square: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, masks = moving_square
    with pytest.raises(InputError, match=r"8 frames of clip, got labels for frame 8"):
        run(tracker, images, {8: [MaskObject(1, masks[0])]}, tmp_path)


def test_an_object_is_a_mask_or_points_and_not_both_in_turn() -> None:
    mask, points = MaskObject(1, np.ones((4, 4), bool)), KeypointsObject(1, np.zeros((1, 2), np.float32), ("a",))
    with pytest.raises(InputError, match="as a mask or as points"):
        targets_of({0: [CompressedAnnotation.of(mask)], 1: [CompressedAnnotation.of(points)]})


def test_objects_are_the_same_on_all_frames_by_id_or_name(tmp_path: Path) -> None:
    (tmp_path / "clip.csv").write_text(
        "frame,object,name,x,y\n0,cat,nose,1,2\n0,dog,nose,3,4\n5,dog,nose,5,6\n5,cat,nose,7,8\n9,2,tail,1,1\n"
    )
    found = find_annotations(LabelSource(tmp_path, "clip", Path("clip.mp4")), lambda: (64, 96)).objects
    ids = {frame: {one.prompt.name: one.prompt.id for one in objects} for frame, objects in found.items()}
    assert ids[0] == {"cat": 3, "dog": 4} == ids[5] and ids[9] == {"": 2}


def save_mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.pad(np.full((8, 8), 255, np.uint8), 4))


@pytest.mark.parametrize("numbered", [True, False], ids=["with ids", "without"])
def test_a_mask_in_a_folder_of_an_objects_name_is_that_object(tmp_path: Path, numbered: bool) -> None:
    """So that the file which a report names is taken for the object that it was named for."""
    shapes = [
        {"label": name, "points": [[x, 1], [x + 4, 1], [x + 4, 9]], "group_id": 3 + x if numbered else None}
        for name, x in (("dog", 1), ("cat", 9))
    ]
    content = {"shapes": shapes, "imageHeight": 16, "imageWidth": 16}
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "00002.json").write_text(json.dumps(content))
    for frame in (0, 5):  # before and after
        save_mask(tmp_path / "clip" / "cat" / f"{frame:05d}.png")
    found = find_annotations(LabelSource(tmp_path, "clip", Path("clip.mp4")), lambda: (16, 16)).objects
    by_name = {packed.prompt.name: packed.prompt.id for packed in found[2]}
    assert [[packed.prompt.id for packed in found[frame]] for frame in (0, 5)] == [[by_name["cat"]]] * 2
    assert len(set(by_name.values())) == 2 and (not numbered or by_name == {"dog": 4, "cat": 12})


@settings(max_examples=60, deadline=None)
@for_all(mask=arrays.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_packed_masks_come_back_as_they_were(mask: np.ndarray) -> None:
    back = CompressedAnnotation.of(MaskObject(5, mask, "name")).unpacked()
    assert isinstance(back, MaskObject) and np.array_equal(back.mask, mask) and (back.id, back.name) == (5, "name")


@settings(max_examples=60, deadline=None)
@for_all(
    pair=arrays.arrays(np.float32, st.tuples(st.just(2), st.just(1), st.integers(1, 5), st.integers(1, 5)),
                       elements=st.floats(0, 1, width=32)),
    share=st.floats(0.001, 0.999),
)  # fmt: skip
def test_a_blend_of_masks_lies_between_its_parts_and_reads_the_same_backward(pair: np.ndarray, share: float) -> None:
    mixed = blend_masks(pair[0], pair[1], share)
    assert (mixed <= pair.max(0) + 1e-6).all() and (mixed >= pair.min(0) - 1e-6).all()
    assert blend_masks(pair[1], pair[0], 1 - share) == pytest.approx(mixed, abs=1e-5)


def test_points_that_both_passes_agree_on_are_averaged_and_of_others_the_likelier_counts() -> None:
    earlier = np.array([[10, 10, 0.9], [10, 10, 0.9], [10, 10, 0.2], [10, 10, 0]], np.float32)
    later = np.array([[12, 10, 0.9], [90, 10, 0.3], [90, 10, 0.8], [90, 10, 0]], np.float32)
    mixed = blend_points(earlier, later, 0.5, near=5)
    assert mixed[:, :2].tolist() == [[11, 10], [10, 10], [90, 10], [10, 10]]
    assert mixed[:, 2] == pytest.approx([0.99, 0.9 * 0.75, 0.8 * 0.8, 0])
    for share in (0.1, 0.25):
        assert blend_points(later, earlier, 1 - share, 5)[:3] == pytest.approx(
            blend_points(earlier, later, share, 5)[:3]
        )


def test_points_are_compared_with_their_labels_after_the_frame_as_well(
    tracker: Tracker, moving_square: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """A label more recomputes the passes of its points, for all of their labels count in each."""
    images, _ = moving_square
    first = {0: [KeypointsObject(9, np.array([[30, 24]], np.float32), ("corner",))]}
    more = first | {6: [KeypointsObject(9, np.array([[42, 30]], np.float32), ("corner",))]}
    _, encoded = run(tracker, images, first, tmp_path, now="first")
    assert encoded == 8
    _, encoded = run(tracker, images, more, tmp_path, "first", "more")
    assert encoded == (2 + 5) + (2 + 5) + (2 + 1)  # from 6 to 1, from 0 to 5, from 6 to 7: each with both labels
    assert run(tracker, images, more, tmp_path, "more", "again")[1] == 0
