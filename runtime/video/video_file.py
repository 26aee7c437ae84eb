"""Video files: frames up to the end. Damage is skipped and counted, or ends a strict source."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer

from corrflow.errors import InputError, SourceEndedEarly
from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND
from corrflow.runtime.types import Frame, size_text
from corrflow.runtime.video.bit_depth import DepthMapper
from corrflow.runtime.video.damage import Damage
from corrflow.runtime.video.ffmpeg_files import DECODER_OPTIONS, DECODING_ERRORS, open_input, shortage_reported
from corrflow.runtime.video.film_stream import film_stream
from corrflow.runtime.video.image_file import check_size
from corrflow.runtime.video.source import FrameSource, SoundTrack, reason_text
from corrflow.runtime.video.truncation import announced, file_is_cut_off
from corrflow.runtime.video.video_clock import VideoClock

_CUT_OFF = "the file is cut off or damaged there"

# Announced ends are rounded, and the last frame's duration is often estimated.
_MIN_MISSING_SECONDS = 0.25

# FFmpeg decodes any *.txt or *.nfo as terminal art.
_TEXT_FORMATS = frozenset({"tty", "bintext", "xbin", "idf", "adf"})

# Frames that a decoder with threads may hold back; more are frames that are never displayed.
_LARGEST_DELAY = 64

# Frames at one pace, after which a gap in a broadcast is a loss.
_REGULAR_FRAMES = 8

_Image = tuple[np.ndarray, float | None]


class VideoSource(FrameSource):
    """Video stream of a file; frames are rotated as the metadata states."""

    def __init__(self, path: Path, strict: bool = False) -> None:
        """Open the file and decode its first frame; strict: True to end at the first damage.

        Frames are numbered from the file's first, also where that cannot be decoded. Raises InputError, and
        CorrflowError without memory.
        """
        self.name = path.stem
        self._path, self._strict = path, strict
        self.paths = (path,)
        self._depth = DepthMapper(self.name, self.notes)
        try:
            self._cut_off = file_is_cut_off(path)
            self._container = open_input(path)
        except DECODING_ERRORS as error:
            raise _no_video(path, f"one that cannot be opened as such ({reason_text(error)})") from None
        try:
            self._open_stream(path)
        except BaseException:
            self._container.close()
            raise

    def _open_stream(self, path: Path) -> None:
        stream, num_films = film_stream(self._container, path)
        if stream is None or self._container.format.name in _TEXT_FORMATS:
            raise _no_video(path, "one without a video stream")
        if stream.codec_context is None:
            raise _no_video(path, "one in a codec that this build of FFmpeg does not know")
        try:
            check_size(stream.codec_context.width, stream.codec_context.height)
        except ValueError as error:
            raise _no_video(path, f"one that {error}") from None
        self._use(self._container, stream.index, "AUTO")
        self.frames_per_second: Fraction | None = _frame_rate(stream)
        self.frame_count, self._announced_end = announced(self._container, stream)
        self._clock = VideoClock(float(1 / (self.frames_per_second or NOMINAL_FRAMES_PER_SECOND)))
        self._rotation = 0
        self._reset()
        self._decoding = self._decode()
        try:
            first = next(self._decoding)
        except StopIteration:
            raise _no_video(path, "one of which no frame can be decoded") from None
        self._describe(stream, num_films)
        self._frames = chain([first], self._decoding)

    def _describe(self, stream: av.VideoStream, num_films: int) -> None:
        """Set what is known of the shape of pixels, the sound and the other streams."""
        if (ratio := stream.sample_aspect_ratio) and ratio != 1:
            self.sample_aspect_ratio = 1 / ratio if self._rotation % 2 else ratio
        if self._container.streams.audio:
            self.sound = SoundTrack(self._path, self._clock.start)
        if num_films > 1:
            size = f"{stream.codec_context.width}x{stream.codec_context.height}"
            self.notes.append(f"{self._path.name}: of {num_films} films in it the one of {size} is tracked")

    def _use(self, container: InputContainer, index: int, threads: str) -> None:
        """Decode a stream of a container from now on."""
        self._container = container
        stream = container.streams[index]
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.thread_type = threads
        self._stream.codec_context.options = DECODER_OPTIONS

    def _reset(self) -> None:
        """Forget what was decoded so far."""
        self._damage = Damage()
        self._end_reason = ""
        self._may_have_gaps = False

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def close(self) -> None:
        self._decoding.close()
        self._container.close()

    def _decode(self) -> Generator[Frame, None, None]:
        step = float(1 / (self.frames_per_second or NOMINAL_FRAMES_PER_SECOND))
        shape: tuple[int, ...] | None = None
        count, time, longest_gap = 0, 0.0, step
        for image, stamp in self._valid_images():
            if not count:
                self._begin()
            shape = shape or image.shape
            if image.shape != shape:
                self._end_reason = f"the frame size changes from {size_text(shape)} to {size_text(image.shape)}"
                break
            previous, time = time, self._clock.time(stamp)
            if count and self._may_have_gaps and time - previous > 1.5 * step:
                self._end_reason = self._end_reason or _CUT_OFF
                break
            # The parsers of these formats swallow damage without an error.
            if count > _REGULAR_FRAMES and longest_gap < 1.5 * step < time - previous and self._is_broadcast:
                self._damage.miss(round((time - previous) / step) - 1, time)
            elif count and not self._damage.skipped:
                longest_gap = max(longest_gap, time - previous)
            self._time = time
            index = self._first + count
            yield Frame(image, index, time, f"{index:05d}")
            count += 1
        self._add_notes(count)
        if count and (reason := self._early_end_reason(count, self._clock.start + time + step, longest_gap)):
            total = f" of {self.frame_count}" if self.frame_count and self.frame_count > count else ""
            raise SourceEndedEarly(
                f"{self._path.name} ends early: {count}{total} frames decoded, because {reason}; "
                "copy or convert the file again for the rest"
            )

    _time, _first = 0.0, 0

    def _begin(self) -> None:
        """Number the first decodable frame as the file does, and tell how many frames are missing before it."""
        self._first = self._damage.leading
        if sentence := self._damage.leading_sentence(self._path.name):
            self.notes.append(sentence)
            if self._damage.start is not None:
                self._clock.begin(self._damage.start)

    @property
    def _is_broadcast(self) -> bool:
        return self._container.format.name in ("mpegts", "mpeg")

    def _add_notes(self, num_frames: int) -> None:
        if sentence := self._damage.sentence(self._path.name, num_frames):
            self.notes.append(sentence)
        if restarts := self._clock.restarts:
            more = " and later" if len(restarts) > 3 else ""
            places = ", ".join(str(self._first + place) for place in restarts[:3]) + more
            self.notes.append(
                f"{self._path.name}: its time stamps start again at frame {places}; times go on from the frame before"
            )

    def _valid_images(self) -> Iterator[_Image]:
        """Yield images and their stated times in display order.

        Decoders with several threads lose sound frames near a damaged packet. After the first damage, the file is
        therefore decoded once more, with one thread, and its frames so far are passed over.
        """
        count = 0
        try:
            for frame, stamp in self._decoded(threaded=True):
                count += 1
                yield self._upright(frame, count - 1), stamp
        except _DamageFound:
            index = self._stream.index
            self._container.close()
            self._use(open_input(self._path), index, "SLICE")
            self._reset()
            for number, (frame, stamp) in enumerate(self._decoded(threaded=False)):
                if number >= count:
                    yield self._upright(frame, number), stamp

    def _decoded(self, threaded: bool) -> Iterator[tuple[av.VideoFrame, float | None]]:
        """Yield frames and their stated times in display order. A reason to end is stored in `_end_reason`.

        threaded: True to raise _DamageFound at the first damage
        """
        damage, started, has_key, end, sent, received = self._damage, False, False, 0.0, 0, 0
        packet, packets = None, self._packets()
        following = next(packets, None)
        while following is not None:
            packet, following = following, next(packets, None)
            if packet.is_corrupt and started and (self._strict or following is None):
                self._end_reason = _CUT_OFF
                break
            if packet.is_corrupt and sent:
                damage.keep_incomplete(self._time)
            stamp, has_key = self._seconds(packet.pts), has_key or packet.is_keyframe
            if not packet.is_discard:  # hidden by an edit list
                sent += 1
                end = max(end, (stamp or 0.0) + (self._seconds(packet.duration) or 0.0))
                if not started and stamp is not None:
                    damage.before.append(stamp)
            try:
                with shortage_reported(self._path):
                    decoded = packet.decode()
            except DECODING_ERRORS as error:
                if not started:
                    damage.not_decoded += 1
                    continue  # a recording may start in the middle of a group of pictures
                if threaded:
                    raise _DamageFound from None
                if self._strict:
                    self._end_reason = f"the next one cannot be decoded ({reason_text(error)})"
                    break
                damage.skip(self._time)
                continue
            if not (started or has_key or decoded):  # some decoders skip these without an error
                damage.not_decoded += 1
            for frame in decoded:
                received += 1
                if frame.is_corrupt and not started:
                    damage.not_decoded += 1
                    continue
                if frame.is_corrupt and self._strict:
                    self._end_reason = "the next one is damaged"
                    return
                stamp = self._seconds(frame.pts)
                if not started:
                    started = True
                    self._start(stamp)
                if frame.is_corrupt:
                    damage.keep_wrong_frame(self._time)
                damage.at_end = 0
                yield frame, stamp
        # Frames are stored out of display order. In a truncated file the last frames of the decoder may follow a gap,
        # and would get wrong indices.
        self._may_have_gaps = (
            self._cut_off
            or bool(self._end_reason)
            or self._damage_at_end() > _MIN_MISSING_SECONDS
            or self._misses_time(end, _MIN_MISSING_SECONDS)
        )
        last: list[av.VideoFrame] = []
        with suppress(*DECODING_ERRORS), shortage_reported(self._path):
            last = self._stream.codec_context.decode(None)
        if threaded and len(last) < sent - received <= _LARGEST_DELAY:
            raise _DamageFound
        for frame in last:
            if not frame.is_corrupt:  # a recorded stream may end in the middle of a frame
                stamp = self._seconds(frame.pts)
                if not started:
                    started = True
                    self._start(stamp)
                yield frame, stamp

    def _packets(self) -> Iterator[av.Packet]:
        """Yield the packets of the stream. An error of the file ends the iteration and sets `_end_reason`."""
        try:
            with shortage_reported(self._path):
                for packet in self._container.demux(self._stream):
                    if packet.size:  # an empty one would flush the decoder
                        yield packet
        except DECODING_ERRORS as error:
            self._end_reason = f"the next one cannot be decoded ({reason_text(error)})"

    def _start(self, first: float | None) -> None:
        """Begin with the first decodable frame; first: its time stamp."""
        # Behind the first frame, a decoder shall give every frame, also where its reference frames are lost.
        self._stream.codec_context.flags |= Flags.output_corrupt
        rate = self.frames_per_second
        self._damage.begin(first, float(1 / rate) if rate and self._is_broadcast else None)

    def _upright(self, frame: av.VideoFrame, index: int) -> np.ndarray:
        self._rotation = round(frame.rotation / 90) % 4
        with shortage_reported(self._path):
            return upright_image(frame, self._depth, index)

    def _seconds(self, time_stamp: int | None) -> float | None:
        # Not frame.time, because flushed frames have no time base.
        time_base = self._stream.time_base
        return None if time_stamp is None or time_base is None else float(time_stamp * time_base)

    def _damage_at_end(self) -> float:
        """Return the seconds of damaged packets since the last frame."""
        return self._damage.at_end / float(self.frames_per_second or NOMINAL_FRAMES_PER_SECOND)

    def _misses_time(self, end: float, tolerance: float) -> bool:
        return self._announced_end is not None and self._announced_end - end > tolerance

    def _early_end_reason(self, decoded: int, end: float, longest_gap: float) -> str:
        """Return the reason why the file ended before its announced end, or "" for a complete file.

        The announced number of frames is wrong in many complete files (edit lists, hidden frames). A file therefore
        ended early only if it is cut off, or if much time is missing.
        """
        if self._end_reason:
            return self._end_reason
        known = decoded + self._damage.skipped + self._damage.leading
        if self._cut_off and (self.frame_count is None or known < self.frame_count):
            return _CUT_OFF
        if self._misses_time(end, max(_MIN_MISSING_SECONDS, 2 * longest_gap)) and not self._clock.restarts:
            return f"the video stops at {end:.2f} of {self._announced_end:.2f} s"
        if self._damage_at_end() > _MIN_MISSING_SECONDS:
            return f"the last {self._damage.at_end} packets are damaged"
        return ""


class _DamageFound(Exception):
    """Damage in a video that several threads decode."""


def upright_image(frame: av.VideoFrame, depth: DepthMapper, index: int) -> np.ndarray:
    """Convert a frame to [H, W, 3] uint8, BGR, rotated by the display matrix of the file.

    depth: mapping of grey and RGB with 16 bits; other formats state the bits that they use
    """
    layout = frame.format
    if layout.components[0].bits == 16 and (layout.is_rgb or len(layout.components) <= 2):
        deep = frame.to_ndarray(format="rgb48le" if layout.is_rgb else "gray16le")
        image = depth.to_8_bits(deep, f"frame {index}")
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if layout.is_rgb else cv2.COLOR_GRAY2BGR)
    else:
        image = frame.to_ndarray(format="bgr24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))  # both count counter-clockwise


def _frame_rate(stream: av.VideoStream) -> Fraction | None:
    """Return the average frame rate, without the pauses where a jump of the clock makes it useless."""
    average, usual = stream.average_rate, stream.guessed_rate
    if average and usual and average * 10 < usual and 1 <= usual <= 240:
        average = usual
    rate = average or usual
    return Fraction(rate) if rate else None


def _no_video(path: Path, got: str) -> InputError:
    return InputError(
        f"expected {str(path)!r} to be a video file, got {got}; check that it plays, or convert it to H.264 in MP4"
    )
