"""Where frames come from: a video file, a folder of pictures or a glob pattern of pictures.

`open_source` is the only entry: it looks at the text the user gave and returns a `FrameSource`. A camera or a network
stream is one more class that satisfies the protocol and one more line in `open_source`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeVar

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from corrflow.plugins.errors import InputError, SourceEndedEarly
from corrflow.runtime.tracks import Frame

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

NOMINAL_FRAMES_PER_SECOND = Fraction(24)
"""The pace of a source that states none, such as a folder of pictures; DAVIS is shown at it."""

# PyAV maps FFmpeg's codes to its own tree and raises ValueError for pixel formats that it cannot convert.
_DECODING_ERRORS = (FFmpegError, OSError, ValueError)

_CUT_OFF = "the file is cut off or damaged there"

# Seconds: announced ends are rounded, and the last frame's duration is often a guess.
_SHORTEST_MISS = 0.25

# FFmpeg draws any file named *.txt or *.nfo as terminal art.
_TEXT_FORMATS = frozenset({"tty", "bintext", "xbin", "idf", "adf"})

_Source = TypeVar("_Source", bound="FrameSource")


class FrameSource(Protocol):
    """Frames in order, read once, from anything that delivers them.

    name:              what to call the source in reports and file names
    frame_count:       how many frames are announced; None where unknown (a live source), and never a promise
    frames_per_second: the average pace; None where the source states none
    """

    name: str
    frame_count: int | None
    frames_per_second: Fraction | None

    def __iter__(self) -> Iterator[Frame]:
        """The frames not read yet, all of one size.

        Raises SourceEndedEarly after the last good frame of a source that stops before its announced end.
        """
        ...

    def close(self) -> None:
        """Release what the source holds; no frames come after it. A second call does nothing."""
        ...

    def __enter__(self: _Source) -> _Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_source(spec: str) -> FrameSource:
    """Open what the user named and decode its first frame, so that an unusable source is refused before any output.

    spec: path of a video file, of a picture, of a folder of pictures, or a glob pattern of pictures ("clip/*.jpg",
          "**" included); pictures come in natural order, frame2 before frame10

    Raises InputError where nothing is found, nothing can be decoded or two pictures share one name.
    """
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        pictures = _find_pictures(os.path.join(glob.escape(path), "*"), f"folder {spec!r}")
        return PictureSource(pictures, name=Path(path).resolve().name)
    if os.path.isfile(path):
        if _is_picture(Path(path)):
            return PictureSource([Path(path)], name=Path(path).stem)
        return VideoSource(Path(path))
    if glob.has_magic(path):
        pictures = _find_pictures(path, f"pattern {spec!r}")
        return PictureSource(pictures, name=pictures[0].resolve().parent.name)
    problem = "is neither a file nor a folder" if os.path.exists(path) else "does not exist"
    raise InputError(
        f"expected a video file, a folder of pictures or a glob pattern, got {spec!r}, which {problem}; check the path"
    )


def natural_order(path: Path) -> list[str | int]:
    """The sorting key that puts frame2 before frame10: runs of digits compare as numbers, the rest as text."""
    parts = re.split(r"([0-9]+)", path.as_posix())
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)]


class PictureSource(FrameSource):
    """Pictures in the given order, each decoded when its turn comes."""

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        """Decode the first of the paths (at least one).

        Raises InputError where it cannot be decoded or where two paths share one stem.
        """
        _refuse_shared_names(paths)
        self.name = name
        self.frame_count: int | None = len(paths)
        self.frames_per_second: Fraction | None = None
        try:
            first = _read_picture(paths[0])
        except ValueError as error:
            raise InputError(
                f"expected a picture in {str(paths[0])!r}, got a file that {error}; replace or remove it"
            ) from None
        self._frames = chain([_picture_frame(paths, 0, first)], self._later_frames(paths, first.shape))

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def close(self) -> None:
        self._frames = iter(())

    def _later_frames(self, paths: Sequence[Path], shape: tuple[int, ...]) -> Iterator[Frame]:
        for index in range(1, len(paths)):
            try:
                image = _read_picture(paths[index])
                if image.shape != shape:
                    raise ValueError(f"is {_size(image.shape)} where the first picture is {_size(shape)}")
            except ValueError as error:
                raise SourceEndedEarly(
                    f"{self.name} ends early: {index} of {len(paths)} frames decoded, because {paths[index].name} "
                    f"{error}; replace or remove that picture for the rest"
                ) from None
            yield _picture_frame(paths, index, image)


class VideoSource(FrameSource):
    """The video stream of a file, decoded frame by frame; rotation from the metadata is applied."""

    def __init__(self, path: Path) -> None:
        """Open the file and decode its first frame. Raises InputError where that fails."""
        self.name = path.stem
        self._file_name = path.name
        try:
            self._cut_off = _file_is_cut_off(path)
            # Playlists could otherwise make the demuxer fetch what they name from the network.
            options = {"protocol_whitelist": "file"}
            self._container = av.open(str(path.resolve()), options=options, metadata_errors="replace")
        except _DECODING_ERRORS as error:
            raise _no_video(path, f"one that cannot be opened as such ({_reason(error)})") from None
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
        self.frame_count, self._announced_end = _announced(self._container, self._stream)
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
                self._damage = f"the picture changes from {_size(shape)} to {_size(image.shape)}"
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
                except _DECODING_ERRORS:
                    if started:
                        raise
                    continue  # a recording may begin in the middle of a group of pictures
                for picture in pictures:
                    if not picture.is_corrupt:
                        started = True
                        yield _upright_image(picture), self._seconds(picture.pts)
                    elif started:
                        self._damage = "the next one is damaged"
                        return
        except _DECODING_ERRORS as error:
            self._damage = f"the next one cannot be decoded ({_reason(error)})"
        # Pictures are stored out of display order: the last ones that the decoder still holds may follow a hole where
        # the rest of the file is missing, and numbering on behind it would give them the wrong index.
        self._holes_possible = self._cut_off or bool(self._damage) or self._misses_time(end, _SHORTEST_MISS)
        with suppress(*_DECODING_ERRORS):
            for picture in self._stream.codec_context.decode(None):
                if not picture.is_corrupt:  # a recorded stream ends in the middle of a picture, which is no damage
                    yield _upright_image(picture), self._seconds(picture.pts)

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


def _find_pictures(pattern: str, place: str) -> list[Path]:
    """The pictures that a pattern matches in natural order; InputError that names the place where there are none."""
    # glob leaves hidden files out, and with them the "._name.jpg" companions that macOS puts on foreign disks.
    paths = [path for path in map(Path, glob.iglob(pattern, recursive=True)) if _is_picture(path) and path.is_file()]
    if not paths:
        raise InputError(
            f"expected pictures (jpg, png, bmp, tif, webp) in the {place}, got none; check path and access rights"
        )
    return sorted(paths, key=lambda path: (natural_order(path), str(path)))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def _refuse_shared_names(paths: Sequence[Path]) -> None:
    """Results are written under the pictures' stems, where two of one stem would overwrite each other."""
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise InputError(
                f"expected pictures with different names, got {str(other)!r} and {str(path)!r}; "
                f"name one kind with a glob pattern such as '{path.parent / ('*' + path.suffix)}'"
            )


