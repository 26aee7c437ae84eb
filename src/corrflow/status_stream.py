"""Standard error of a command: status lines that cannot be written are dropped, and never end the work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class DroppingStream:
    """Text stream whose writes never fail. Everything else is the wrapped stream's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it where its reader has gone, its disk is full, or it is closed."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write every text."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush what can be written."""
        with suppress(OSError, ValueError):
            self._stream.flush()


@contextmanager
def status_lines_dropped() -> Iterator[None]:
    """Replace `sys.stderr` by a `DroppingStream` while the context lasts; a nested context does nothing.

    A stream that has failed stays replaced, because Python's own flush at the end would change the exit code.
    """
    if isinstance(sys.stderr, DroppingStream):
        yield
        return
    _reserve_descriptors()
    original = sys.stderr
    # None: standard error was closed before the start.
    replacement: Any = DroppingStream(original or open(os.devnull, "w"))  # noqa: SIM115
    sys.stderr = replacement
    try:
        yield
    finally:
        if sys.stderr is replacement and original is not None:
            with suppress(OSError, ValueError):
                original.flush()
                sys.stderr = original


def _reserve_descriptors() -> None:
    """Open the null device where a standard descriptor is closed; a result's file would take its number.

    Libraries write messages to descriptor 2, whatever it is.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
