"""Hidden objects are taken for lost, not smeared, and found again; no object has a part in another's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from corrflow.errors import InputError
from corrflow.evaluate.datasets.masks import MaskSequence, open_davis
from corrflow.evaluate.full_occlusion import Occlusion, occluded_frames, run_presence
from corrflow.evaluate.partial_occlusion import Post, frames_past_a_post, run_posts
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.backends.base import Backend
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.occlusion import ObjectState, OcclusionMonitor, OcclusionSettings, occlusion_settings_for
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject

HIDDEN = range(4, 8)  # frames of the fixture `hidden`

if cpu.unavailable():
    pytest.skip(cpu.unavailable(), allow_module_level=True)


@pytest.fixture(scope="module")
def backend(small_artifact: Path) -> Iterator[Backend]:
    opened = open_backend("onnxruntime", load_artifact(small_artifact), threads=1)
    yield opened
    opened.close()


def other() -> MaskObject:
    mask = np.zeros((66, 98), bool)
    mask[44:62, 66:92] = True
    return MaskObject(2, mask, "other")


def run(backend: Backend, frames: np.ndarray, objects: list, presence: OcclusionSettings | None) -> list[FrameResult]:
    tracker = Tracker(backend, presence=presence)
    return [tracker.start(frames[0], objects), *(tracker.step(frame) for frame in frames[1:])]


def test_a_hidden_object_is_lost_and_found_again(backend: Backend, hidden) -> None:
    frames, masks = hidden
    results = run(backend, frames, [MaskObject(1, masks[0])], OcclusionSettings())
    for t, (tracks, true) in enumerate(zip(results, masks, strict=True)):
        track, found = tracks.objects[0], tracks.mask == 1
        if t in HIDDEN:
            assert (track.visible, track.confidence, track.box) == (False, 0.0, None) and not found.any()
        elif t < HIDDEN.start or t > HIDDEN.stop + 1:
            assert track.visible and track.confidence > 0.3
            assert (found & true).sum() / (found | true).sum() > 0.6, f"frame {t}"


def test_an_object_that_has_changed_is_found_by_the_frames_it_was_last_seen_on(backend: Backend) -> None:
    generator = np.random.default_rng(0)
    background = generator.integers(60, 120, (66, 98, 3), np.uint8)
    texture = generator.integers(0, 60, (20, 20, 1), np.uint8)
    frames, masks = [], []
    for t in range(24):  # from red towards green, behind the plank from 14 to 18
        frame, mask = background.copy(), np.zeros((66, 98), bool)
        turned = 0.4 * min(t / 12, 1)
        colour = (1 - turned) * np.array([30, 30, 180]) + turned * np.array([30, 180, 30]) + texture
        left = 16 + 2 * t
        frame[20:40, left : left + 20], mask[20:40, left : left + 20] = colour.clip(0, 255), True
        if 14 <= t < 19:
            frame[17:43, left - 3 : left + 23] = (200, 90, 20)
        frames.append(frame)
        masks.append(mask)
    results = run(backend, np.stack(frames), [MaskObject(1, masks[0])], OcclusionSettings())
    assert not any(tracks.objects[0].visible for tracks in results[14:19])
    found = [tracks.mask == 1 for tracks in results[19:]]
    overlaps = [(own & true).sum() / (own | true).sum() for own, true in zip(found, masks[19:], strict=True)]
    assert np.mean(overlaps) > 0.6  # 0.65; 0.56 where the frame it was given on is all that is searched


def monitor_of(labels: np.ndarray, features: np.ndarray, backend) -> tuple[OcclusionMonitor, ObjectState]:
    """A monitor of one object that is given by labels [1, h, w] on features [C, h, w]."""
    presence = ObjectState()
    monitor = OcclusionMonitor(backend, TRACKING, OcclusionSettings(), features, labels, [(0, presence)])
    return monitor, presence


TRACKING = TrackingSettings(short_side=0, recent_offsets=(1,), radius=(2,), top_k=1, temperature=0.1)


class Sought:
    """A back end that finds nothing: what is watched is what it is given."""

    supports_runtime_search_params = True

    def __init__(self, found: np.ndarray) -> None:
        self.found = found

    def new_memory(self, settings, labels, cells):
        return self

    def add_frame(self, features, labels) -> None: ...

    def searched_with(self, attributes):
        return self

    def propagate(self, query, memory) -> np.ndarray:
        return self.found


def two_kinds(mask: np.ndarray) -> np.ndarray:
    """Features [2, h, w] that tell the cells of a mask [h, w] from the others."""
    return np.stack([mask, ~mask]).astype(np.float32)


def block(top: int, left: int, height: int, width: int, high: float = 1.0) -> np.ndarray:
    """A label [1, 30, 40] that is high on a block of cells."""
    label = np.zeros((1, 30, 40), np.float32)
    label[0, top : top + height, left : left + width] = high
    return label


@pytest.mark.parametrize(
    ("piece", "kept"),
    [
        (block(10, 25, 3, 3), False),
        (block(10, 16, 3, 3), True),  # 6 cells of room, 3 on either side
        (block(10, 17, 3, 3), False),
        (block(0, 20, 30, 20), False),  # larger than the object, but where nothing of it was
        (block(10, 25, 3, 3, 0.45), True),  # nobody sees it
    ],
)
def test_pieces_that_lie_apart_are_strays(piece: np.ndarray, kept: bool) -> None:
    whole = block(8, 0, 6, 10)
    features = two_kinds(whole[0] > 0.5)
    monitor, presence = monitor_of(whole, features, Sought(whole))
    monitor.judge(features, whole, [(0, presence)])
    if kept:  # a stray looks like the background; what is kept by its size or place may look like the object
        features = two_kinds((whole[0] > 0.5) | (piece[0] > 0.4))
    judged = monitor.judge(features, np.maximum(whole, piece), [(0, presence)])
    np.testing.assert_array_equal(judged, np.maximum(whole, piece) if kept else whole)
    assert not presence.lost


def test_a_large_piece_is_kept_where_the_object_was() -> None:
    """What stands before its middle leaves two halves, farther from each other than strays may be."""
    whole = block(8, 0, 6, 30)
    halves = np.maximum(block(8, 0, 6, 12), block(8, 24, 6, 6))
    features = two_kinds(whole[0] > 0.5)
    monitor, presence = monitor_of(whole, features, Sought(whole))
    monitor.judge(features, whole, [(0, presence)])
    judged = monitor.judge(features, halves, [(0, presence)])
    np.testing.assert_array_equal(judged, halves)


def test_a_lost_object_may_come_back_where_it_was_not() -> None:
    whole, back, rest = block(8, 0, 6, 10), block(8, 24, 6, 10), block(8, 8, 2, 2)
    monitor, presence = monitor_of(whole, two_kinds(whole[0] > 0.5), sought := Sought(np.zeros_like(whole)))
    monitor.judge(two_kinds(whole[0] > 0.5), whole, [(0, presence)])
    monitor.judge(two_kinds(np.zeros((30, 40), bool)), np.zeros_like(whole), [(0, presence)])
    assert presence.lost
    sought.found = np.maximum(back, rest)
    judged = monitor.judge(two_kinds(back[0] > 0.5), np.zeros_like(whole), [(0, presence)])
    np.testing.assert_array_equal(judged, back)
    assert not presence.lost


@pytest.mark.parametrize(
    ("left", "degrees", "own", "kept"),
    [
        (19, 0, True, True),  # 8 cells from an object of 12 by 12
        (24, 0, True, False),  # too far to belong to it
        (19, 20, True, True),  # 0.94 of what the rest is like
        (19, 30, True, False),  # 0.87
        (19, 20, False, False),  # like the object, but more like what lay around it
    ],
)
def test_what_comes_out_behind_a_post_is_no_stray(left: int, degrees: float, own: bool, kept: bool) -> None:
    whole, out = block(8, 0, 12, 12), block(8, left, 12, 3)
    around = 90 if own else 25
    angle = np.where(whole[0] > 0.5, 0, around)
    monitor, presence = monitor_of(whole, turned(angle), Sought(whole))
    monitor.judge(turned(angle), whole, [(0, presence)])
    both = np.maximum(whole, out)
    judged = monitor.judge(turned(np.where(out[0] > 0.5, degrees, angle)), both, [(0, presence)])
    np.testing.assert_array_equal(judged, both if kept else whole)
    assert not presence.lost


def test_an_object_smaller_than_a_cell_is_watched() -> None:
    small, larger = block(8, 8, 1, 1, 0.4), block(8, 8, 2, 2)
    monitor, presence = monitor_of(small, two_kinds(small[0] > 0.3), Sought(larger))
    monitor.judge(two_kinds(larger[0] > 0.5), larger, [(0, presence)])
    assert not presence.lost and presence.usual > 0.9


def test_the_faint_rim_of_a_stray_goes_with_it_and_the_rest_stays() -> None:
    whole, rim, stray = block(8, 0, 6, 10), block(19, 29, 5, 5, 0.4), block(20, 30, 3, 3)
    features = two_kinds(whole[0] > 0.5)
    monitor, presence = monitor_of(whole, features, Sought(whole))
    monitor.judge(features, whole, [(0, presence)])
    judged = monitor.judge(features, np.maximum(np.maximum(whole, rim), stray), [(0, presence)])
    assert judged[0, 19:23, 29:33].max() == 0  # one cell around
    np.testing.assert_array_equal(judged[0, :18], whole[0, :18])


def test_an_object_given_in_pieces_keeps_them() -> None:
    both = np.maximum(block(8, 0, 6, 10), block(10, 25, 3, 3))
    features = two_kinds(both[0] > 0.5)
    monitor, presence = monitor_of(both, features, Sought(np.zeros_like(both)))
    np.testing.assert_array_equal(monitor.judge(features, both, [(0, presence)]), both)


@pytest.mark.parametrize("found", [True, False])
def test_a_mask_on_something_else_is_what_a_search_finds_or_lost(found: bool) -> None:
    whole, elsewhere, back = block(8, 0, 6, 10), block(8, 20, 6, 10), block(20, 0, 6, 10)
    monitor, presence = monitor_of(whole, two_kinds(whole[0] > 0.5), Sought(back if found else elsewhere))
    assert np.array_equal(monitor.judge(two_kinds(whole[0] > 0.5), whole, [(0, presence)]), whole)
    judged = monitor.judge(two_kinds(back[0] > 0.5), elsewhere, [(0, presence)])
    assert presence.lost is not found
    np.testing.assert_array_equal(judged, back if found else np.zeros_like(whole))


def test_what_looks_more_like_the_surroundings_is_not_the_object() -> None:
    """23 degrees from the object, whose best product is still 0.92 of the usual, but 22 from what lay around it."""
    whole, elsewhere = block(8, 0, 6, 10), block(8, 20, 6, 10)
    angle = np.where(whole[0] > 0.5, 0, 45)
    monitor, presence = monitor_of(whole, turned(angle), Sought(elsewhere))
    monitor.judge(turned(angle), whole, [(0, presence)])
    monitor.judge(turned(np.where(elsewhere[0] > 0.5, 23, 90)), elsewhere, [(0, presence)])
    assert presence.lost


def turned(degrees: np.ndarray) -> np.ndarray:
    """Features [2, h, w] of unit length at these angles [h, w]."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]).astype(np.float32)


