"""Damage in a video that is skipped: counts, and the sentence that reports them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

_MOST_TIMES = 3


@dataclass
class Damage:
    """Damage that did not end a video.

    skipped:      packets that could not be decoded
    incomplete:   packets with missing parts, which were decoded
    wrong_frames: frames that the decoder marked as damaged, and that were tracked
    missing:      frames of a regular broadcast that are missing by the times of the others
    leading:      frames of the file before the first decodable frame, which has that number
    at_end:       packets that could not be decoded since the last frame
    before:       time stamps of the packets up to the first decodable frame, in seconds
    not_decoded:  packets and damaged frames before that frame
    """

    skipped: int = 0
    incomplete: int = 0
    wrong_frames: int = 0
    missing: int = 0
    leading: int = 0
    at_end: int = 0
    before: array[float] = field(default_factory=lambda: array("d"))
    not_decoded: int = 0
    _times: list[float] = field(default_factory=list)

    def skip(self, time: float) -> None:
        """Count a packet that cannot be decoded, near a time in seconds."""
        self.skipped += 1
        self.at_end += 1
        self._add_time(time)

    def begin(self, first: float | None, step: float | None) -> None:
        """Count the frames before the first decodable frame.

        first: time stamp of that frame in seconds; None for a raw stream, which has no time stamps
        step:  seconds between two frames of a broadcast, whose damaged packets disappear; None for other files
        """
        if first is None:
            self.leading = self.not_decoded
            return
        earlier = [stamp for stamp in self.before if stamp < first]
        self.leading = len(earlier)
        if step is not None and earlier:
            self.leading = max(self.leading, round((first - min(earlier)) / step))

    @property
    def start(self) -> float | None:
        """Time stamp of the file's first frame in seconds, as far as it is known."""
        return min(self.before, default=None)

    def keep_incomplete(self, time: float) -> None:
        """Count a packet with missing parts that is decoded."""
        self.incomplete += 1
        self._add_time(time)

    def keep_wrong_frame(self, time: float) -> None:
        """Count a frame that is tracked though it is damaged."""
        self.wrong_frames += 1
        self._add_time(time)

    def miss(self, count: int, time: float) -> None:
        """Count frames that are missing before a time."""
        self.missing += count
        self._add_time(time)

    def leading_sentence(self, name: str) -> str:
        """Return the report on the beginning, or "" where the first frame was decoded."""
        if not self.leading:
            return ""
        return (
            f"{name}: {_counted(self.leading, 'frame')} at the beginning cannot be decoded, and the first that can is"
            f" frame {self.leading} of the file, counted from 0"
        )

    def sentence(self, name: str, num_frames: int) -> str:
        """Return the report on a video of which num_frames were decoded, or "" for a sound video."""
        parts = []
        if self.skipped:
            parts.append(f"{_counted(self.skipped, 'damaged packet')} {_were(self.skipped)} skipped")
        if self.incomplete:
            parts.append(
                f"{_counted(self.incomplete, 'incomplete packet')} {_were(self.incomplete)} decoded as far as possible"
            )
        if self.wrong_frames and not parts:  # otherwise the packets are the cause
            parts.append(f"{_counted(self.wrong_frames, 'damaged frame')} {_were(self.wrong_frames)} tracked")
        # Where many are missing, the frame rate varies.
        if not parts and 0 < self.missing <= max(3, num_frames // 20):
            parts.append(f"{_counted(self.missing, 'frame')} {_were(self.missing)} lost")
        if not parts:
            return ""
        return f"{name}: {' and '.join(parts)}: frames are missing or wrong around {_times_text(self._times)}"

    def _add_time(self, time: float) -> None:
        # One place is one time, however many packets of it are lost.
        if not self._times or time - self._times[-1] > 1.0:
            self._times.append(time)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"


def _were(count: int) -> str:
    return "were" if count > 1 else "was"


def _times_text(times: Sequence[float]) -> str:
    text = ", ".join(f"{time:.2f}" for time in times[:_MOST_TIMES])
    more = len(times) - _MOST_TIMES
    return f"{text} s" + (f" and at {_counted(more, 'more place')}" if more > 0 else "")
