"""Base of the writers: the protocol `Sink`, and text files that grow by one frame at a time."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.runtime.types import FrameResult

_Sink = TypeVar("_Sink", bound="Sink")


class Sink(Protocol):
    """Writer of results, frame by frame in order. After an interruption the frames written so far are a valid file."""

    def write(self, result: FrameResult) -> None:
        """Write one frame. Raises CorrflowError where the disk or the encoder fails."""
        ...

    def close(self) -> None:
        """Finish the output; without frames no file appears. A second call does nothing.

        Raises CorrflowError where the output cannot be finished.
        """
        ...

    def __enter__(self: _Sink) -> _Sink:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class TableSink(Sink):
    """Text file that grows by complete frames and appears at its path at the end."""

    def __init__(self, path: str | Path) -> None:
        """Create the file. Raises InputError where the path cannot be written to."""
        self._path = Path(path)
        check_writable(self._path)
        self._output = AtomicFile(self._path, exclusive=True)
        # Unbuffered: an error appears at the frame that causes it, and not at the end.
        self._file = open(self._output.part, "wb", buffering=0)  # noqa: SIM115, open until close()
        self._is_empty = True

    def write(self, result: FrameResult) -> None:
        data = self._lines(result).encode()
        if self._is_empty:
            data = self._header.encode() + data
        end = self._file.tell()
        with write_errors(self._path):
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError:
                with suppress(OSError):
                    self._file.truncate(end)
                    self._file.seek(end)
                raise
        self._is_empty = False

    def close(self) -> None:
        if not self._file.closed:
            with write_errors(self._path):
                self._file.close()
                self._output.finish(keep=not self._is_empty)

    _header = ""

    def _lines(self, result: FrameResult) -> str:
        """Return the lines of one frame."""
        raise NotImplementedError


LARGEST_SIDE = 32768
"""Pixels: limit for image sizes that files state, against memory exhaustion."""