def test_what_is_half_hidden_stays_as_large_as_it_was_and_is_not_searched_with() -> None:
    whole = block(8, 0, 6, 10)
    features = two_kinds(whole[0] > 0.5)
    monitor, presence = monitor_of(whole, features, Sought(whole))
    for width in (10, 8, 4, 2, 1):
        left = block(8, 0, 6, width)
        monitor.judge(two_kinds(left[0] > 0.5), left, [(0, presence)])
        assert not presence.lost
    assert presence.area > 50 and len(presence.seen) == 2
    monitor.judge(features, np.zeros_like(whole), [(0, presence)])
    assert not presence.lost and presence.search is not None  # all of it is back, and found at once


@pytest.mark.parametrize(("cells", "lost"), [(6, False), (3, True)])
def test_the_last_of_it_at_the_pictures_border_is_still_in_sight(cells: int, lost: bool) -> None:
    """Of 400 cells: a hundredth that looks like the object is the object, and less is not held to be anything."""
    whole, rest = block(5, 0, 20, 20), block(5, 0, cells, 1)
    monitor, presence = monitor_of(whole, two_kinds(whole[0] > 0.5), Sought(rest))
    monitor.judge(two_kinds(whole[0] > 0.5), whole, [(0, presence)])
    judged = monitor.judge(two_kinds(rest[0] > 0.5), rest, [(0, presence)])
    assert presence.lost is lost
    np.testing.assert_array_equal(judged, np.zeros_like(rest) if lost else rest)


