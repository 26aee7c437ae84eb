"""The live loop: the newest frame through the tracker, its result to whoever looks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event

import numpy as np

from corrflow.runtime.frame_source import size_text
from corrflow.runtime.live.capture import Capture, LiveFrame
from corrflow.runtime.live.outputs import Output
from corrflow.runtime.live.reference import Reference, resized
from corrflow.runtime.live.results import Latest, LiveResult, Pace
from corrflow.runtime.tracker import Tracker
from corrflow.runtime.tracks import MaskObject, TrackedObject, Tracks

logger = logging.getLogger("corrflow")


class Session:
    """Tracks what a capture delivers until it ends or `stop` is set.

    start: what to track: objects on the first frame of the stream, or a reference, whose frame comes before the stream
    began: told the reference once the objects are accepted
    """

    def __init__(
        self,
        capture: Capture,
        tracker: Tracker,
        start: Sequence[TrackedObject] | Reference,
        outputs: Sequence[Output] = (),
        began: Callable[[Reference], None] = lambda reference: None,
    ) -> None:
        self.capture, self.latest, self.pace, self.stop = capture, Latest(), Pace(), Event()
        self.processed = 0
        self.outputs = outputs
        self.busy = False
        """Whether a frame is being tracked just now."""
        self._tracker, self._start, self._began = tracker, start, began
        self._reference: Reference | None = None
        self._last: tuple[np.ndarray, Tracks] | None = None
        self._begin = 0.0

    def run(self) -> None:
        """Track until the end. Raises what a source that cannot go on or the tracker raises; the capture is closed."""
        self.capture.start()
        try:
            while not self.stop.is_set():
                frame = self.capture.take(0.05)
                if frame is not None:
                    self.busy = True
                    self._publish(frame, self._track(frame.image))
                    self.busy = False
                elif self.capture.ended:
                    break
        finally:
            self.busy = False
            self.stop.set()
            self.capture.close(0.3)

    def _publish(self, frame: LiveFrame, tracks: Tracks) -> None:
        if not self.processed:
            self._begin = frame.captured
        latency = time.monotonic() - frame.captured
        result = LiveResult(frame, tracks, self.processed, frame.captured - self._begin, latency)
        self._last = frame.image, tracks
        self.processed += 1
        self.pace.add(latency)
        self.latest.put(result)
        for output in self.outputs:
            output.put(result)

    def _track(self, image: np.ndarray) -> Tracks:
        size = (image.shape[0], image.shape[1])
        if self._last is not None:
            if size != self._last[0].shape[:2]:
                logger.warning("the stream is %s now; the objects go on there", size_text(size))
                self._change_size(size)
            return self._tracker.step(image)
        if isinstance(self._start, Reference):
            self._reference = self._start
            self._tracker.start(*resized(self._start.frame, self._start.objects, size))
            tracks = self._tracker.step(image)
        else:
            self._reference = Reference(image, tuple(self._start))
            tracks = self._tracker.start(image, self._start)
        self._began(self._reference)
        return tracks

    def _change_size(self, size: tuple[int, int]) -> None:
        """Begin anew at another (height, width), under the same ids: what was seen last goes on from the last frame."""
        assert self._last is not None and self._reference is not None
        image, tracks = self._last
        given = {one.id: one for one in self._reference.objects}
        seen = [
            _as_seen(given[track.id], tracks)
            for track in tracks.objects
            if track.visible and (track.points is not None or (tracks.mask == track.id).any())
        ]
        hidden = [one for one in given.values() if one.id not in {track.id for track in seen}]
        image, seen = resized(image, seen, size)
        self._tracker.start(*resized(self._reference.frame, hidden, size))
        self._tracker.step(image)
        self._tracker.add(seen)


def _as_seen(given: TrackedObject, tracks: Tracks) -> TrackedObject:
    """A visible object as the tracks show it."""
    if isinstance(given, MaskObject):
        return replace(given, mask=tracks.mask == given.id)
    points = next(track.points for track in tracks.objects if track.id == given.id)
    return given if points is None else replace(given, points=points)
