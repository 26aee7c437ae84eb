"""What corrflow-track --camera does around the loop: the source, signals, the window, last words."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from rich.console import Console

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.formats.registry import read_objects
from corrflow.runtime.live.capture.capture import Capture, Timeouts
from corrflow.runtime.live.capture.readers import PacedReader, open_reader
from corrflow.runtime.live.outputs.mqtt import Broker, MqttSink, check_mqtt
from corrflow.runtime.live.outputs.recorders import LiveJsonLinesSink, LiveVideoSink, check_recording
from corrflow.runtime.live.outputs.rerun import RerunSink, check_rerun
from corrflow.runtime.live.outputs.ros2 import RosSink, Topics, check_ros
from corrflow.runtime.live.outputs.udp import UdpSink
from corrflow.runtime.live.outputs.worker import SinkWorker
from corrflow.runtime.live.reference import Prompt, load_prompt, save_prompt
from corrflow.runtime.live.session import Session
from corrflow.runtime.live.session_control import SessionApi
from corrflow.runtime.live.web.auth import Access, check_server
from corrflow.runtime.live.window import Window, check_window
from corrflow.runtime.tracking.factory import Model
from corrflow.runtime.video.encoding import VIDEO_FORMATS
from corrflow.runtime.video.open_source import open_source
from corrflow.runtime.video.source_uri import live_address

logger = logging.getLogger("corrflow")

_STEP_GRACE = 0.8  # seconds that a step may still take once the run is to stop
_CLOSING = 0.7  # seconds that all outputs together have to finish then


@dataclass(frozen=True)
class LiveOutputs:
    """Where live results go, and where what the objects looked like is kept."""

    save: Path | None
    jsonl: Path | None
    show: bool
    reference: Path | None
    serve: Access | None = None
    udp: tuple[str, int] | None = None
    mqtt: Broker | None = None
    rerun: str | None = None
    ros: Topics | None = None

    @property
    def any(self) -> bool:
        """Whether results go anywhere."""
        return self.show or any((self.save, self.jsonl, self.serve, self.udp, self.mqtt, self.rerun, self.ros))

    def check(self) -> None:
        """Raise InputError for what cannot be written or shown, before any camera is opened."""
        if self.save is not None:
            check_recording(self.save, tuple(VIDEO_FORMATS))
        for path in (self.jsonl, self.reference):
            if path is not None:
                check_recording(path, ())
        if self.serve is not None:
            check_server()
        if self.mqtt is not None:
            check_mqtt()
        if self.rerun is not None:
            check_rerun(self.rerun)
        if self.ros is not None:
            check_ros()
        if self.show:
            if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
                raise InputError(
                    "expected a screen for --show, got no DISPLAY in the environment; use --serve or --save instead"
                )
            check_window()

    def open(self) -> list[SinkWorker]:
        outputs = []
        if (video := self.save) is not None:
            outputs.append(SinkWorker(str(video), lambda: LiveVideoSink(video)))
        if (lines := self.jsonl) is not None:
            outputs.append(SinkWorker(str(lines), lambda: LiveJsonLinesSink(lines)))
        if (receiver := self.udp) is not None:
            outputs.append(SinkWorker(f"udp://{receiver[0]}:{receiver[1]}", lambda: UdpSink(*receiver)))
        if (broker := self.mqtt) is not None:
            outputs.append(SinkWorker(broker.shown, lambda: MqttSink(broker)))
        if (viewer := self.rerun) is not None:
            outputs.append(SinkWorker(viewer, lambda: RerunSink(viewer)))
        if (topics := self.ros) is not None:
            outputs.append(SinkWorker(f"ros:{topics.prefix}", lambda: RosSink(topics)))
        return outputs


def run_camera(
    source: str,
    masks: Sequence[Path],
    keypoints: Path | None,
    reference: Path | None,
    outputs: LiveOutputs,
    model: Model,
    timeout: float,
) -> None:
    """corrflow-track --camera SOURCE, until the source ends, the window is closed, or SIGINT or SIGTERM.

    Raises InputError before anything is written, CorrflowError midway.
    """
    console = Console(stderr=True)
    start = load_prompt(reference) if reference is not None else read_objects(masks, keypoints)
    patience = Timeouts(opening=2 * timeout, reading=timeout)
    capture, name = open_capture(source, patience)
    if not outputs.any:
        outputs = replace(outputs, save=Path(f"{name}_tracked.mkv"))
    outputs.check()
    with _stopped_by_signals() as stop, model.tracker(said=True) as tracker:

        def keep(began: Prompt) -> None:
            if outputs.reference is not None:
                try:
                    save_prompt(began, outputs.reference)
                except CorrflowError as error:
                    logger.warning("%s", error)

        sinks = outputs.open()
        session = Session(capture, tracker, start, sinks, keep)
        control = SessionApi(session, Path(f"{name}_recorded.mkv"), outputs.reference or Path(f"{name}_reference.npz"))
        began = time.monotonic()
        with _served(session, control, outputs.serve, console):
            error = _run(session, stop, Window(session, control) if outputs.show else None, console)
        # After a signal two seconds are all there is; at the end of a file the rest may be written in peace.
        deadline = time.monotonic() + (_CLOSING if stop.is_set() else 30)
        for sink in tuple(session.outputs):
            if not sink.close(max(0.1, deadline - time.monotonic())):
                logger.warning("%s: still busy; its last frames are left out", sink.name)
        if error is None or session.processed:
            _say(console, session, time.monotonic() - began)
        if error is None and session.busy:
            # The model cannot be interrupted; taking it down under a running step would crash.
            sys.stderr.flush()
            os._exit(0)
    if error is not None:
        raise error


def open_capture(source: str, patience: Timeouts) -> tuple[Capture, str]:
    """A capture of any source, not started yet, and its name for files.

    Raises InputError for what is neither a live source nor a file.
    """
    address = live_address(source)
    if address is not None:
        endless = address.kind != "input"
        return Capture(lambda: open_reader(address, patience.reading), patience, endless), address.name
    with open_source(source) as frames:  # which says what is wrong with it
        name = frames.name
    return Capture(lambda: PacedReader(open_source(source)), patience, endless=False), name


@contextmanager
def _served(session: Session, control: SessionApi, access: Access | None, console: Console) -> Iterator[None]:
    """The session's page, where one is asked for, while the context lasts."""
    if access is None:
        yield
        return
    from corrflow.runtime.live.web.server import Server

    server = Server(session, control, access)
    console.print(f"open {server.access.url}", highlight=False, soft_wrap=True)
    try:
        yield
    finally:
        server.close()


