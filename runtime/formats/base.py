"""Where tracks go: indexed masks, an overlay video, and tables of points or of everything.

A finished file appears at its path in one piece: it is written to a hidden neighbour, ".name.part", and renamed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from corrflow.atomic_files import finish, part_of, prepare_place, write_failed
from corrflow.runtime.types import FrameResult

_Sink = TypeVar("_Sink", bound="Sink")


class Sink(Protocol):
    """Takes the tracks of each frame in order; what was written before an interruption stays, whole and valid."""

    def write(self, result: FrameResult) -> None:
        """Add one frame. Raises CorrflowError where the disk or the encoder fails."""
        ...

    def close(self) -> None:
        """Finish the output with the frames written so far; without any, no file appears. A second call does nothing.

        Raises CorrflowError where the output cannot be finished.
        """
        ...

    def __enter__(self: _Sink) -> _Sink:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class TableSink(Sink):
    """A text file that grows by whole frames and appears at its path at the end."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError where the path cannot be written to."""
        self._path = Path(path)
        prepare_place(self._path)
        # Unbuffered, so that a failure shows in the frame that causes it and nothing is left to fail at the end.
        self._file = part_of(self._path).open("wb", buffering=0)
        self._is_empty = True

    def write(self, result: FrameResult) -> None:
        data = self._lines(result).encode()
        if self._is_empty:
            data = self._header.encode() + data
        end = self._file.tell()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
                self._file.seek(end)
            raise write_failed(self._path, error) from None
        self._is_empty = False

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._file.close()
            finish(self._path, keep=not self._is_empty)
        except OSError as error:
            raise write_failed(self._path, error) from None

    _header = ""

    def _lines(self, result: FrameResult) -> str:
        raise NotImplementedError


LARGEST_SIDE = 32768
"""Pixels: a picture is only as large as its JSON says, which may say anything."""
