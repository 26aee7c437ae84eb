"""Overlay video: masks and points drawn over the frames, as H.264."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.error import FFmpegError

from corrflow.atomic_files import finish, part_of, prepare_place, write_failed
from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.encoding import VIDEO_FORMATS, add_h264_stream, encodable
from corrflow.runtime.video.overlay import draw_overlay

CLOCK = 90_000
"""Ticks a second of written videos, as broadcasts have: every usual pace is a whole number of them."""


class VideoSink(Sink):
    """The tracks drawn over the frames, as H.264 video that browsers play."""

    def __init__(self, path: str | Path, frames_per_second: Fraction) -> None:
        """Check the path; the frame size comes with the first frame.

        path:              its suffix says the container: .mp4, .m4v, .mov or .mkv
        frames_per_second: announced in the file; every picture is shown at its frame's own time

        Raises InputError for another suffix, a pace that is not positive, or a place that cannot be written to.
        """
        self._path = Path(path)
        if self._path.suffix.lower() not in VIDEO_FORMATS:
            raise InputError(
                f"expected a video path that ends in {', '.join(VIDEO_FORMATS)}, got {str(path)!r}; rename it to .mp4"
            )
        # Containers and encoders hold the pace as a ratio of 32-bit numbers.
        self._rate = Fraction(frames_per_second).limit_denominator(100_000)
        if self._rate <= 0:
            raise InputError(f"expected more than 0 frames per second for {str(path)!r}, got {frames_per_second}")
        prepare_place(self._path)
        self._container: OutputContainer | None = None
        self._failed, self._tick = False, -1

    def write(self, result: FrameResult) -> None:
        height, width = result.frame.image.shape[:2]
        picture = encodable(draw_overlay(result))
        try:
            if self._container is None:
                self._open(picture.height, picture.width)
            if (picture.height, picture.width) != self._size:
                raise CorrflowError(f"expected frames of one size for {self._path.name}, got {width}x{height} midway")
            # Two frames never share a tick, so that none is lost where a source repeats its times.
            self._tick = max(self._tick + 1, round(result.frame.time * CLOCK))
            picture.pts, picture.time_base = self._tick, Fraction(1, CLOCK)
            self._mux(picture)
        except (FFmpegError, OSError) as error:
            self._failed = True
            raise write_failed(self._path, error) from None

    def close(self) -> None:
        container, self._container = self._container, None
        if container is None:
            return
        try:
            try:
                container.mux(self._stream.encode(None))
            finally:
                container.close()
            finish(self._path)
        except (FFmpegError, OSError) as error:
            part_of(self._path).unlink(missing_ok=True)
            if not self._failed:  # otherwise reported already, and this only follows from it
                raise write_failed(self._path, error) from None

    def _open(self, height: int, width: int) -> None:
        file_format = VIDEO_FORMATS[self._path.suffix.lower()]
        options = {} if file_format == "matroska" else {"movflags": "faststart"}  # to play while it still downloads
        self._container = av.open(str(part_of(self._path)), "w", format=file_format, options=options)
        self._size = height, width
        self._stream = add_h264_stream(self._container, self._rate, self._size, {})
        self._stream.codec_context.time_base = Fraction(1, CLOCK)

    def _mux(self, picture: av.VideoFrame) -> None:
        assert self._container is not None
        self._container.mux(self._stream.encode(picture))
