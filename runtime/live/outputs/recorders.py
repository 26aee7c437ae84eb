"""Recordings of a live session: written in place and readable at any time, so that a kill loses one second at most.

A recording never overwrites a file: a taken name gets the next free number, `out-2.mkv`. A device that restarts by
itself, and a stream that returns with another size, therefore get a new file.
"""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from io import FileIO
from pathlib import Path

import av
from av.container import OutputContainer
from av.error import FFmpegError

from corrflow.atomic_files import check_writable, write_errors
from corrflow.errors import InputError
from corrflow.output_paths import unique_path
from corrflow.runtime.formats.base import Sink, write_whole
from corrflow.runtime.formats.jsonl import frame_record, json_line
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.encoding import VIDEO_FORMATS, add_h264_stream, encodable
from corrflow.runtime.video.overlay import draw_overlay
from corrflow.special_files import is_special, open_special

_TICKS = 1000  # ticks per second of time stamps
_NOMINAL_RATE = 30  # for the encoder's rate control only; every frame has its own time

# Encoded frames are written to disk at once, in parts that are playable on their own.
_CONTAINER_OPTIONS = {
    "matroska": {"cluster_time_limit": "1000", "flush_packets": "1"},
    "mp4": {
        "movflags": "frag_keyframe+empty_moov+default_base_moof",
        "frag_duration": "1000000",
        "flush_packets": "1",
    },
}


class LiveVideoSink(Sink):
    """Writer of frames with the results drawn in, at their times of capture: H.264 in Matroska or fragmented MP4."""

    def __init__(self, path: Path) -> None:
        """Check the path, which ends in .mkv, .mp4, .m4v or .mov. A new frame size starts a new file.

        Raises InputError.
        """
        self._path = check_recording(path, tuple(VIDEO_FORMATS))
        self._container: OutputContainer | None = None
        self._file: Path | None = None  # without a frame so far

    def write(self, result: FrameResult) -> None:
        encoded = encodable(draw_overlay(result))
        size = (encoded.height, encoded.width)
        with write_errors(self._path, FFmpegError):
            if self._container is None or size != self._size:
                self.close()
                self._open(size, result.frame.time)
            assert self._container is not None
            self._last = max(self._last + 1, round((result.frame.time - self._begin) * _TICKS))
            encoded.pts, encoded.time_base = self._last, Fraction(1, _TICKS)
            self._container.mux(self._stream.encode(encoded))
            self._file = None

    def close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            try:
                with write_errors(self._path, FFmpegError):
                    try:
                        container.mux(self._stream.encode(None))
                    finally:
                        container.close()
            finally:
                if self._file is not None:  # a full disk must not get a file for every attempt
                    self._file.unlink(missing_ok=True)
                    self._file = None

    def _open(self, size: tuple[int, int], begin: float) -> None:
        file_format = VIDEO_FORMATS[self._path.suffix.lower()]
        path = self._path if is_special(self._path) else unique_path(self._path)
        try:
            options = _CONTAINER_OPTIONS.get(file_format, _CONTAINER_OPTIONS["mp4"])
            self._container = av.open(os.path.abspath(path), "w", format=file_format, options=options)
        except (FFmpegError, OSError):
            if not is_special(path):
                path.unlink(missing_ok=True)
            raise
        self._file = None if is_special(path) else path
        # zerolatency: no frame waits in the encoder, where a kill would lose it.
        encoder = {"tune": "zerolatency", "g": str(2 * _NOMINAL_RATE)}
        self._stream = add_h264_stream(self._container, Fraction(_NOMINAL_RATE), size, encoder)
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._size, self._begin, self._last = size, begin, -1


class LiveJsonLinesSink(Sink):
    """Writer of one JSON line for each frame, see `frame_record`; each line is on disk at once."""

    def __init__(self, path: Path) -> None:
        """Create the file. Raises InputError or CorrflowError."""
        check_recording(path, ())
        with write_errors(path):
            self._path = path if is_special(path) else unique_path(path)
            self._file = open_special(path) if is_special(path) else FileIO(self._path, "wb")

    def write(self, result: FrameResult) -> None:
        with write_errors(self._path):
            write_whole(self._file, json_line(frame_record(result)), undo=not is_special(self._path))

    def close(self) -> None:
        self._file.close()
        if not is_special(self._path):
            with suppress(OSError):
                if not self._path.stat().st_size:  # a full disk must not get a file for every attempt
                    self._path.unlink()


def check_recording(path: Path, suffixes: tuple[str, ...]) -> Path:
    """Return the path of a recording.

    suffixes: allowed suffixes; () allows any

    Raises InputError for another suffix, and for a path that cannot be written to.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"expected a recording that ends in {', '.join(suffixes)}, got {str(path)!r}; name it .mkv")
    check_writable(path)
    return path
