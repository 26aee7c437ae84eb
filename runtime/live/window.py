"""Viewer window of --show: the newest result with a status line, freeze, record, quit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from functools import lru_cache
from threading import Thread

import cv2
import numpy as np

# Pillow carries a smooth font; OpenCV's own strokes are ragged.
from PIL import Image, ImageDraw, ImageFont

from corrflow.errors import InputError
from corrflow.runtime.live.session import Session
from corrflow.runtime.live.session_control import SessionApi
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.overlay import draw_overlay

_TITLE = "corrflow"
_HINT = "space: freeze, r: record, q: quit"
_WAIT = 20  # milliseconds for the keys between two looks at the session
_REDRAW_SECONDS = 0.5  # the status line changes although no frame comes
_PROBE_SECONDS = 20
_REOPEN_SECONDS = 5.0  # a window that never became visible is opened again
_SMALLEST_SIDE, _LARGEST_SIZE = 480, (1280, 800)  # of the displayed frame, in pixels
_FONT_SIZE, _LINE_HEIGHT = 14, 24
_X11_ESCAPE = 0xFF1B


def check_window() -> None:
    """Raise InputError if no window can be opened.

    The check runs in a process of its own, because OpenCV's toolkit ends a process without a screen.
    """
    program = f"import cv2; cv2.namedWindow({_TITLE!r}, cv2.WINDOW_AUTOSIZE)"
    try:
        # Python would import modules from the working folder, so another one is chosen.
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
    """Viewer of a session. All methods are called by the thread that made the window."""

    def __init__(self, session: Session, api: SessionApi) -> None:
        """Open the window; `check_window` tells beforehand if that works."""
        self._session, self._api = session, api
        self._result: FrameResult | None = None
        self._frozen = False
        self._drawn_at = 0.0
        self._was_visible = False  # a busy screen takes its time to show a window
        self._open()

    def step(self) -> bool:
        """Show the newest result and handle one key. Returns False once the user quits or closes the window."""
        newest = self._session.latest.result
        changed = newest is not self._result and not self._frozen
        if changed:
            self._result = newest
        if changed or time.monotonic() - self._drawn_at > _REDRAW_SECONDS:
            self._draw()
        code = cv2.waitKeyEx(_WAIT)
        if code >= 0 and not self._handle_key(code & 0xFFFF):  # the bits above are modifier keys
            return False
        visible = self._is_visible()
        closed = self._was_visible and not visible
        self._was_visible |= visible
        if not self._was_visible and time.monotonic() - self._opened_at > _REOPEN_SECONDS:
            self.close()
            self._open()
        return not closed

    def close(self) -> None:
        """Destroy the window."""
        with suppress(cv2.error):
            cv2.destroyAllWindows()

    def _open(self) -> None:
        cv2.namedWindow(_TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)  # without the toolkit's own toolbar
        self._opened_at = time.monotonic()

    def _is_visible(self) -> bool:
        try:
            return cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:  # some toolkits forget a window that was closed
            return False

    def _handle_key(self, code: int) -> bool:
        """Act on a key of `cv2.waitKeyEx` without its modifiers. Return False for the keys that quit."""
        key = "\x1b" if code == _X11_ESCAPE else chr(code).lower() if code < 128 else ""
        self._drawn_at = 0.0
        if key == " ":
            self._frozen = not self._frozen
        elif key == "r":
            # Ending a recording waits for the encoder; the window does not.
            Thread(target=self._api.record, args=(not self._api.recording,), daemon=True).start()
        return key not in ("q", "\x1b")

    def _draw(self) -> None:
        state, reason = self._session.capture.state
        if self._result is None:
            view, status = np.full((360, 640, 3), 32, np.uint8), f"{state}; no frame yet {reason}"
        else:
            view = _displayed(draw_overlay(self._result))
            statistics = self._session.latency
            status = f"{statistics.frames_per_second():.1f} frames/s, {1000 * statistics.latency(50):.0f} ms"
            status = "frozen" if self._frozen else status if state == "running" else state
        if self._api.recording:
            status = f"recording, {status}"
        cv2.imshow(_TITLE, np.vstack([view, _status_line(view.shape[1], status)]))
        self._drawn_at = time.monotonic()


def _displayed(image: np.ndarray) -> np.ndarray:
    """Resize [H, W, 3] uint8: small frames are enlarged to hold the status line, large ones fit the screen."""
    height, width = image.shape[:2]
    if min(height, width) < _SMALLEST_SIDE:
        scale = -(-_SMALLEST_SIDE // min(height, width))
    else:
        scale = min(1.0, _LARGEST_SIZE[0] / width, _LARGEST_SIZE[1] / height)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation), np.uint8)


@lru_cache(maxsize=4)
def _status_line(width: int, status: str) -> np.ndarray:
    """Render the status and the keys: [_LINE_HEIGHT, width, 3] uint8, BGR."""
    strip = Image.new("RGB", (width, _LINE_HEIGHT), (24, 24, 24))
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(_FONT_SIZE)
    pen.text((6, 3), status.encode("ascii", "replace").decode(), fill=(235, 235, 235), font=font)
    pen.text((width - 6 - font.getlength(_HINT), 3), _HINT, fill=(150, 150, 150), font=font)
    return np.asarray(strip, np.uint8)[..., ::-1]
