"""Errors that users see: one sentence with the expectation, the cause and a remedy.

CorrflowError            exit code 1: a failure during the work; files written so far are valid
├── InputError           exit code 2: invalid input; nothing was written
└── SourceEndedEarly     exit code 1: a video stopped before its announced end
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from corrflow.status_stream import status_lines_dropped
from corrflow.stopping import finish_files, stop_exit_code, stop_requested, stopped_by_signals


class CorrflowError(Exception):
    """Failure that a user can fix; the message is the complete report."""

    exit_code = 1


class InputError(CorrflowError):
    """Invalid input: the message has expected, got and remedy."""

    exit_code = 2


class SourceEndedEarly(CorrflowError):
    """Frame source that stopped before its announced end; all frames before were delivered."""


@contextmanager
def errors_reported() -> Iterator[None]:
    """Print a `CorrflowError` as one line on standard error, and exit with its exit code.

    SIGINT, SIGTERM and SIGHUP stop the command, see `stopping`; the exit code is 128 plus the signal's number.
    Every command runs in this context, which alone decides exit codes. What cannot be written to standard error is
    dropped, see `status_stream`. Names of files that are no UTF-8 are printed with escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python does for standard error
    with status_lines_dropped(), stopped_by_signals():
        try:
            try:
                yield
            except CorrflowError as error:
                _print(f"error: {error}")
                raise SystemExit(error.exit_code) from None
            except ModuleNotFoundError as error:
                if error.name != "cv2":
                    raise
                # On a Jetson pip installs no OpenCV, because JetPack contains one.
                _print(
                    "error: expected OpenCV, found no module cv2; on a Jetson use JetPack's (python3 -m venv"
                    " --system-site-packages), elsewhere pip install opencv-python"
                )
                raise SystemExit(InputError.exit_code) from None
            except PermissionError as error:
                if error.filename is None:
                    raise
                _print(f"error: expected access to {error.filename!r}, got none; check its access rights")
                raise SystemExit(InputError.exit_code) from None
        except BaseException as error:
            # After a signal any other error is a consequence of it, such as a terminal that is gone.
            if not isinstance(error, KeyboardInterrupt) and (not stop_requested() or _is_reported(error)):
                raise
            finish_files()
            _print("interrupted: what was written so far is valid")
            raise SystemExit(stop_exit_code()) from None


def _is_reported(error: BaseException) -> bool:
    """Return True for a regular end, and for the end that a nested context has reported."""
    return isinstance(error, SystemExit) and (not error.code or error.code == stop_exit_code())


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
