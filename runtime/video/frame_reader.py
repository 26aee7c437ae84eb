"""Frames of a source by their index."""

from __future__ import annotations

from collections.abc import Iterator

from corrflow.errors import InputError
from corrflow.runtime.types import Frame
from corrflow.runtime.video.open_source import open_source
from corrflow.runtime.video.source import FrameSource


class FrameReader:
    """Reader of single frames in any order, with one frame in memory.

    Frames are decoded forward. For an earlier frame the source is opened again.
    """

    def __init__(self, source: str) -> None:
        """Open a source, see `open_source`. Raises InputError."""
        self._spec = source
        self._source: FrameSource | None = None
        self._open()

    def read(self, index: int) -> Frame:
        """Return a frame, or the first one for an index in a beginning that cannot be decoded.

        Raises InputError for an index below 0 or past the end, SourceEndedEarly for one past damage.
        """
        if index < 0:
            raise InputError(f"expected a frame from 0 on of {self.name}, got {index}; choose one of those")
        if self._source is None or index < self._next:
            self._open()
        try:
            for frame in self._frames:
                self._next = frame.index + 1
                if frame.index >= index:
                    return frame
        except BaseException:
            self.close()
            raise
        self.close()
        raise InputError(
            f"expected a frame from 0 to {self._next - 1} of {self.name}, got {index}; choose one of those"
        )

    def close(self) -> None:
        """Close the source; a later read opens it again."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def _open(self) -> None:
        self.close()
        self._source = open_source(self._spec)
        self.name, self.frame_count = self._source.name, self._source.frame_count
        self._frames: Iterator[Frame] = iter(self._source)
        self._next = 0
