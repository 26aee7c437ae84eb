"""Protocol of frame sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol, TypeVar

from corrflow.runtime.types import Frame

_Source = TypeVar("_Source", bound="FrameSource")


@dataclass(frozen=True)
class SoundTrack:
    """Sound of a source.

    path:  file with the sound
    start: seconds in that file at which frame 0 is displayed
    """

    path: Path
    start: float


class FrameSource(Protocol):
    """Source of frames, which are read once and in order.

    name:              name in reports and file names
    frame_count:       announced number of frames, which may be wrong; None if unknown
    frames_per_second: average frame rate; None if unknown
    frame_names:       names of the frames where they are known beforehand, as of images in a folder
    sample_aspect_ratio: width of a pixel over its height; None for square pixels
    sound:             sound of the file; None without
    paths:             files that the frames are from, for formats that name them
    """

    name: str
    frame_count: int | None
    frames_per_second: Fraction | None
    frame_names: Sequence[str] | None = None
    sample_aspect_ratio: Fraction | None = None
    sound: SoundTrack | None = None
    paths: Sequence[Path] = ()

    @property
    def notes(self) -> list[str]:
        """Sentences for the user about frames that are missing or changed; complete after the last frame.

        A writer that is given the source adds what it leaves out.
        """
        return self.__dict__.setdefault("_notes", [])

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
