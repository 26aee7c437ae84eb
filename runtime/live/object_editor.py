"""Objects added, corrected and removed while the stream runs. The tracking thread alone calls this module.

A drawing is finished seconds after its frame was frozen. Frames that pass meanwhile are stored, thinned to a fixed
number. A second tracker follows the new object through the stored frames, a few for each frame of the stream, until it
has caught up. Then its memory is merged into the main tracker; other objects are not affected.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.live.prompt import resized
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import FrameResult, MaskObject, TrackedObject

MAX_FROZEN, MAX_STORED = 4, 32
"""Frozen frames, and later frames stored for all of them: a bound on memory."""
FROZEN_SECONDS = 300.0
ABANDONED_SECONDS = 10.0
"""Seconds without a sign of its page, after which a frozen frame makes room for another."""
_CATCH_UP_FRAMES = 2  # stored frames tracked for each frame of the stream


@dataclass
class Frozen:
    """Frame that is being drawn on, with its result and later frames of the stream."""

    number: int
    result: FrameResult
    since: list[np.ndarray] = field(default_factory=list)
    step: int = 1
    passed: int = 0
    begin: float = field(default_factory=time.monotonic)
    seen: float = field(default_factory=time.monotonic)  # last sign of the page that draws on it

    def store(self, image: np.ndarray, limit: int) -> None:
        """Store every `step`-th frame, and double the step beyond `limit` frames."""
        self.passed += 1
        if self.passed % self.step == 0:
            self.since.append(image)
        while len(self.since) > limit:
            self.since, self.step = self.since[1::2], 2 * self.step


@dataclass
class _CatchUp:
    """New object with the tracker that follows it to the present."""

    prompt: TrackedObject
    frame: np.ndarray
    tracker: Tracker
    waiting: deque[np.ndarray]


class ObjectEditor:
    """Editor of a running tracker's objects, and the prompts that they started from."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._prompts: dict[int, tuple[np.ndarray, TrackedObject]] = {}
        self._frozen: dict[int, Frozen] = {}
        self._joining: list[_CatchUp] = []
        self._count = 0

    @property
    def joining(self) -> tuple[TrackedObject, ...]:
        """Objects that still catch up with the stream."""
        return tuple(one.prompt for one in self._joining)

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the tracked objects, ascending."""
        return tuple(sorted(self._prompts))

    def began(self, frame: np.ndarray, objects: Sequence[TrackedObject]) -> None:
        """Record the objects that the tracker was started with."""
        self._prompts = {one.id: (frame, one) for one in objects}

    def freeze(self, result: FrameResult) -> Frozen:
        """Freeze the newest frame, and store later frames from now on.

        An abandoned frame is dropped if needed. Raises CorrflowError if all are being drawn on.
        """
        if len(self._frozen) >= MAX_FROZEN:
            oldest = min(self._frozen.values(), key=lambda one: one.seen)
            if time.monotonic() - oldest.seen < ABANDONED_SECONDS:
                raise CorrflowError(
                    f"{MAX_FROZEN} others are drawing on a frozen frame; try again when one of them is done"
                )
            del self._frozen[oldest.number]
        self._count += 1
        self._frozen[self._count] = Frozen(self._count, result)
        return self._frozen[self._count]

    def frozen(self, number: int) -> Frozen:
        """Return a frozen frame. Raises InputError for a number that is gone."""
        if number not in self._frozen:
            raise InputError(f"expected a frozen frame, got number {number}, which is gone; freeze the stream again")
        self.keep(number)
        return self._frozen[number]

    def keep(self, number: int) -> None:
        """Note that a frozen frame is still being drawn on. Any thread may call this."""
        if (frozen := self._frozen.get(number)) is not None:
            frozen.seen = time.monotonic()

    def release(self, number: int) -> None:
        """Forget a frozen frame, if there is one of that number."""
        self._frozen.pop(number, None)

    def free_id(self) -> int:
        """Return the lowest free id. Raises InputError if all 255 are taken."""
        taken = {*self._prompts, *(one.prompt.id for one in self._joining)}
        for number in range(1, 256):
            if number not in taken:
                return number
        raise InputError("expected at most 255 objects, got one more; remove one first")

    def submit(self, number: int, prompt: TrackedObject) -> None:
        """Add an object drawn on a frozen frame, or correct the object with its id; release the frame.

        Raises InputError for an object that cannot be tracked.
        """
        frozen = self.frozen(number)
        image = frozen.result.frame.image
        tracker = Tracker(self._tracker.backend, self._tracker.settings, self._tracker.occlusion)
        tracker.start(image, [prompt])
        self.release(number)
        self._joining = [one for one in self._joining if one.prompt.id != prompt.id]
        self._joining.append(_CatchUp(prompt, image, tracker, deque(frozen.since)))

    def remove(self, object_id: int) -> None:
        """Remove an object. Raises InputError for an unknown id."""
        remaining = [one for one in self._joining if one.prompt.id != object_id]
        if len(remaining) == len(self._joining) and object_id not in self._prompts:
            raise InputError(f"expected an object among {sorted(self._prompts)} to remove, got {object_id}")
        self._joining = remaining
        if self._prompts.pop(object_id, None) is not None:
            self._tracker.remove(object_id)

    def rename(self, object_id: int, name: str) -> None:
        """Rename an object. Raises InputError for an unknown id."""
        for one in self._joining:
            if one.prompt.id == object_id:
                one.prompt = replace(one.prompt, name=name)
                one.tracker.rename(object_id, name)
                return
        if object_id not in self._prompts:
            raise InputError(f"expected an object among {sorted(self._prompts)} to rename, got {object_id}")
        self._tracker.rename(object_id, name)
        frame, prompt = self._prompts[object_id]
        self._prompts[object_id] = frame, replace(prompt, name=name)

    def passed(self, image: np.ndarray) -> None:
        """Store a frame that the main tracker has processed where needed, and let new objects catch up."""
        now = time.monotonic()
        self._frozen = {key: one for key, one in self._frozen.items() if now - one.begin < FROZEN_SECONDS}
        for frozen in self._frozen.values():
            frozen.store(image, MAX_STORED // max(2, len(self._frozen)))
        for one in list(self._joining):
            # The newest frame is never thinned out: both trackers have to stand on it when they merge.
            one.waiting.append(image)
            for _ in range(_CATCH_UP_FRAMES):
                if one.waiting:
                    one.tracker.step(one.waiting.popleft())
            if not one.waiting:
                self._merge(one)

    def _merge(self, one: _CatchUp) -> None:
        self._joining.remove(one)
        if one.prompt.id in self._prompts:
            self._tracker.remove(one.prompt.id)
        self._tracker.merge(one.tracker)
        self._prompts[one.prompt.id] = one.frame, one.prompt

    def change_size(self, last_result: FrameResult, size: tuple[int, int]) -> None:
        """Restart the tracker at another (height, width), with the same ids.

        Visible objects start from the last frame of the former size, hidden objects from their prompted frame.
        """
        visible: list[TrackedObject] = []
        for one in last_result.objects:
            if one.id in self._prompts and one.visible:
                prompt = self._prompts[one.id][1]
                if not isinstance(prompt, MaskObject):
                    visible.append(prompt if one.points is None else replace(prompt, points=one.points))
                elif (mask := last_result.mask == one.id).any():
                    visible.append(replace(prompt, mask=mask))
        ids = {one.id for one in visible}
        hidden = [(frame, prompt) for frame, prompt in self._prompts.values() if prompt.id not in ids]
        last, visible = resized(last_result.frame.image, visible, size)
        self._tracker.start(last, visible)
        for frame, prompt in hidden:
            other = Tracker(self._tracker.backend, self._tracker.settings, self._tracker.occlusion)
            other.start(*resized(frame, [prompt], size))
            other.step(last)
            self._tracker.merge(other)
        self._frozen.clear()
        for one in self._joining:
            one.tracker.start(*resized(one.frame, [one.prompt], size))
            one.waiting.clear()
