"""Hidden objects are taken for lost, not smeared, and found again; no object has a part in another's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corrflow.evaluate.datasets import open_davis
from corrflow.evaluate.presence import Occlusion, occluded_frames, run_presence
from corrflow.plugins.errors import InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifact import load_artifact
from corrflow.runtime.backend import Backend, open_backend
from corrflow.runtime.presence import PresenceSettings, presence_for
from corrflow.runtime.tracker import Tracker
from corrflow.runtime.tracks import KeypointsObject, MaskObject, Tracks

HIDDEN = range(4, 8)

if cpu.unavailable():
    pytest.skip(cpu.unavailable(), allow_module_level=True)


@pytest.fixture(scope="module")
def backend(small_artifact: Path) -> Iterator[Backend]:
    opened = open_backend("onnxruntime", load_artifact(small_artifact), threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def hidden(moving_square) -> tuple[np.ndarray, np.ndarray]:
    """The square of eight frames going there and back, with a blue plank over it on four, and its true masks."""
    frames, masks = (np.concatenate([part, part[-2:0:-1]]).copy() for part in moving_square)
    for t in HIDDEN:
        rows, columns = np.flatnonzero(masks[t].any(1)), np.flatnonzero(masks[t].any(0))
        frames[t, rows[0] - 3 : rows[-1] + 4, columns[0] - 3 : columns[-1] + 4] = (200, 90, 20)
    return frames, masks


def other() -> MaskObject:
    mask = np.zeros((66, 98), bool)
    mask[44:62, 66:92] = True
    return MaskObject(2, mask, "other")


def run(backend: Backend, frames: np.ndarray, objects: list, presence: PresenceSettings | None) -> list[Tracks]:
    tracker = Tracker(backend, presence=presence)
    return [tracker.start(frames[0], objects), *(tracker.step(frame) for frame in frames[1:])]


def test_a_hidden_object_is_lost_and_found_again(backend: Backend, hidden) -> None:
    frames, masks = hidden
    results = run(backend, frames, [MaskObject(1, masks[0])], PresenceSettings())
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
    results = run(backend, np.stack(frames), [MaskObject(1, masks[0])], PresenceSettings())
    assert not any(tracks.objects[0].visible for tracks in results[14:19])
    found = [tracks.mask == 1 for tracks in results[19:]]
    overlaps = [(own & true).sum() / (own | true).sum() for own, true in zip(found, masks[19:], strict=True)]
    assert np.mean(overlaps) > 0.6  # 0.65; 0.56 where the frame it was given on is all that is searched


def test_what_is_never_hidden_is_never_lost(backend: Backend, moving_square) -> None:
    frames, masks = moving_square
    watched = run(backend, frames, [MaskObject(1, masks[0])], PresenceSettings())
    plain = run(backend, frames, [MaskObject(1, masks[0])], None)
    for one, two in zip(watched, plain, strict=True):
        assert one.objects[0].visible and np.array_equal(one.mask, two.mask)


@pytest.mark.parametrize("together", [True, False], ids=["given together", "added later"])
def test_losing_and_removing_one_object_changes_no_bit_of_another(backend: Backend, hidden, together: bool) -> None:
    frames, masks = hidden
    alone = run(backend, frames, [other()], PresenceSettings())
    tracker = Tracker(backend, presence=PresenceSettings())
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
    settings = PresenceSettings()
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
    main.adopt(newcomer)
    assert main.object_ids == (1, 2) and newcomer.object_ids == ()
    main.rename(1, "red")
    for frame in frames[3:]:
        got, expected = main.step(frame), whole.step(frame)
        assert np.array_equal(got.mask, expected.mask)
        assert got.objects[0] == replace(expected.objects[0], name="red") and got.objects[1] == expected.objects[1]


def test_what_cannot_be_adopted_or_renamed_is_refused(backend: Backend, moving_square) -> None:
    frames, masks = moving_square
    one, two, plain = Tracker(backend, presence=PresenceSettings()), Tracker(backend, presence=PresenceSettings()), None
    plain = Tracker(backend)
    for tracker in (one, two, plain):
        tracker.start(frames[0], [MaskObject(1, masks[0])])
    with pytest.raises(InputError, match="twice"):
        one.adopt(two)
    with pytest.raises(InputError, match="same frames"):
        one.adopt(plain)
    with pytest.raises(InputError, match="to rename"):
        one.rename(5, "five")
    assert one.object_ids == two.object_ids == (1,)


def test_points_are_tracked_beside_watched_masks(backend: Backend, hidden) -> None:
    frames, masks = hidden
    points = KeypointsObject(7, np.array([[70, 50]], np.float32), ("a",))
    together = run(backend, frames, [MaskObject(1, masks[0]), points], PresenceSettings())
    alone = run(backend, frames, [points], PresenceSettings())
    for one, two in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.objects[1].points, two.objects[0].points)


def test_a_back_end_without_other_windows_is_not_watched(small_artifact: Path, moving_square) -> None:
    backend = open_backend("onnx-function", load_artifact(small_artifact), threads=1)
    try:
        assert presence_for(backend, backend.artifact.settings) is None
        tracker = Tracker(backend, presence=PresenceSettings())
        with pytest.raises(InputError, match="leave the watching out"):
            tracker.start(moving_square[0][0], [MaskObject(1, moving_square[1][0])])
    finally:
        backend.close()


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
