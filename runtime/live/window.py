"""The window of --show: what is tracked, and drawing on it. What events mean is in `board`; this is OpenCV's side."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from queue import Empty, Queue
from threading import Thread
from typing import Any

import cv2

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.live.board import Board, Command
from corrflow.runtime.live.board_picture import board_picture, display_scale, waiting_picture
from corrflow.runtime.live.keys import key_name
from corrflow.runtime.live.results import LiveResult
from corrflow.runtime.live.session import Session
from corrflow.runtime.live.session_control import SessionApi

_TITLE = "corrflow"
_WAIT = 20  # milliseconds for the mouse and the keys between two looks at the session
_OFTEN = 0.5  # seconds between pictures where nothing happens
_PROBE_SECONDS = 20
_PATIENCE = 5.0  # seconds after which a window that has never been seen is opened anew


def check_window() -> None:
    """Raise InputError where no window can be opened.

    Tried in a process of its own, because OpenCV's toolkit ends the process that has no screen.
    """
    program = f"import cv2; cv2.namedWindow({_TITLE!r}, cv2.WINDOW_AUTOSIZE)"
    try:
        # Elsewhere, because Python would import what lies in the present folder.
        folder = os.path.dirname(sys.executable)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=_PROBE_SECONDS, cwd=folder)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"expected a screen for --show, got {error}; use --serve or --save instead") from None
    if done.returncode:
        if b"not implemented" in done.stderr:
            raise InputError(
                "expected an OpenCV with windows for --show, got one without; install opencv-python, not headless"
            )
        raise InputError("expected a screen that --show can use, got one that refuses; use --serve or --save instead")


class Window:
    """A session's window, and a board to draw on; everything but its commands happens in the thread that made it."""

    def __init__(self, session: Session, control: SessionApi) -> None:
        """There has to be a screen: `check_window` says so."""
        self._session, self._control, self._board = session, control, Board()
        self._result: LiveResult | None = None
        self._drawn = 0.0  # when
        self._opened = False  # a busy screen takes its time to show a window
        self._events: deque[tuple[int, int, int, int]] = deque()  # cv2's event, x, y, flags
        self._commands: Queue[Command] = Queue()
        self._answers: Queue[tuple[Command, Any, str]] = Queue()  # with the answer, or what went wrong
        self._open()
        # The session answers between two frames; the window does not wait for that.
        Thread(target=self._carry_out, name="corrflow-window", daemon=True).start()

    def step(self) -> bool:
        """Look once at the session, the mouse and the keys; False once the user is done."""
        changed = False
        newest = self._session.latest.result
        if newest is not None and newest is not self._result:
            self._result, changed = newest, True
            height, width = newest.tracks.mask.shape
            tracks, joining = newest.tracks.objects, self._session.editing.joining
            names = {one.id: one.name for one in (*tracks, *joining)}
            states = {track.id: "lost" for track in tracks if not track.visible} | {one.id: "joins" for one in joining}
            self._send(self._board.see((height, width), names, states))
        while True:
            try:
                command, answer, sentence = self._answers.get_nowait()
            except Empty:
                break
            board = self._board
            self._send(board.failed(command, sentence) if sentence else board.answered(command, answer))
            changed = True
        while self._events:
            self._mouse(*self._events.popleft())
            changed = True
        if changed or time.monotonic() - self._drawn > _OFTEN:
            self._draw()
        key = key_name(cv2.waitKeyEx(_WAIT))
        going_on = self._send(self._board.key(key)) if key else True
        self._drawn = 0.0 if key else self._drawn
        visible = self._is_visible()
        closed = self._opened and not visible
        self._opened |= visible
        if not self._opened and time.monotonic() - self._asked_for > _PATIENCE:
            self.close()
            self._open()
        return going_on and not closed

    def close(self) -> None:
        with suppress(cv2.error):
            cv2.destroyAllWindows()

    def _open(self) -> None:
        # Without the toolkit's own toolbar and menu, which would take the right button.
        cv2.namedWindow(_TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
        cv2.setMouseCallback(_TITLE, lambda event, x, y, flags, _: self._events.append((event, x, y, flags)))
        self._asked_for = time.monotonic()

    def _is_visible(self) -> bool:
        try:
            return cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:  # some toolkits do not know a closed window any more
            return False

    def _draw(self) -> None:
        session, result = self._session, self._result
        state, reason = session.capture.state
        if result is None:
            picture = waiting_picture(reason, f"{state}; no frame yet")
        else:
            pace = f"{session.pace.frames_per_second():.1f} frames/s, {1000 * session.pace.latency(50):.0f} ms"
            status = pace if state == "running" else state
            picture = board_picture(self._board, result.frame.image, result.tracks, status)
        cv2.imshow(_TITLE, picture)
        self._drawn = time.monotonic()

    def _mouse(self, event: int, x: int, y: int, flags: int) -> None:
        size = self._board.size
        if not size[0]:
            return
        scale = display_scale(size)
        place = (x + 0.5) / scale - 0.5, (y + 0.5) / scale - 0.5
        right = event in (cv2.EVENT_RBUTTONDOWN, cv2.EVENT_RBUTTONDBLCLK)
        if right or event in (cv2.EVENT_LBUTTONDOWN, cv2.EVENT_LBUTTONDBLCLK):
            self._send(self._board.press(*place, right))
        elif event == cv2.EVENT_MOUSEMOVE:
            self._send(self._board.move(*place))
        elif event in (cv2.EVENT_LBUTTONUP, cv2.EVENT_RBUTTONUP):
            self._send(self._board.release(*place))
        elif event == cv2.EVENT_MOUSEWHEEL:
            self._send(self._board.wheel(flags > 0))

    def _send(self, commands: list[Command]) -> bool:
        """Have commands carried out; False where one of them is to quit."""
        for command in commands:
            self._commands.put(command)
        return all(command.kind != "quit" for command in commands)

    def _carry_out(self) -> None:
        while (command := self._commands.get()).kind != "quit":
            try:
                self._answers.put((command, self._answer(command), ""))
            except CorrflowError as error:
                self._answers.put((command, None, str(error)))
            except Exception as error:  # a library's own; the window goes on
                self._answers.put((command, None, f"{type(error).__name__}: {error}"))

    def _answer(self, command: Command) -> Any:
        control, values = self._control, command.values
        match command.kind:
            case "freeze":
                return self._session.freeze()
            case "release":
                return control.release(values["frozen"])
            case "mask":
                return control.mask(values)
            case "give":
                return control.give(values)
            case "remove":
                return control.remove(values["object"])
            case "rename":
                return control.rename(values["object"], values["name"])
            case "reference":
                return control.save_prompt()
