"""The live loop: the newest frame through the tracker, its result to whoever looks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, TimeoutError
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

import numpy as np

from corrflow.errors import CorrflowError
from corrflow.runtime.live.capture.capture import Capture, LiveFrame
from corrflow.runtime.live.object_editor import Frozen, ObjectEditor
from corrflow.runtime.live.outputs.worker import SinkWorker
from corrflow.runtime.live.reference import Prompt, resized
from corrflow.runtime.live.results import LatencyStats, LatestResult, LiveResult
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import TrackedObject, Tracks
from corrflow.runtime.video.source import size_text

logger = logging.getLogger("corrflow")

_MOST_CALLS = 32
_Answer = TypeVar("_Answer")


class Session:
    """Tracks what a capture delivers until it ends or `stop` is set.

    start: what to track: objects on the first frame of the stream (none, where they are given later), or a reference,
    whose frame comes before the stream
    began: told the reference once the objects are accepted
    """

    def __init__(
        self,
        capture: Capture,
        tracker: Tracker,
        start: Sequence[TrackedObject] | Prompt,
        outputs: Sequence[SinkWorker] = (),
        began: Callable[[Prompt], None] = lambda reference: None,
    ) -> None:
        self.capture, self.latest, self.pace, self.stop = capture, LatestResult(), LatencyStats(), Event()
        self.processed = 0
        self.outputs = list(outputs)
        self.busy = False
        """Whether a frame is being tracked just now."""
        self.editing = ObjectEditor(tracker)
        """Changes of the objects; to be touched through `call` alone."""
        self._calls: Queue[tuple[Callable[[], Any], Future]] = Queue(_MOST_CALLS)
        self._tracker, self._start, self._began = tracker, start, began
        self._last: tuple[np.ndarray, Tracks] | None = None
        self._begin = 0.0

    def run(self) -> None:
        """Track until the end. Raises what a source that cannot go on or the tracker raises; the capture is closed."""
        self.capture.start()
        try:
            while not self.stop.is_set():
                frame = self.capture.take(0.05)
                self._answer()
                if frame is not None:
                    self.busy = True
                    self._publish(frame, self._track(frame.image))
                    self.editing.passed(frame.image)
                    self.busy = False
                elif self.capture.ended:
                    break
        finally:
            self.busy = False
            self.stop.set()
            self.capture.close(0.3)

    def in_thread(self) -> tuple[Thread, list[BaseException]]:
        """`run` in a thread that is gone with the process, and the list that what it raises is put into."""
        errors: list[BaseException] = []

        def work() -> None:
            try:
                self.run()
            except BaseException as error:
                errors.append(error)

        thread = Thread(target=work, name="corrflow-tracking", daemon=True)
        thread.start()
        return thread, errors

    def call(self, action: Callable[[], _Answer], timeout: float = 5.0) -> _Answer:
        """Do something between two frames, in the thread that tracks; returns or raises what it does.

        Raises CorrflowError where the thread is not there within `timeout` seconds; then it is not done.
        """
        future: Future[_Answer] = Future()
        try:
            self._calls.put_nowait((action, future))
            return future.result(timeout)
        except (Full, TimeoutError):
            if future.cancel() or not future.done():
                raise CorrflowError("the tracker is busy or has ended; try again in a moment") from None
            return future.result()

    def freeze(self) -> Frozen:
        """Freeze the newest frame; its image and tracks do not change. Raises CorrflowError before the first."""

        def keep() -> Frozen:
            if self._last is None:
                raise CorrflowError("no frame came yet; wait for the stream")
            return self.editing.freeze(*self._last)

        return self.call(keep)

    def _answer(self) -> None:
        while True:
            try:
                action, future = self._calls.get_nowait()
            except Empty:
                return
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(action())
                except Exception as error:  # the caller's, who raises it
                    future.set_exception(error)

    def _publish(self, frame: LiveFrame, tracks: Tracks) -> None:
        if not self.processed:
            self._begin = frame.captured
        latency = time.monotonic() - frame.captured
        result = LiveResult(frame, tracks, self.processed, frame.captured - self._begin, latency)
        self._last = frame.image, tracks
        self.processed += 1
        self.pace.add(latency)
        self.latest.put(result)
        for output in tuple(self.outputs):
            output.put(result)

    def _track(self, image: np.ndarray) -> Tracks:
        size = (image.shape[0], image.shape[1])
        if self._last is not None:
            if size != self._last[0].shape[:2]:
                logger.warning("the stream is %s now; the objects go on there", size_text(size))
                self.editing.change_size(*self._last, size)
            return self._tracker.step(image)
        if isinstance(self._start, Prompt):
            reference = self._start
            self._tracker.start(*resized(reference.frame, reference.objects, size))
            tracks = self._tracker.step(image)
        else:
            reference = Prompt(image, tuple(self._start))
            tracks = self._tracker.start(image, self._start)
        self.editing.began(reference.frame, reference.objects)
        if reference.objects:
            self._began(reference)
        return tracks
