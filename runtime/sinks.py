"""Where tracks go: indexed masks, an overlay video, and tables of points or of everything.

A finished file appears at its path in one piece: it is written to a hidden neighbour, ".name.part", and renamed.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Protocol, TypeVar

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from PIL import Image

from corrflow.plugins.errors import CorrflowError, InputError
from corrflow.runtime.overlay import davis_palette, draw_overlay
from corrflow.runtime.tracks import Frame, ObjectTrack, Tracks
from corrflow.runtime.video_encoding import add_h264_stream, encodable

VIDEO_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}

CLOCK = 90_000
"""Ticks a second of written videos, as broadcasts have: every usual pace is a whole number of them."""

_Sink = TypeVar("_Sink", bound="Sink")


class Sink(Protocol):
    """Takes the tracks of each frame in order; what was written before an interruption stays, whole and valid."""

    def write(self, frame: Frame, tracks: Tracks) -> None:
        """Add one frame. Raises CorrflowError where the disk or the encoder fails."""
        ...

    def close(self) -> None:
        """Finish the output with the frames written so far; without any, no file appears. A second call does nothing.

        Raises CorrflowError where the output cannot be finished.
        """
        ...

    def __enter__(self: _Sink) -> _Sink:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class MaskFolderSink(Sink):
    """One palette PNG of object ids per frame, named `{frame.name}.png`, as DAVIS stores its masks."""

    def __init__(self, folder: str | Path) -> None:
        """Make the folder where it is missing. Raises InputError where nothing can be written into it."""
        self._folder = Path(folder)
        prepare_place(self._folder / "mask.png")
        self._palette = davis_palette().tobytes()

    def write(self, frame: Frame, tracks: Tracks) -> None:
        image = Image.fromarray(np.ascontiguousarray(tracks.mask))
        image.putpalette(self._palette)
        encoded = io.BytesIO()
        image.save(encoded, format="PNG")
        save_whole(os.path.join(self._folder, f"{frame.name}.png"), encoded.getvalue())

    def close(self) -> None:
        pass


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

    def write(self, frame: Frame, tracks: Tracks) -> None:
        height, width = frame.image.shape[:2]
        picture = encodable(draw_overlay(frame.image, tracks))
        try:
            if self._container is None:
                self._open(picture.height, picture.width)
            if (picture.height, picture.width) != self._size:
                raise CorrflowError(f"expected frames of one size for {self._path.name}, got {width}x{height} midway")
            # Two frames never share a tick, so that none is lost where a source repeats its times.
            self._tick = max(self._tick + 1, round(frame.time * CLOCK))
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


class TableSink(Sink):
    """A text file that grows by whole frames and appears at its path at the end."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError where the path cannot be written to."""
        self._path = Path(path)
        prepare_place(self._path)
        # Unbuffered, so that a failure shows in the frame that causes it and nothing is left to fail at the end.
        self._file = part_of(self._path).open("wb", buffering=0)
        self._is_empty = True

    def write(self, frame: Frame, tracks: Tracks) -> None:
        data = self._lines(frame, tracks).encode()
        if self._is_empty:
            data = self._header.encode() + data
        end = self._file.tell()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
                self._file.seek(end)
            raise write_failed(self._path, error) from None
        self._is_empty = False

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._file.close()
            finish(self._path, keep=not self._is_empty)
        except OSError as error:
            raise write_failed(self._path, error) from None

    _header = ""

    def _lines(self, frame: Frame, tracks: Tracks) -> str:
        raise NotImplementedError


class KeypointCsvSink(TableSink):
    """A CSV table with one row per point and frame: frame,time,object,point,x,y,confidence.

    frame is the index from 0, time in seconds, object the id, point the point's name, x and y in pixels with (0, 0) at
    the centre of the top-left pixel, confidence 0..1. Objects given by masks have no rows.
    """

    _header = "frame,time,object,point,x,y,confidence\n"

    def _lines(self, frame: Frame, tracks: Tracks) -> str:
        lines = io.StringIO()
        table = csv.writer(lines, lineterminator="\n")
        for track in tracks.objects:
            for name, (x, y, confidence) in _points(track).items():
                numbers = (_text(x, 2), _text(y, 2), _text(confidence, 4))
                table.writerow([frame.index, f"{frame.time:.6f}", track.id, name, *numbers])
        return lines.getvalue()


class JsonLinesSink(TableSink):
    """One JSON object a line and frame: frame, time, name and objects.

    Each object has id, name, confidence, visible, box ([x0, y0, x1, y1], last row and column outside, or null) and
    points ({name: [x, y, confidence]}, empty for masks). Numbers that are not finite become null.
    """

    def _lines(self, frame: Frame, tracks: Tracks) -> str:
        record = {
            "frame": frame.index,
            "time": _rounded(frame.time, 6),
            "name": frame.name,
            "objects": [object_record(track) for track in tracks.objects],
        }
        return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def object_record(track: ObjectTrack) -> dict[str, object]:
    """An object of one frame as JSON has it; see `JsonLinesSink`."""
    return {
        "id": track.id,
        "name": track.name,
        "confidence": _rounded(track.confidence, 4),
        "visible": bool(track.visible),
        "box": None if track.box is None else [int(side) for side in track.box],
        "points": {
            name: [_rounded(x, 2), _rounded(y, 2), _rounded(confidence, 4)]
            for name, (x, y, confidence) in _points(track).items()
        },
    }


def _points(track: ObjectTrack) -> dict[str, tuple[float, float, float]]:
    """(x, y, confidence) of each named point; none for masks."""
    if track.points is None:
        return {}
    count = len(track.points)
    confidence = np.full(count, track.confidence) if track.point_confidence is None else track.point_confidence
    return {
        name: (float(x), float(y), float(certainty))
        for name, (x, y), certainty in zip(track.point_names, track.points, confidence, strict=True)
    }


def _rounded(number: float, digits: int) -> float | None:
    return round(float(number), digits) if math.isfinite(number) else None


def _text(number: float, digits: int) -> str:
    return f"{number:.{digits}f}" if math.isfinite(number) else ""


def part_of(path: Path) -> Path:
    """Where a file is written before it is whole: beside its path, since a rename is atomic only within one disk."""
    return path.with_name(f".{path.name}.part")


def finish(path: Path, keep: bool = True) -> None:
    """Give what was written beside the path its name, or remove it where it is not worth keeping. Raises OSError."""
    if keep:
        os.replace(part_of(path), path)
    else:
        part_of(path).unlink()


def save_whole(path: str | Path, content: bytes) -> None:
    """Write a file that appears with all its content or not at all; raises CorrflowError where that fails.

    The path of one of a video's many files is text: Python 3.12's pathlib keeps every name that it has met for ever.
    """
    folder, name = os.path.split(path)
    part = os.path.join(folder, f".{name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(part)
        raise write_failed(path, error) from None


def prepare_place(path: Path) -> None:
    """Make the path's folder and prove that a file can be written there, before any work is spent."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        part_of(path).touch()
        part_of(path).unlink()
    except OSError as error:
        raise InputError(
            f"expected to write to {str(path)!r}, got an error ({error.strerror}); choose another place"
        ) from None


def write_failed(path: str | Path, error: Exception) -> CorrflowError:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return CorrflowError(
        f"expected to write {str(path)!r}, got an error ({reason}); free some space or choose another place"
    )
