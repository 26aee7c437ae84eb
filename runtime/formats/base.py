"""Base of the writers: the protocol `Sink`, and text files that grow by one frame at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Protocol, TypeVar

from corrflow.atomic_files import AtomicFile, check_writable, encoded, write_errors
from corrflow.runtime.types import FrameResult, ObjectResult
from corrflow.special_files import is_special, open_special

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
    """Text file that grows by complete frames and appears at its path at the end; a pipe gets each frame at once."""

    def __init__(self, path: str | Path) -> None:
        """Create the file. Raises InputError where the path cannot be written to."""
        self._path = Path(path)
        check_writable(self._path)
        self._output = AtomicFile(self._path)
        self._is_stream = self._streams and is_special(self._path)
        # A pipe is opened later, because it waits for its reader.
        self._file: FileIO | None = None if self._is_stream else FileIO(self._output.part, "wb")
        self._is_empty = True

    def write(self, result: FrameResult) -> None:
        data = encoded(self._lines(result))
        if self._is_empty:
            data = encoded(self._header) + data
        with write_errors(self._path):
            self._file = self._file or open_special(self._path)
            write_whole(self._file, data, undo=not self._is_stream)
        self._is_empty = False

    def close(self) -> None:
        if self._file is not None and not self._file.closed:
            try:
                with write_errors(self._path):
                    self._file.close()
                    self._output.finish(keep=not self._is_empty and not self._is_stream)
            finally:
                self._output.finish(keep=False)

    _header = ""
    _streams = True  # False where the end changes the beginning

    def _lines(self, result: FrameResult) -> str:
        """Return the lines of one frame."""
        raise NotImplementedError


def write_whole(file: FileIO, data: bytes, undo: bool) -> None:
    """Write all bytes. Raises OSError.

    file: unbuffered, so that an error appears at the frame that causes it, and a kill loses no line
    undo: True to remove an incomplete line
    """
    end = file.tell() if undo else 0
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        if undo:
            with suppress(OSError):
                file.truncate(end)
                file.seek(end)
        raise


def identity_texts(objects: Sequence[ObjectResult]) -> list[str]:
    """Return what a table calls each object: its identity in the labels, else its id; unique."""
    found = [str(one.id if one.track_id is None else one.track_id) for one in objects]
    longer = [f"{one.category or one.name} {text}" for text, one in zip(found, objects, strict=True)]
    return [
        text if found.count(text) == 1 else more if longer.count(more) == 1 else f"id {one.id}"
        for text, more, one in zip(found, longer, objects, strict=True)
    ]


LARGEST_SIDE = 32768
"""Pixels: limit for image sizes that files state, against memory exhaustion."""
MAX_TABLE_BYTES = 64 << 20
"""Limit for tables that are read, against memory exhaustion."""