def _read_picture(path: Path) -> np.ndarray:
    """[H, W, 3] uint8, BGR, upright by its EXIF orientation; ValueError with the end of a sentence otherwise."""
    try:
        # imread cannot open every path that Python can: on Windows it takes no characters outside the code page.
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        reason = _reason(error) if isinstance(error, OSError) else "no picture in it"
        raise ValueError(f"cannot be read ({reason})") from None
    if image is None:
        raise ValueError("cannot be decoded")
    return image


def _picture_frame(paths: Sequence[Path], index: int, image: np.ndarray) -> Frame:
    return Frame(image, index, float(index / NOMINAL_FRAMES_PER_SECOND), paths[index].stem)


def _upright_image(picture: av.VideoFrame) -> np.ndarray:
    """[H, W, 3] uint8, BGR, turned as the display matrix of the file asks."""
    image = picture.to_ndarray(format="bgr24")
    return np.ascontiguousarray(np.rot90(image, round(picture.rotation / 90) % 4))  # both count counter-clockwise


def _announced(container: InputContainer, stream: av.VideoStream) -> tuple[int | None, float | None]:
    """How many frames and which end, in seconds, the container states; None for what it leaves open.

    Transport and raw streams state nothing: FFmpeg estimates their duration from what is there.
    """
    formats = container.format.name.split(",")
    rate = stream.average_rate or stream.guessed_rate
    if "matroska" in formats:
        hours, _, minutes_seconds = stream.metadata.get("DURATION", "").partition(":")
        minutes, _, seconds = minutes_seconds.partition(":")
        try:
            end = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        except ValueError:
            return None, None
        return round(end * float(rate)) if rate else None, end
    frames = stream.frames or None
    if "mov" in formats and frames:
        # An edit list hides samples that the count of the header includes.
        entries = getattr(stream, "index_entries", None) or ()
        frames = sum(not entry.is_discard for entry in entries) or frames
    if stream.duration is None or stream.time_base is None or not {"mov", "avi"} & set(formats):
        return frames, None
    return frames, float((stream.duration + (stream.start_time or 0)) * stream.time_base)


def _file_is_cut_off(path: Path) -> bool:
    """Whether an MP4, Matroska or AVI file is shorter than the sizes that its outermost elements state."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"RIFF":
            return size < 8 + int.from_bytes(head[4:8], "little") < 2**32  # all ones: written without seeking back
        if head[:4] == b"\x1a\x45\xdf\xa3":  # EBML: a header, then one segment that holds the rest
            header_length, header_start = _ebml_length(head, 4)
            segment = header_start + (header_length or 0)
            length, start = _ebml_length(head, segment + 4)
            return length is not None and start + length > size
        if head[4:8] not in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            return False
        position = 0
        while position + 8 <= size:
            file.seek(position)
            box = file.read(16)
            length = int.from_bytes(box[8:] if box[:4] == b"\0\0\0\1" else box[:4], "big")
            if length < 8:  # 0 stands for "to the end of the file"
                return False
            position += length
        return position > size


def _ebml_length(head: bytes, position: int) -> tuple[int | None, int]:
    """The length stated at a position, None for "unknown", and the position behind it."""
    if position >= len(head) or head[position] == 0:
        return None, position
    octets = 9 - head[position].bit_length()
    mask = (1 << 7 * octets) - 1
    length = int.from_bytes(head[position : position + octets], "big") & mask
    return (None if length == mask else length), position + octets


def _no_video(path: Path, got: str) -> InputError:
    return InputError(
        f"expected {str(path)!r} to be a video file, got {got}; check that it plays, or convert it to H.264 in MP4"
    )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
