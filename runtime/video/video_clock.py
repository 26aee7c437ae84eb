"""Times of a video's frames, from the time stamps of its file."""

from __future__ import annotations

import math

_RESTART_SECONDS = 1.0  # time stamps that go back by more start again; by less they are faulty


class VideoClock:
    """Clock whose times start at 0 and always rise; gaps that a file states are kept.

    start:    time stamp of the file's first frame in seconds
    restarts: frames at which the time stamps start again, as where one recording follows another
    """

    def __init__(self, step: float) -> None:
        """Start the clock; step: seconds between two frames where the file states none."""
        self.start = 0.0
        self.restarts: list[int] = []
        self._step = step
        self._time: float | None = None
        self._offset, self._other_offset = 0.0, math.inf
        self._count = 0

    def time(self, stamp: float | None) -> float:
        """Return the time of the next frame in seconds; stamp: stated time, or None."""
        if self._time is None:
            self.begin(stamp or 0.0)
        else:
            # Raw streams have no time stamps; broken muxers repeat them.
            following = self._time + self._step
            stated = following if stamp is None else stamp + self._offset
            if stamp is not None and abs(stated - following) > _RESTART_SECONDS:
                stated = self._after_jump(stamp, stated, following)
            self._time = stated if stated > self._time else following
        self._count += 1
        assert self._time is not None
        return self._time

    def begin(self, stamp: float) -> None:
        """Start at the time stamp of the file's first frame, which may be one that cannot be decoded."""
        self.start, self._offset, self._time = stamp, -stamp, 0.0

    def _after_jump(self, stamp: float, stated: float, following: float) -> float:
        """Return the time of a stamp that does not continue the one before."""
        if abs(stamp + self._other_offset - following) < _RESTART_SECONDS:
            # Frames are stored out of order, so that a few around a jump alternate between both clocks.
            self._offset, self._other_offset = self._other_offset, self._offset
            if self.restarts and self.restarts[-1] > self._count - 4:
                self.restarts.pop()
            return stamp + self._offset
        if stated < following - _RESTART_SECONDS:
            self._other_offset = self._offset
            self._offset += following - stated
            self.restarts.append(self._count)
            return following
        return stated
