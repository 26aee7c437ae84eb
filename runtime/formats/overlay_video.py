"""Overlay video: masks and points drawn over the frames, as H.264."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.error import FFmpegError

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.encoding import VIDEO_FORMATS, add_h264_stream, encodable
from corrflow.runtime.video.overlay import draw_overlay

CLOCK = 90_000
"""Ticks per second of written videos, as in MPEG; every common frame interval is a whole number of ticks."""


class VideoSink(Sink):
    """Writer of the frames with the results drawn in, as H.264 video that browsers play."""

    def __init__(self, path: str | Path, frames_per_second: Fraction) -> None:
        """Check the path; the video is opened at the first frame.

        path:              ends in .mp4, .m4v, .mov or .mkv, which decides the container
        frames_per_second: announced frame rate; every frame has its own time

        Raises InputError for another suffix, a rate that is not positive, or a path that cannot be written to.
        """
        self._path = Path(path)
        if self._path.suffix.lower() not in VIDEO_FORMATS:
            raise InputError(
                f"expected a video path that ends in {', '.join(VIDEO_FORMATS)}, got {str(path)!r}; rename it to .mp4"
            )
        # Containers and encoders store the rate as a ratio of 32-bit numbers.
        self._rate = Fraction(frames_per_second).limit_denominator(100_000)
        if self._rate <= 0:
            raise InputError(f"expected more than 0 frames per second for {str(path)!r}, got {frames_per_second}")
        check_writable(self._path)
        self._output = AtomicFile(self._path, exclusive=True)
        self._container: OutputContainer | None = None
        self._failed, self._tick = False, -1

    def write(self, result: FrameResult) -> None:
        height, width = result.frame.image.shape[:2]
        encoded = encodable(draw_overlay(result))
        with write_errors(self._path, FFmpegError):
            try:
                container = self._container or self._open(encoded.height, encoded.width)
                if (encoded.height, encoded.width) != self._size:
                    raise CorrflowError(
                        f"expected frames of one size for {self._path.name}, got {width}x{height} midway"
                    )
                # Two frames never share a tick, because a source may repeat its times.
                self._tick = max(self._tick + 1, round(result.frame.time * CLOCK))
                encoded.pts, encoded.time_base = self._tick, Fraction(1, CLOCK)
                container.mux(self._stream.encode(encoded))
            except (FFmpegError, OSError):
                self._failed = True
                raise

    def close(self) -> None:
        container, self._container = self._container, None
        if container is None:
            return
        try:
            with write_errors(self._path, FFmpegError), self._output:
                try:
                    container.mux(self._stream.encode(None))
                finally:
                    container.close()
        except CorrflowError:
            if not self._failed:  # otherwise `write` has raised the cause
                raise

    def _open(self, height: int, width: int) -> OutputContainer:
        file_format = VIDEO_FORMATS[self._path.suffix.lower()]
        options = {} if file_format == "matroska" else {"movflags": "faststart"}  # playable during a download
        self._container = av.open(self._output.part, "w", format=file_format, options=options)
        self._size = height, width
        self._stream = add_h264_stream(self._container, self._rate, self._size, {})
        self._stream.codec_context.time_base = Fraction(1, CLOCK)
        return self._container
