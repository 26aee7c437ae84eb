"""Recordings of a live run: written in place and readable at every moment, so that a kill costs a second at most.

A recording never replaces an earlier one: where the name is taken, the next free number is appended, `out-2.mkv`. That
is what a device that restarts by itself needs, and what a stream that returns at another size gets.
"""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.error import FFmpegError

from corrflow.atomic_files import prepare_place, write_failed
from corrflow.errors import InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.jsonl import frame_record, json_line
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.encoding import VIDEO_FORMATS, add_h264_stream, encodable
from corrflow.runtime.video.overlay import draw_overlay

_TICKS = 1000  # a second in a recording's time stamps
_NOMINAL_RATE = 30  # for the encoder's rate control only; every frame has its own time

# Whatever is encoded goes to the disk at once, in pieces that stand alone.
_CONTAINER_OPTIONS = {
    "matroska": {"cluster_time_limit": "1000", "flush_packets": "1"},
    "mp4": {
        "movflags": "frag_keyframe+empty_moov+default_base_moof",
        "frag_duration": "1000000",
        "flush_packets": "1",
    },
}


class LiveVideoSink(Sink):
    """The tracks drawn over the frames at the times they were captured, as H.264 in Matroska or fragmented MP4."""

    def __init__(self, path: Path) -> None:
        """path: ends in .mkv, .mp4, .m4v or .mov; one more file is begun whenever the frames change size."""
        self._path = check_recording(path, tuple(VIDEO_FORMATS))
        self._container: OutputContainer | None = None

    def write(self, result: FrameResult) -> None:
        picture = encodable(draw_overlay(result))
        size = (picture.height, picture.width)
        try:
            if self._container is None or size != self._size:
                self.close()
                self._open(size, result.frame.time)
            assert self._container is not None
            self._last = max(self._last + 1, round((result.frame.time - self._begin) * _TICKS))
            picture.pts, picture.time_base = self._last, Fraction(1, _TICKS)
            self._container.mux(self._stream.encode(picture))
        except (FFmpegError, OSError) as error:
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
        except (FFmpegError, OSError) as error:
            raise write_failed(self._path, error) from None

    def _open(self, size: tuple[int, int], begin: float) -> None:
        form = VIDEO_FORMATS[self._path.suffix.lower()]
        path = unique_path(self._path)
        try:
            options = _CONTAINER_OPTIONS.get(form, _CONTAINER_OPTIONS["mp4"])
            self._container = av.open(str(path), "w", format=form, options=options)
        except (FFmpegError, OSError):
            path.unlink(missing_ok=True)
            raise
        # zerolatency: no frame waits in the encoder, so that a kill loses none that was written.
        encoder = {"tune": "zerolatency", "g": str(2 * _NOMINAL_RATE)}
        self._stream = add_h264_stream(self._container, Fraction(_NOMINAL_RATE), size, encoder)
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._size, self._begin, self._last = size, begin, -1


class LiveJsonLinesSink(Sink):
    """One JSON object a line and frame (`frame_record`), on the disk as soon as it is written."""

    def __init__(self, path: Path) -> None:
        """Raises CorrflowError where the file cannot be made."""
        check_recording(path, ())
        try:
            self._path = unique_path(path)
            # Unbuffered, so that a failure shows in the frame that causes it and a kill finds nothing unwritten.
            self._file = self._path.open("wb", buffering=0)
        except OSError as error:
            raise write_failed(path, error) from None

    def write(self, result: FrameResult) -> None:
        data = json_line(frame_record(result))
        end = self._file.tell()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            with suppress(OSError):  # no half line stays behind
                self._file.truncate(end)
                self._file.seek(end)
            raise write_failed(self._path, error) from None

    def close(self) -> None:
        self._file.close()


def check_recording(path: Path, suffixes: tuple[str, ...]) -> Path:
    """Raise InputError for a suffix that is not among these, where there are any, or an unwritable place."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"expected a recording that ends in {', '.join(suffixes)}, got {str(path)!r}; name it .mkv")
    prepare_place(path)
    return path


def unique_path(path: Path) -> Path:
    """Make an empty file at the path, or at the first free of `name-2.suffix`, `name-3.suffix`, ...

    Raises OSError where no file can be made.
    """
    number = 1
    while True:
        free = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            os.close(os.open(free, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return free
        except FileExistsError:
            number += 1
