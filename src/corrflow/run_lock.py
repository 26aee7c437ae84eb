"""Lock that keeps a folder for one run at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from corrflow.errors import InputError


def lock_run(path: Path) -> AbstractContextManager[object]:
    """Lock the file `path`, for its folder, until the block or the process ends. The file stays.

    Raises InputError at once where another run holds the lock, and OSError where the file cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        return FileLock(path).acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"expected {str(path.parent)!r} for one run at a time, got another at work in it; wait for it"
        ) from error