def test_what_is_never_hidden_is_never_lost(backend: Backend, moving_square) -> None:
    frames, masks = moving_square
    watched = run(backend, frames, [MaskObject(1, masks[0])], OcclusionSettings())
    plain = run(backend, frames, [MaskObject(1, masks[0])], None)
    for one, two in zip(watched, plain, strict=True):
        assert one.objects[0].visible and np.array_equal(one.mask, two.mask)


@pytest.mark.parametrize("together", [True, False], ids=["given together", "added later"])
def test_losing_and_removing_one_object_changes_no_bit_of_another(backend: Backend, hidden, together: bool) -> None:
    frames, masks = hidden
    alone = run(backend, frames, [other()], OcclusionSettings())
    tracker = Tracker(backend, presence=OcclusionSettings())
    square = MaskObject(1, masks[0])
    tracker.start(frames[0], [square, other()] if together else [other()])
    lost = 0
    for t, expected in enumerate(alone[1:], 1):
        tracks = tracker.step(frames[t])
        if t == 2 and not together:
            tracker.add([MaskObject(1, masks[t])])
        if t == len(frames) - 3:
            tracker.remove(1)
        lost += any(track.id == 1 and not track.visible for track in tracks.objects)
        got = next(track for track in tracks.objects if track.id == 2)
        assert got == expected.objects[0]
        assert np.array_equal((tracks.mask == 2) | (tracks.mask == 1), (expected.mask == 2) | (tracks.mask == 1))
    assert lost >= len(HIDDEN)


