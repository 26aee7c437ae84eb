"""Recordings of a live session: written in place and readable at any time, so that a kill loses one second at most.

A recording never overwrites a file: a taken name gets the next free number, `out-2.mkv`. A device that restarts by
itself, and a stream that returns with another size, therefore get a new file.
"""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.error import FFmpegError

from corrflow.atomic_files import check_writable, write_errors
from corrflow.errors import InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.jsonl import frame_record, json_line
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.encoding import VIDEO_FORMATS, add_h264_stream, encodable
from corrflow.runtime.video.overlay import draw_overlay

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

    def close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            with write_errors(self._path, FFmpegError):
                try:
                    container.mux(self._stream.encode(None))
                finally:
                    container.close()

    def _open(self, size: tuple[int, int], begin: float) -> None:
        file_format = VIDEO_FORMATS[self._path.suffix.lower()]
        path = unique_path(self._path)
        try:
            options = _CONTAINER_OPTIONS.get(file_format, _CONTAINER_OPTIONS["mp4"])
            self._container = av.open(str(path), "w", format=file_format, options=options)
        except (FFmpegError, OSError):
            path.unlink(missing_ok=True)
            raise
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
            self._path = unique_path(path)
            # Unbuffered: an error appears at the frame that causes it, and a kill loses no line.
            self._file = self._path.open("wb", buffering=0)

    def write(self, result: FrameResult) -> None:
        data = json_line(frame_record(result))
        end = self._file.tell()
        with write_errors(self._path):
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError:
                with suppress(OSError):  # removes the incomplete line
                    self._file.truncate(end)
                    self._file.seek(end)
                raise

    def close(self) -> None:
        self._file.close()


def check_recording(path: Path, suffixes: tuple[str, ...]) -> Path:
    """Return the path of a recording.

    suffixes: allowed suffixes; () allows any

    Raises InputError for another suffix, and for a path that cannot be written to.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"expected a recording that ends in {', '.join(suffixes)}, got {str(path)!r}; name it .mkv")
    check_writable(path)
    return path


def unique_path(path: Path) -> Path:
    """Create an empty file at the path, or at the first free one of `name-2.suffix`, `name-3.suffix`, ...

    Raises OSError.
    """
    number = 1
    while True:
        free = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            os.close(os.open(free, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return free
        except FileExistsError:
            number += 1
