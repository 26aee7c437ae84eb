"""Body of corrflow-track --camera: source, signals, window, page, closing."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from corrflow.errors import CorrflowError, InputError
from corrflow.output_paths import check_apart, check_beginning, fitting
from corrflow.runtime.formats.prompts import prompts_from_files
from corrflow.runtime.formats.registry import FORMATS
from corrflow.runtime.live.capture.capture import Capture, Timeouts
from corrflow.runtime.live.capture.readers import PacedReader, open_reader
from corrflow.runtime.live.outputs.destinations import Destinations, LiveSource
from corrflow.runtime.live.outputs.recorders import check_recording
from corrflow.runtime.live.prompt import Prompt, load_prompt, save_prompt
from corrflow.runtime.live.session import Session
from corrflow.runtime.live.session_control import SessionApi
from corrflow.runtime.live.web.auth import Access
from corrflow.runtime.live.window import Window, check_window
from corrflow.runtime.tracking.model_options import ModelOptions
from corrflow.runtime.video.open_source import open_source
from corrflow.runtime.video.source_uri import live_address
from corrflow.stopping import stop_deferred, stop_requested

logger = logging.getLogger("corrflow")

_STEP_SECONDS = 0.8  # limit for the last step after a stop
_CLOSE_SECONDS = 0.7  # limit for all outputs together to finish after a signal


@dataclass(frozen=True)
class LiveOptions:
    """Options of a live session besides its tracker and its destinations.

    show:        open a window to watch
    save_prompt: file for the first frame and its objects
    serve:       address and token of the page
    timeout:     seconds without a frame before the source is reopened
    """

    show: bool = False
    save_prompt: Path | None = None
    serve: Access | None = None
    timeout: float = 5.0

    def check(self) -> None:
        """Raise InputError for a window, a page or a file that is not available, before the camera is opened."""
        if self.save_prompt is not None:
            check_recording(self.save_prompt, ())
        if self.show:
            if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
                raise InputError(
                    "expected a screen for --show, got no DISPLAY in the environment; use --serve or --save instead"
                )
            check_window()


def run_camera(
    source: str,
    files: Sequence[Path],
    keypoints: Path | None,
    prompt_file: Path | None,
    destinations: Callable[[str], Destinations],
    live: LiveOptions,
    options: ModelOptions,
) -> None:
    """Track a live source until it ends, the window is closed, or a signal, which is the regular end of a camera.

    files, keypoints, prompt_file: objects of the first frame; the page adds others
    destinations: returns where results go, by the name of the source

    Raises InputError before anything is written, CorrflowError midway.
    """
    console = Console(stderr=True)
    timeouts = Timeouts(opening=2 * live.timeout, reading=live.timeout)
    start = load_prompt(prompt_file) if prompt_file is not None else prompts_from_files(files, keypoints)
    capture, name = open_capture(source, timeouts)
    outputs = destinations(name)
    if outputs.default_folder is not None:  # its files get numbers, as all of a live session do
        defaults = {format: outputs.default_folder / FORMATS[format].result for format in outputs.default_formats}
        outputs = replace(outputs, files={**outputs.files, **defaults})
    if not outputs and not live.show and live.serve is None:
        outputs = replace(outputs, files={"overlay": Path(fitting(name, "_tracked.mkv"))})
    outputs.check()
    outputs.check_recordings()
    live.check()
    if live.save_prompt is not None:
        read = [*files, keypoints, prompt_file, None if live_address(source) else source]
        check_apart(read, [live.save_prompt])
        check_beginning(live.save_prompt, "--save-prompt", b"pk")
    with stop_deferred(expected=True), options.open() as tracker:

        def on_start(prompt: Prompt) -> None:
            if live.save_prompt is not None:
                try:
                    save_prompt(prompt, live.save_prompt)
                except CorrflowError as error:
                    logger.warning("%s", error)

        session = Session(capture, tracker, start, outputs.open_workers(LiveSource(name)), on_start)
        control = SessionApi(
            session, Path(fitting(name, "_recorded.mkv")), live.save_prompt or Path(fitting(name, "_prompt.npz"))
        )
        started = time.monotonic()
        with _served(session, control, live.serve, console):
            error = _run(session, Window(session, control) if live.show else None, console)
        # After a signal the whole exit takes two seconds at most; after a file the outputs may finish.
        deadline = time.monotonic() + (_CLOSE_SECONDS if stop_requested() else 30)
        for sink in tuple(session.outputs):
            if not sink.close(max(0.1, deadline - time.monotonic())):
                logger.warning("%s: still busy; its last frames are left out", sink.name)
        if error is None or session.processed:
            _print_summary(console, session, time.monotonic() - started)
        if error is None and session.busy:
            # The model cannot be interrupted; closing it during a step would crash.
            sys.stderr.flush()
            os._exit(0)
    if error is not None:
        raise error


def open_capture(source: str, timeouts: Timeouts) -> tuple[Capture, str]:
    """Return a capture of a live source or a file, not started yet, and its name for files. Raises InputError."""
    address = live_address(source)
    if address is not None:
        endless = address.kind != "input"
        return Capture(lambda: open_reader(address, timeouts.reading), timeouts, endless), address.name
    with open_source(source) as frames:  # raises InputError for an invalid source
        name = frames.name
    return Capture(lambda: PacedReader(open_source(source)), timeouts, endless=False), name


@contextmanager
def _served(session: Session, control: SessionApi, access: Access | None, console: Console) -> Iterator[None]:
    """Serve the page of a session while the context lasts; access: None for no page."""
    if access is None:
        yield
        return
    from corrflow.runtime.live.web.live_routes import live_routes
    from corrflow.runtime.live.web.server import Server

    server = Server(live_routes(session, control), access)
    for url in server.access.urls:
        console.print(f"open {url}", highlight=False, soft_wrap=True)
    try:
        yield
    finally:
        server.close()


def _run(session: Session, window: Window | None, console: Console) -> BaseException | None:
    """Track in a thread, so that signals and the window are handled at once. Return the error that ended tracking."""
    thread, errors = session.in_thread()
    status = _Status(console)
    while thread.is_alive() and not stop_requested():
        if window is None:
            thread.join(0.05)
        elif not window.step():
            break
        status.update(session)
    session.stop.set()
    thread.join(_STEP_SECONDS)
    if window is not None:
        window.close()
    status.clear()
    return errors[0] if errors else None


class _Status:
    """Status line: rewritten on a terminal, otherwise printed every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console, self._terminal = console, console.is_terminal
        self._interval = 0.5 if self._terminal else 10.0
        self._due = time.monotonic() + self._interval

    def update(self, session: Session) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._interval
        counts, latency = session.capture.counts, session.latency
        text = (
            f"{latency.frames_per_second():.1f} frames/s, latency {1000 * latency.latency(50):.0f} ms,"
            f" {session.processed} tracked, {counts.dropped} dropped, {session.capture.state[0]}"
        )
        self._console.print(text.ljust(78) if self._terminal else text, end="\r" if self._terminal else "\n")

    def clear(self) -> None:
        if self._terminal:
            self._console.print(" " * 78, end="\r")


def _print_summary(console: Console, session: Session, seconds: float) -> None:
    counts, latency = session.capture.counts, session.latency
    console.print(
        f"captured {counts.captured} frames: {session.processed} tracked, {counts.dropped} dropped,"
        f" {max(0, counts.connections - 1)} reconnects"
    )
    if session.processed:
        pace = session.processed / max(seconds, 1e-9)
        typical, worst = (1000 * latency.latency(percent, seconds) for percent in (50, 99))
        console.print(f"{pace:.1f} frames/s, latency {typical:.0f} ms, 99 % below {worst:.0f} ms")
    for sink in session.outputs:
        lost = f", {sink.lost} lost ({sink.error or 'it was too slow'})" if sink.lost else ""
        console.print(f"{sink.name}: {sink.written} frames{lost}", highlight=False, soft_wrap=True)