def test_an_adopted_object_is_tracked_as_if_it_had_been_added(backend: Backend, hidden) -> None:
    frames, masks = hidden
    settings = OcclusionSettings()
    main, newcomer, whole = (Tracker(backend, presence=settings) for _ in range(3))
    main.start(frames[0], [other()])
    whole.start(frames[0], [other()])
    newcomer.start(frames[1], [MaskObject(1, masks[1], "square")])
    main.step(frames[1])
    whole.step(frames[1])
    whole.add([MaskObject(1, masks[1], "square")])
    newcomer.step(frames[2])
    main.step(frames[2])
    whole.step(frames[2])
    main.merge(newcomer)
    assert main.object_ids == (1, 2) and newcomer.object_ids == ()
    main.rename(1, "red")
    for frame in frames[3:]:
        got, expected = main.step(frame), whole.step(frame)
        assert np.array_equal(got.mask, expected.mask)
        assert got.objects[0] == replace(expected.objects[0], name="red") and got.objects[1] == expected.objects[1]


def test_what_cannot_be_adopted_or_renamed_is_refused(backend: Backend, moving_square) -> None:
    frames, masks = moving_square
    one, two, plain = (
        Tracker(backend, presence=OcclusionSettings()),
        Tracker(backend, presence=OcclusionSettings()),
        None,
    )
    plain = Tracker(backend)
    for tracker in (one, two, plain):
        tracker.start(frames[0], [MaskObject(1, masks[0])])
    with pytest.raises(InputError, match="twice"):
        one.merge(two)
    with pytest.raises(InputError, match="same frames"):
        one.merge(plain)
    with pytest.raises(InputError, match="to rename"):
        one.rename(5, "five")
    assert one.object_ids == two.object_ids == (1,)


def test_points_are_tracked_beside_watched_masks(backend: Backend, hidden) -> None:
    frames, masks = hidden
    points = KeypointsObject(7, np.array([[70, 50]], np.float32), ("a",))
    together = run(backend, frames, [MaskObject(1, masks[0]), points], OcclusionSettings())
    alone = run(backend, frames, [points], OcclusionSettings())
    for one, two in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.objects[1].points, two.objects[0].points)


def test_a_back_end_with_built_in_windows_is_watched_by_those(small_artifact: Path, hidden) -> None:
    artifact = load_artifact(small_artifact)
    backend = open_backend("onnx-function", artifact, threads=1)
    try:
        presence = occlusion_settings_for(backend, artifact.settings)
        results = run(backend, hidden[0], [MaskObject(1, hidden[1][0])], presence)
        assert [tracks.objects[0].visible for tracks in results[: HIDDEN.stop]] == [True] * 4 + [False] * 4
        assert results[-1].objects[0].visible
        overlap = [(one.mask == 1)[true].mean() for one, true in zip(results[-3:], hidden[1][-3:], strict=True)]
        assert min(overlap) > 0.6
    finally:
        backend.close()


