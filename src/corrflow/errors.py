"""Errors that users see: one sentence with the expectation, the cause and a remedy.

CorrflowError            exit code 1: a failure during the work; files written so far are valid
├── InputError           exit code 2: invalid input; nothing was written
└── SourceEndedEarly     exit code 1: a video stopped before its announced end
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


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

    Every command runs in this context, which alone decides exit codes.
    """
    try:
        yield
    except CorrflowError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        # On a Jetson pip installs no OpenCV, because JetPack contains one.
        print(
            "error: expected OpenCV, found no module cv2; on a Jetson use JetPack's (python3 -m venv"
            " --system-site-packages), elsewhere pip install opencv-python",
            file=sys.stderr,
        )
        raise SystemExit(InputError.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted: what was written so far is valid", file=sys.stderr)
        raise SystemExit(130) from None
