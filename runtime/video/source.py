"""What every source of frames is, whether it reads files or a camera."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol, TypeVar

from corrflow.runtime.types import Frame

_Source = TypeVar("_Source", bound="FrameSource")


class FrameSource(Protocol):
    """Frames in order, read once, from anything that delivers them.

    name:              what to call the source in reports and file names
    frame_count:       how many frames are announced; None where unknown (a live source), and never a promise
    frames_per_second: the average pace; None where the source states none
    """

    name: str
    frame_count: int | None
    frames_per_second: Fraction | None

    def __iter__(self) -> Iterator[Frame]:
        """The frames not read yet, all of one size.

        Raises SourceEndedEarly after the last good frame of a source that stops before its announced end.
        """
        ...

    def close(self) -> None:
        """Release what the source holds; no frames come after it. A second call does nothing."""
        ...

    def __enter__(self: _Source) -> _Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def reason_text(error: Exception) -> str:
    """What the operating system says of an error, else its kind."""
    return getattr(error, "strerror", None) or type(error).__name__
