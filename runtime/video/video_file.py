"""Video files: frames up to the end, or up to the first damage."""

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

# PyAV raises ValueError for pixel formats that it cannot convert.
DECODING_ERRORS = (FFmpegError, OSError, ValueError)

_CUT_OFF = "the file is cut off or damaged there"

# Announced ends are rounded, and the last frame's duration is often estimated.
_MIN_MISSING_SECONDS = 0.25

# FFmpeg decodes any *.txt or *.nfo as terminal art.
_TEXT_FORMATS = frozenset({"tty", "bintext", "xbin", "idf", "adf"})


class VideoSource(FrameSource):
    """Video stream of a file; frames are rotated as the metadata states."""

    def __init__(self, path: Path) -> None:
        """Open the file and decode its first frame. Raises InputError."""
        self.name = path.stem
        self._file_name = path.name
        try:
            self._cut_off = file_is_cut_off(path)
            # Otherwise a playlist could make the demuxer open network addresses.
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
        # The cover of a music file is a video stream.
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
        self._may_have_gaps = False
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
        for image, stated_time in self._valid_images():
            shape = shape or image.shape
            if image.shape != shape:
                self._damage = f"the frame size changes from {size_text(shape)} to {size_text(image.shape)}"
                break
            if index == 0:
                start = stated_time or 0.0
            else:
                # Raw streams have no time stamps; broken muxers repeat them.
                stamp = time + step if stated_time is None else stated_time - start
                previous, time = time, stamp if stamp > time else time + step
                if self._may_have_gaps and time - previous > 1.5 * step:
                    self._damage = self._damage or _CUT_OFF
                    break
                longest_gap = max(longest_gap, time - previous)
            yield Frame(image, index, time, f"{index:05d}")
            index += 1
        if index and (reason := self._early_end_reason(index, start + time + step, longest_gap)):
            total = f" of {self.frame_count}" if self.frame_count and self.frame_count > index else ""
            raise SourceEndedEarly(
                f"{self._file_name} ends early: {index}{total} frames decoded, because {reason}; "
                "copy or convert the file again for the rest"
            )

    def _valid_images(self) -> Iterator[tuple[np.ndarray, float | None]]:
        """Yield valid images and their times in display order. Damage ends the iteration and sets `_damage`."""
        started, end = False, 0.0
        try:
            for packet in self._container.demux(self._stream):
                if started and packet.is_corrupt:
                    self._damage = _CUT_OFF
                    break
                if packet.size == 0:  # would flush the decoder
                    continue
                end = max(end, (self._seconds(packet.pts) or 0.0) + (self._seconds(packet.duration) or 0.0))
                try:
                    decoded = packet.decode()
                except DECODING_ERRORS:
                    if started:
                        raise
                    continue  # a recording may start in the middle of a group of pictures
                for frame in decoded:
                    if not frame.is_corrupt:
                        started = True
                        yield upright_image(frame), self._seconds(frame.pts)
                    elif started:
                        self._damage = "the next one is damaged"
                        return
        except DECODING_ERRORS as error:
            self._damage = f"the next one cannot be decoded ({reason_text(error)})"
        # Frames are stored out of display order. In a truncated file the last frames of the decoder may follow a gap,
        # and would get wrong indices.
        self._may_have_gaps = self._cut_off or bool(self._damage) or self._misses_time(end, _MIN_MISSING_SECONDS)
        with suppress(*DECODING_ERRORS):
            for frame in self._stream.codec_context.decode(None):
                if not frame.is_corrupt:  # a recorded stream may end in the middle of a frame
                    yield upright_image(frame), self._seconds(frame.pts)

    def _seconds(self, time_stamp: int | None) -> float | None:
        # Not frame.time, because flushed frames have no time base.
        time_base = self._stream.time_base
        return None if time_stamp is None or time_base is None else float(time_stamp * time_base)

    def _misses_time(self, end: float, tolerance: float) -> bool:
        return self._announced_end is not None and self._announced_end - end > tolerance

    def _early_end_reason(self, decoded: int, end: float, longest_gap: float) -> str:
        """Return the reason why the file ended before its announced end, or "" for a complete file.

        The announced number of frames is wrong in many complete files (edit lists, hidden frames). A file therefore
        ended early only if it is cut off, or if much time is missing.
        """
        if self._damage:
            return self._damage
        if self._cut_off and (self.frame_count is None or decoded < self.frame_count):
            return _CUT_OFF
        if self._misses_time(end, max(_MIN_MISSING_SECONDS, 2 * longest_gap)):
            return f"the video stops at {end:.2f} of {self._announced_end:.2f} s"
        return ""


def upright_image(frame: av.VideoFrame) -> np.ndarray:
    """Convert a frame to [H, W, 3] uint8, BGR, rotated by the display matrix of the file."""
    image = frame.to_ndarray(format="bgr24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))  # both count counter-clockwise


def _no_video(path: Path, got: str) -> InputError:
    return InputError(
        f"expected {str(path)!r} to be a video file, got {got}; check that it plays, or convert it to H.264 in MP4"
    )
