"""The errors that users see: one sentence that says what was expected, what was found and what to do.

    CorrflowError            exit code 1: something failed midway, what was written so far is valid
    ├── InputError           exit code 2: the input is wrong, nothing was written
    └── SourceEndedEarly     exit code 1: a video stopped before its announced end

They live in the lowest package because every stage raises them and imports point downwards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class CorrflowError(Exception):
    """A failure that the user can understand and act on; the message is the whole report."""

    exit_code = 1


class InputError(CorrflowError):
    """Something the user gave is wrong: the message says expected, got and remedy."""

    exit_code = 2


class SourceEndedEarly(CorrflowError):
    """A frame source stopped before its announced end; every frame before that was delivered."""


@contextmanager
def errors_reported() -> Iterator[None]:
    """Turn a `CorrflowError` into one line on standard error and its exit code, without a traceback.

    Every command wraps its body in this, so that the exit codes are decided in one place.
    """
    try:
        yield
    except CorrflowError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        # pip installs no OpenCV on a Jetson, where JetPack has one.
        print(
            "error: expected OpenCV, found no module cv2; on a Jetson use JetPack's (python3 -m venv"
            " --system-site-packages), elsewhere pip install opencv-python",
            file=sys.stderr,
        )
        raise SystemExit(InputError.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted: what was written so far is valid", file=sys.stderr)
        raise SystemExit(130) from None