@contextmanager
def _stopped_by_signals() -> Iterator[Event]:
    """An event that SIGINT and SIGTERM set while the context lasts."""
    stop = Event()
    former = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _run(session: Session, stop: Event, window: Window | None, console: Console) -> BaseException | None:
    """Track in a thread, so that signals and the window are heard of at once; returns the error that ended it."""
    thread, errors = session.in_thread()
    status = _Status(console)
    while thread.is_alive() and not stop.is_set():
        if window is None:
            thread.join(0.05)
        elif not window.step():
            break
        status.say(session)
    session.stop.set()
    thread.join(_STEP_GRACE)
    if window is not None:
        window.close()
    status.end()
    return errors[0] if errors else None


class _Status:
    """A line that says how the run is doing: rewritten on a terminal, now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console, self._terminal = console, console.is_terminal
        self._interval = 0.5 if self._terminal else 10.0
        self._due = time.monotonic() + self._interval

    def say(self, session: Session) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._interval
        counts, pace = session.capture.counts, session.pace
        text = (
            f"{pace.frames_per_second():.1f} frames/s, latency {1000 * pace.latency(50):.0f} ms,"
            f" {session.processed} tracked, {counts.dropped} dropped, {session.capture.state[0]}"
        )
        self._console.print(text.ljust(78) if self._terminal else text, end="\r" if self._terminal else "\n")

    def end(self) -> None:
        if self._terminal:
            self._console.print(" " * 78, end="\r")


def _say(console: Console, session: Session, seconds: float) -> None:
    counts, pace = session.capture.counts, session.pace
    console.print(
        f"captured {counts.captured} frames: {session.processed} tracked, {counts.dropped} dropped,"
        f" {max(0, counts.connections - 1)} reconnects"
    )
    if session.processed:
        console.print(
            f"{session.processed / max(seconds, 1e-9):.1f} frames/s, latency {1000 * pace.latency(50):.0f} ms,"
            f" 99 % below {1000 * pace.latency(99):.0f} ms"
        )
    for sink in session.outputs:
        lost = f", {sink.lost} lost ({sink.error or 'it was too slow'})" if sink.lost else ""
        console.print(f"{sink.name}: {sink.written} frames{lost}", highlight=False, soft_wrap=True)