def test_what_cannot_be_searched_is_not_watched(small_artifact: Path, moving_square) -> None:
    artifact = load_artifact(small_artifact)
    fewer, other_anchors = (
        replace(artifact.settings, recent_offsets=(1, 2)),
        replace(artifact.settings, permanent_frames=(0, 5)),
    )
    fused, built_in = (open_backend(name, artifact, threads=1) for name in ("onnxruntime", "onnx-function"))
    try:
        assert occlusion_settings_for(fused, fewer) is not None
        assert (
            occlusion_settings_for(built_in, fewer) is None
        )  # engines may be built for no more than its three references
        assert occlusion_settings_for(fused, other_anchors) is occlusion_settings_for(built_in, other_anchors) is None
        tracker = Tracker(built_in, fewer, OcclusionSettings())
        with pytest.raises(InputError, match="leave the watching out"):
            tracker.start(moving_square[0][0], [MaskObject(1, moving_square[1][0])])
    finally:
        fused.close()
        built_in.close()


def test_the_plank_covers_the_object_and_nothing_before_or_after(small_davis: Path) -> None:
    sequence = open_davis(small_davis, "val")[1]
    plank = np.full((10, 10, 3), 255, np.uint8)
    for index, (image, true) in enumerate(occluded_frames(sequence, plank, Occlusion(2, 2, 2))):
        assert true.any()
        covered = (image == 255).all(2)
        assert covered[true].all() if index in (2, 3) else not covered.any()


def test_sequences_too_short_for_the_plank_are_refused(small_davis: Path, small_artifact: Path) -> None:
    with pytest.raises(InputError, match="hide the object earlier"):
        run_presence(open_davis(small_davis, "val"), str(small_artifact), None, Occlusion(), True, 1)
    with pytest.raises(InputError, match="at least one frame"):
        run_presence(open_davis(small_davis, "val"), str(small_artifact), None, Occlusion(0), True, 1)


@pytest.fixture
def standing(tmp_path: Path, add_sequence) -> MaskSequence:
    """Twelve frames of an object of 30x30 pixels amid 60x80, red on grey."""
    mask = np.zeros((60, 80), np.uint8)
    mask[15:45, 25:55] = 255
    add_sequence(tmp_path / "standing", "standing", [mask] * 12)
    sequence = open_davis(tmp_path / "standing", "val")[0]
    for path in sequence.image_paths:
        cv2.imwrite(str(path), np.where(mask[..., None] > 0, np.array([30, 30, 200], np.uint8), np.uint8(110)))
    return sequence


def test_the_post_crosses_the_object_and_hides_a_part_at_a_time(standing: MaskSequence) -> None:
    texture = np.full((10, 10, 3), 255, np.uint8)
    shown, places = [], []
    for index, (image, true) in enumerate(frames_past_a_post(standing, texture, Post(frames=12))):
        whole = standing.annotation(index) > 0
        strip = (image == 255).all(2).all(0)
        np.testing.assert_array_equal(true, whole & ~strip)
        assert strip.any() == (index >= 4)
        shown.append(true.sum() / whole.sum())
        places += [np.flatnonzero(strip).mean()] if strip.any() else []
    assert shown[:5] == [1] * 5 and shown[-1] > min(shown[5:]) and 0.4 < min(shown) < 0.6
    assert places == sorted(places)


def test_posts_that_hide_everything_or_nothing_are_refused(small_davis: Path, small_artifact: Path) -> None:
    sequences = open_davis(small_davis, "val")
    for post in (Post(width=2), Post(width=0), Post(frames=4)):
        with pytest.raises(InputError, match="expected a post"):
            run_posts(sequences, str(small_artifact), None, post, True, 1)


def test_the_post_is_measured(standing: MaskSequence, small_artifact: Path, capsys: pytest.CaptureFixture) -> None:
    (score,) = run_posts([standing], str(small_artifact), None, Post(frames=12), True, 1)
    assert 0.3 < score < 1
    assert f"mean J past a post: {100 * score:.1f}" in capsys.readouterr().out
