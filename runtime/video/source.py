"""Protocol of frame sources."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol, TypeVar

from corrflow.runtime.types import Frame

_Source = TypeVar("_Source", bound="FrameSource")


class FrameSource(Protocol):
    """Source of frames, which are read once and in order.

    name:              name in reports and file names
    frame_count:       announced number of frames, which may be wrong; None if unknown
    frames_per_second: average frame rate; None if unknown
    """

    name: str
    frame_count: int | None
    frames_per_second: Fraction | None

    def __iter__(self) -> Iterator[Frame]:
        """Return an iterator over the remaining frames, all of one size.

        The iterator raises SourceEndedEarly after the last valid frame of a source that stops before its announced end.
        """
        ...

    def close(self) -> None:
        """Release the source; no frames follow. A second call does nothing."""
        ...

    def __enter__(self: _Source) -> _Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def reason_text(error: Exception) -> str:
    """Return the operating system's text of an error, else its type."""
    return getattr(error, "strerror", None) or type(error).__name__
