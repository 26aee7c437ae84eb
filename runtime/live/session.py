"""Live session: a loop that tracks the newest frame and sends its result to every output."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, TimeoutError
from dataclasses import replace
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

from corrflow.errors import CorrflowError
from corrflow.runtime.formats.prompts import Prompts
from corrflow.runtime.live.capture.capture import Capture, CapturedFrame
from corrflow.runtime.live.object_editor import Frozen, ObjectEditor
from corrflow.runtime.live.outputs.worker import SinkWorker
from corrflow.runtime.live.prompt import Prompt, resized
from corrflow.runtime.live.results import LatencyStats, LatestResult
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, FrameResult, LiveTiming, size_text

logger = logging.getLogger("corrflow")

_MAX_CALLS = 32  # calls in the queue
_CALL_SECONDS = 0.02  # after which further calls wait for the next frame
_Result = TypeVar("_Result")


class Session:
    """Live loop over a capture, until the capture ends or `stop` is set.

    start:    returns the objects of the first frame, possibly none; or a prompt, whose frame precedes the stream
    on_start: called with the prompt once the objects are accepted
    """

    def __init__(
        self,
        capture: Capture,
        tracker: Tracker,
        start: Prompts | Prompt,
        outputs: Sequence[SinkWorker] = (),
        on_start: Callable[[Prompt], None] = lambda prompt: None,
    ) -> None:
        self.capture, self.latest, self.latency, self.stop = capture, LatestResult(), LatencyStats(), Event()
        self.processed = 0
        self.outputs = list(outputs)
        self.busy = False
        """True while a frame is being tracked."""
        self.editing = ObjectEditor(tracker)
        """Changes of the objects; used through `call` alone."""
        self._calls: Queue[tuple[Callable[[], Any], Future]] = Queue(_MAX_CALLS)
        self._tracker, self._start, self._on_start = tracker, start, on_start
        self._last: FrameResult | None = None
        self._last_capture = 0.0
        self._begin = 0.0

    def run(self) -> None:
        """Track until the end and close the capture. Raises the errors of the capture and of the tracker."""
        self.capture.start()
        try:
            while not self.stop.is_set():
                frame = self.capture.take(0.05)
                self._run_calls()
                if frame is not None:
                    self.busy = True
                    self._publish(frame, self._track(frame))
                    self.editing.passed(frame.image)
                    self.busy = False
                elif self.capture.ended:
                    break
        finally:
            self.busy = False
            self.stop.set()
            self.capture.close(0.3)

    def in_thread(self) -> tuple[Thread, list[BaseException]]:
        """Start `run` in a daemon thread. Return the thread, and a list that receives the error of `run`."""
        errors: list[BaseException] = []

        def work() -> None:
            try:
                self.run()
            except BaseException as error:
                errors.append(error)

        thread = Thread(target=work, name="corrflow-tracking", daemon=True)
        thread.start()
        return thread, errors

    @property
    def seconds_since_capture(self) -> float:
        """Seconds since the newest result's frame was captured."""
        return time.monotonic() - self._last_capture

    def call(self, action: Callable[[], _Result], timeout: float = 5.0) -> _Result:
        """Run an action between two frames in the tracking thread. Return its result, or raise its error.

        Raises CorrflowError, without running the action, if the thread is busy for `timeout` seconds.
        """
        future: Future[_Result] = Future()
        try:
            self._calls.put_nowait((action, future))
            return future.result(timeout)
        except (Full, TimeoutError):
            if future.cancel() or not future.done():
                raise CorrflowError("the tracker is busy or has ended; try again in a moment") from None
            return future.result()

    def freeze(self) -> Frozen:
        """Freeze the newest frame and its result. Raises CorrflowError before the first frame."""

        def freeze() -> Frozen:
            if self._last is None:
                raise CorrflowError("no frame came yet; wait for the stream")
            return self.editing.freeze(self._last)

        return self.call(freeze)

    def _run_calls(self) -> None:
        """Run at least one call, and further ones while they leave most of the time to frames."""
        end = time.monotonic() + _CALL_SECONDS
        while True:
            try:
                action, future = self._calls.get_nowait()
            except Empty:
                return
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(action())
                except Exception as error:  # `call` raises this error
                    future.set_exception(error)
            if time.monotonic() > end:
                return

    def _publish(self, frame: CapturedFrame, tracked: FrameResult) -> None:
        latency = time.monotonic() - frame.captured
        result = replace(tracked, live=LiveTiming(self.processed, frame.wall, latency))
        self._last, self._last_capture = result, frame.captured
        self.processed += 1
        self.latency.add(latency)
        self.latest.put(result)
        for output in tuple(self.outputs):
            output.put(result)

    def _track(self, captured: CapturedFrame) -> FrameResult:
        image = captured.image
        size = (image.shape[0], image.shape[1])
        if not self.processed:
            self._begin = captured.captured
        frame = Frame(image, captured.index, captured.captured - self._begin, f"{captured.index:05d}")
        if self._last is not None:
            if size != self._last.frame.image.shape[:2]:
                logger.warning("the stream is %s now; the objects go on there", size_text(size))
                self.editing.change_size(self._last, size)
            return self._tracker.step(frame)
        if isinstance(self._start, Prompt):
            prompt = self._start
            self._tracker.start(*resized(prompt.frame, prompt.objects, size))
            result = self._tracker.step(frame)
        else:
            prompt = Prompt(image, tuple(self._start(frame)))
            result = self._tracker.start(frame, prompt.objects)
        self.editing.began(prompt.frame, prompt.objects)
        if prompt.objects:
            self._on_start(prompt)
        return result
