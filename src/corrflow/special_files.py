"""Special outputs: standard output, pipes and devices, which are written through and never replaced.

"-" is standard output, as `/dev/stdout` is. A program that writes results there sends everything else that it, or a
library, would print there to standard error, see `take_standard_output`.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable
from io import FileIO
from os import PathLike, fspath

_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]+)")
_STANDARD = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}
_taken: list[int] = []


def is_special(path: str | PathLike[str]) -> bool:
    """Return True for standard output, an open descriptor, a pipe or a device."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def open_special(path: str | PathLike[str]) -> FileIO:
    """Open a special output for writing; a pipe waits for its reader. Raises OSError."""
    number = _descriptor(path)
    if number is None:
        return FileIO(os.open(path, os.O_WRONLY), "wb")  # without O_CREAT: a pipe that has gone is an error
    # A copy shares its position with the shell's other writers, and may be closed.
    return FileIO(os.dup(_taken[0] if number == 1 and _taken else number), "wb")


def is_writable(path: str | PathLike[str]) -> bool:
    """Return True unless a special output is closed, or may not be written to. Nothing is opened."""
    number = _descriptor(path)
    if number is None:
        return os.access(path, os.W_OK)
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def take_standard_output(paths: Iterable[str | PathLike[str]]) -> None:
    """Keep standard output for results where one of the paths names it; other text goes to standard error."""
    if any(_descriptor(path) == 1 for path in paths) and not _taken:
        sys.stdout.flush()
        _taken.append(os.dup(1))
        os.dup2(2, 1)  # for libraries as well, which write to the descriptor


def _descriptor(path: str | PathLike[str]) -> int | None:
    """Return the open descriptor that a path names; a redirected one would be replaced as a file."""
    text = fspath(path)
    found = _DESCRIPTOR.fullmatch(text)
    return int(found[1]) if found else _STANDARD.get(text)
