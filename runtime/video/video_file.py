"""The frames of a video file, and where they end: damage is told from soundness."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from corrflow.errors import InputError, SourceEndedEarly
from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND
from corrflow.runtime.types import Frame, size_text
from corrflow.runtime.video.source import FrameSource, reason_text
from corrflow.runtime.video.truncation import announced, file_is_cut_off

# PyAV maps FFmpeg's codes to its own tree and raises ValueError for pixel formats that it cannot convert.
DECODING_ERRORS = (FFmpegError, OSError, ValueError)

_CUT_OFF = "the file is cut off or damaged there"

# Seconds: announced ends are rounded, and the last frame's duration is often a guess.
_SHORTEST_MISS = 0.25

# FFmpeg draws any file named *.txt or *.nfo as terminal art.
_TEXT_FORMATS = frozenset({"tty", "bintext", "xbin", "idf", "adf"})


class VideoSource(FrameSource):
    """The video stream of a file, decoded frame by frame; rotation from the metadata is applied."""

    def __init__(self, path: Path) -> None:
        """Open the file and decode its first frame. Raises InputError where that fails."""
        self.name = path.stem
        self._file_name = path.name
        try:
            self._cut_off = file_is_cut_off(path)
            # Playlists could otherwise make the demuxer fetch what they name from the network.
            options = {"protocol_whitelist": "file"}
            self._container = av.open(str(path.resolve()), options=options, metadata_errors="replace")
        except DECODING_ERRORS as error:
            raise _no_video(path, f"one that cannot be opened as such ({reason_text(error)})") from None
        try:
            self._open_stream(path)
        except BaseException:
            self._container.close()
            raise

    def _open_stream(self, path: Path) -> None:
        # Music files carry their cover as a video stream.
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams or self._container.format.name in _TEXT_FORMATS:
            raise _no_video(path, "one without a video stream")
        self._stream = streams[0]
        if self._stream.codec_context is None:
            raise _no_video(path, "one in a codec that this build of FFmpeg does not know")
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.frames_per_second: Fraction | None = Fraction(rate) if rate else None
        self.frame_count, self._announced_end = announced(self._container, self._stream)
        self._damage = ""
        self._holes_possible = False
        self._decoding = self._decode()
        try:
            first = next(self._decoding)
        except StopIteration:
            raise _no_video(path, "one of which no frame can be decoded") from None
        self._frames = chain([first], self._decoding)

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def close(self) -> None:
        self._decoding.close()
        self._container.close()

    def _decode(self) -> Generator[Frame, None, None]:
        step = float(1 / (self.frames_per_second or NOMINAL_FRAMES_PER_SECOND))
        shape: tuple[int, ...] | None = None
        index, start, time, longest_gap = 0, 0.0, 0.0, step
        for image, stated_time in self._good_images():
            shape = shape or image.shape
            if image.shape != shape:
                self._damage = f"the picture changes from {size_text(shape)} to {size_text(image.shape)}"
                break
            if index == 0:
                start = stated_time or 0.0
            else:
                # Raw streams carry no time stamps, broken muxers repeat them.
                stamp = time + step if stated_time is None else stated_time - start
                previous, time = time, stamp if stamp > time else time + step
                if self._holes_possible and time - previous > 1.5 * step:
                    self._damage = self._damage or _CUT_OFF
                    break
                longest_gap = max(longest_gap, time - previous)
            yield Frame(image, index, time, f"{index:05d}")
            index += 1
        if index and (reason := self._why_early(index, start + time + step, longest_gap)):
            total = f" of {self.frame_count}" if self.frame_count and self.frame_count > index else ""
            raise SourceEndedEarly(
                f"{self._file_name} ends early: {index}{total} frames decoded, because {reason}; "
                "copy or convert the file again for the rest"
            )

    def _good_images(self) -> Iterator[tuple[np.ndarray, float | None]]:
        """Undamaged pictures and their time in display order up to the first damage, which it names in `_damage`."""
        started, end = False, 0.0
        try:
            for packet in self._container.demux(self._stream):
                if started and packet.is_corrupt:
                    self._damage = _CUT_OFF
                    break
                if packet.size == 0:  # would put the decoder into its final state
                    continue
                end = max(end, (self._seconds(packet.pts) or 0.0) + (self._seconds(packet.duration) or 0.0))
                try:
                    pictures = packet.decode()
                except DECODING_ERRORS:
                    if started:
                        raise
                    continue  # a recording may begin in the middle of a group of pictures
                for picture in pictures:
                    if not picture.is_corrupt:
                        started = True
                        yield upright_image(picture), self._seconds(picture.pts)
                    elif started:
                        self._damage = "the next one is damaged"
                        return
        except DECODING_ERRORS as error:
            self._damage = f"the next one cannot be decoded ({reason_text(error)})"
        # Pictures are stored out of display order: the last ones that the decoder still holds may follow a hole where
        # the rest of the file is missing, and numbering on behind it would give them the wrong index.
        self._holes_possible = self._cut_off or bool(self._damage) or self._misses_time(end, _SHORTEST_MISS)
        with suppress(*DECODING_ERRORS):
            for picture in self._stream.codec_context.decode(None):
                if not picture.is_corrupt:  # a recorded stream ends in the middle of a picture, which is no damage
                    yield upright_image(picture), self._seconds(picture.pts)

    def _seconds(self, time_stamp: int | None) -> float | None:
        # Not picture.time: pictures that come out when the decoder is emptied do not know their time base.
        time_base = self._stream.time_base
        return None if time_stamp is None or time_base is None else float(time_stamp * time_base)

    def _misses_time(self, end: float, tolerance: float) -> bool:
        return self._announced_end is not None and self._announced_end - end > tolerance

    def _why_early(self, decoded: int, end: float, longest_gap: float) -> str:
        """Why the file ended before its announced end, or "" where it did not.

        Announced counts are off in sound files (edit lists, hidden frames, headers written ahead), so that a count
        alone proves nothing: it takes a file shorter than its own structure says, or much missing time.
        """
        if self._damage:
            return self._damage
        if self._cut_off and (self.frame_count is None or decoded < self.frame_count):
            return _CUT_OFF
        if self._misses_time(end, max(_SHORTEST_MISS, 2 * longest_gap)):
            return f"the video stops at {end:.2f} of {self._announced_end:.2f} s"
        return ""


def upright_image(picture: av.VideoFrame) -> np.ndarray:
    """[H, W, 3] uint8, BGR, turned as the display matrix of the file asks."""
    image = picture.to_ndarray(format="bgr24")
    return np.ascontiguousarray(np.rot90(image, round(picture.rotation / 90) % 4))  # both count counter-clockwise


def _no_video(path: Path, got: str) -> InputError:
    return InputError(
        f"expected {str(path)!r} to be a video file, got {got}; check that it plays, or convert it to H.264 in MP4"
    )
