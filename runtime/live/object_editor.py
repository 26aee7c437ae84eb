"""Objects given, corrected and removed while the stream runs; everything here is called by the tracking thread.

A user draws on a frozen frame, which is seconds old when the drawing is done. So the frames that pass meanwhile are
kept, thinned to a fixed number, and a tracker of its own follows the object through them, a few for each frame of the
stream. Once it has caught up, its memory joins that of the main tracker, whose other objects never notice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.live.reference import resized
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject, TrackedObject, Tracks

MOST_FROZEN, MOST_KEPT = 2, 16
"""Frozen frames, and later frames kept for each: what memory this may take."""
FROZEN_SECONDS = 300.0
_CAUGHT_UP_AT_ONCE = 2  # kept frames tracked for each frame of the stream


@dataclass
class Frozen:
    """A frame that is being drawn on: image [H, W, 3] uint8, BGR, with its tracks, and the frames since."""

    number: int
    image: np.ndarray
    tracks: Tracks
    since: list[np.ndarray] = field(default_factory=list)
    step: int = 1
    passed: int = 0
    begin: float = field(default_factory=time.monotonic)

    def keep(self, image: np.ndarray) -> None:
        """Keep every `step`-th frame, and the step such that there are never more than MOST_KEPT."""
        self.passed += 1
        if self.passed % self.step == 0:
            self.since.append(image)
        if len(self.since) > MOST_KEPT:
            self.since, self.step = self.since[1::2], 2 * self.step


@dataclass
class _CatchUp:
    """An object on its way into the main tracker."""

    given: TrackedObject
    frame: np.ndarray
    tracker: Tracker
    waiting: deque[np.ndarray]


class ObjectEditor:
    """Keeps what each object was given as, and brings new ones into a tracker that is running."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._given: dict[int, tuple[np.ndarray, TrackedObject]] = {}
        self._frozen: dict[int, Frozen] = {}
        self._joining: list[_CatchUp] = []
        self._count = 0

    @property
    def joining(self) -> tuple[TrackedObject, ...]:
        """Objects that are not tracked yet."""
        return tuple(one.given for one in self._joining)

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the objects that are tracked, ascending."""
        return tuple(sorted(self._given))

    def began(self, frame: np.ndarray, objects: Sequence[TrackedObject]) -> None:
        """Note the objects that the tracker was started with."""
        self._given = {one.id: (frame, one) for one in objects}

    def freeze(self, image: np.ndarray, tracks: Tracks) -> Frozen:
        """Keep the newest frame, and from now on what comes after it; the oldest frozen one makes room."""
        self._count += 1
        while len(self._frozen) >= MOST_FROZEN:
            del self._frozen[min(self._frozen)]
        self._frozen[self._count] = Frozen(self._count, image, tracks)
        return self._frozen[self._count]

    def frozen(self, number: int) -> Frozen:
        """Raises InputError for one that is gone."""
        if number not in self._frozen:
            raise InputError(f"expected a frozen frame, got number {number}, which is gone; freeze the stream again")
        return self._frozen[number]

    def release(self, number: int) -> None:
        """Forget a frozen frame, if it is there."""
        self._frozen.pop(number, None)

    def free_id(self) -> int:
        """The lowest id that no object has; raises InputError where there is none."""
        taken = {*self._given, *(one.given.id for one in self._joining)}
        for number in range(1, 256):
            if number not in taken:
                return number
        raise InputError("expected at most 255 objects, got one more; remove one first")

    def give(self, number: int, given: TrackedObject) -> None:
        """Add an object, or correct the one with its id, as it is on a frozen frame; that frame is released."""
        frozen = self.frozen(number)
        tracker = Tracker(self._tracker.backend, self._tracker.settings, self._tracker.presence)
        tracker.start(frozen.image, [given])  # which says what is wrong with it
        self.release(number)
        self._joining = [one for one in self._joining if one.given.id != given.id]
        self._joining.append(_CatchUp(given, frozen.image, tracker, deque(frozen.since)))

    def remove(self, object_id: int) -> None:
        """Raises InputError for an object that there is not."""
        kept = [one for one in self._joining if one.given.id != object_id]
        if len(kept) == len(self._joining) and object_id not in self._given:
            raise InputError(f"expected an object among {sorted(self._given)} to remove, got {object_id}")
        self._joining = kept
        if self._given.pop(object_id, None) is not None:
            self._tracker.remove(object_id)

    def rename(self, object_id: int, name: str) -> None:
        """Raises InputError for an object that there is not."""
        for one in self._joining:
            if one.given.id == object_id:
                one.given = replace(one.given, name=name)
                one.tracker.rename(object_id, name)
                return
        if object_id not in self._given:
            raise InputError(f"expected an object among {sorted(self._given)} to rename, got {object_id}")
        self._tracker.rename(object_id, name)
        frame, given = self._given[object_id]
        self._given[object_id] = frame, replace(given, name=name)

    def passed(self, image: np.ndarray) -> None:
        """After each frame that the main tracker has seen: keep it where needed, and catch up with it."""
        now = time.monotonic()
        self._frozen = {key: one for key, one in self._frozen.items() if now - one.begin < FROZEN_SECONDS}
        for frozen in self._frozen.values():
            frozen.keep(image)
        for one in list(self._joining):
            # Where frames between are left out, the newest is not: it is the one that the main tracker stands on.
            one.waiting.append(image)
            for _ in range(_CAUGHT_UP_AT_ONCE):
                if one.waiting:
                    one.tracker.step(one.waiting.popleft())
            if not one.waiting:
                self._join(one)

    def _join(self, one: _CatchUp) -> None:
        self._joining.remove(one)
        if one.given.id in self._given:
            self._tracker.remove(one.given.id)
        self._tracker.merge(one.tracker)
        self._given[one.given.id] = one.frame, one.given

    def change_size(self, image: np.ndarray, tracks: Tracks, size: tuple[int, int]) -> None:
        """Begin anew at another (height, width), under the same ids, from the last frame at the former size.

        What was seen on it goes on from there, what was hidden from the frame it was given on.
        """
        seen: list[TrackedObject] = []
        for track in tracks.objects:
            if track.id in self._given and track.visible:
                given = self._given[track.id][1]
                if not isinstance(given, MaskObject):
                    seen.append(given if track.points is None else replace(given, points=track.points))
                elif (mask := tracks.mask == track.id).any():
                    seen.append(replace(given, mask=mask))
        ids = {one.id for one in seen}
        hidden = [(frame, given) for frame, given in self._given.values() if given.id not in ids]
        last, seen = resized(image, seen, size)
        self._tracker.start(last, seen)
        for frame, given in hidden:
            other = Tracker(self._tracker.backend, self._tracker.settings, self._tracker.presence)
            other.start(*resized(frame, [given], size))
            other.step(last)
            self._tracker.merge(other)
        self._frozen.clear()
        for one in self._joining:
            one.tracker.start(*resized(one.frame, [one.given], size))
            one.waiting.clear()
