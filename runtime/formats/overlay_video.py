"""Overlay video: masks and points drawn over the frames, as H.264."""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.error import ArgumentError, FFmpegError, InvalidDataError, PatchWelcomeError

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.mp4_index import copy_index_first
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.encoding import VIDEO_FORMATS, add_h264_stream, encodable
from corrflow.runtime.video.gapless_clock import GaplessClock
from corrflow.runtime.video.overlay import draw_overlay
from corrflow.runtime.video.sound import REMEDY, SoundCopier
from corrflow.runtime.video.source import SoundTrack
from corrflow.stopping import seconds_left, stop_requested

COMMENT = "corrflow"
"""Comment in every file, by which `result_places` knows it later."""

_FINISH_SECONDS = 0.6  # left of the time after a signal, to finish the file

CLOCK = 90_000
"""Ticks per second of written videos, as in MPEG; every common frame interval is a whole number of ticks."""


class VideoSink(Sink):
    """Writer of the frames with the results drawn in, as H.264 video that browsers play."""

    def __init__(
        self,
        path: str | Path,
        frames_per_second: Fraction,
        sample_aspect_ratio: Fraction | None = None,
        sound: SoundTrack | None = None,
        notes: list[str] | None = None,
    ) -> None:
        """Check the path; the video is opened at the first frame.

        path:                ends in .mp4, .m4v, .mov or .mkv, which decides the container
        frames_per_second:   announced frame rate; every frame has its own time
        sample_aspect_ratio: width of a pixel over its height; None for square pixels
        sound:               sound to copy, up to the last frame
        notes:               list to which sentences about what is left out are added

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
        self._output = AtomicFile(self._path)
        self._container: OutputContainer | None = None
        self._failed, self._tick = False, -1
        self._sample_aspect_ratio, self._sound_track = sample_aspect_ratio, sound
        self._notes = [] if notes is None else notes
        self._sound: SoundCopier | None = None
        self._clock = GaplessClock(float(1 / self._rate))

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
                self._tick = max(self._tick + 1, round(self._next_time(result.frame.time) * CLOCK))
                encoded.pts, encoded.time_base = self._tick, Fraction(1, CLOCK)
                for packet in self._stream.encode(encoded):
                    self._mux(container, packet)
            except (FFmpegError, OSError):
                self._failed = True
                raise

    def close(self) -> None:
        container, self._container = self._container, None
        if container is None:
            self._output.finish(keep=False)
            return
        try:
            with write_errors(self._path, FFmpegError), self._output as part:
                try:
                    if not self._failed and self._clock.last_time is not None:
                        self._copy_sound(self._clock.last_time + self._clock.step, self._clock.shift)
                    for packet in self._stream.encode_lazy(None):
                        self._mux(container, packet)
                        # After a signal, the last frames are worth less than a file that is finished in time.
                        if (left := seconds_left()) is not None and left < _FINISH_SECONDS:
                            break
                finally:
                    container.close()
                    self._close_sound()
                self._move_index(part)
        except CorrflowError:
            if not self._failed:  # otherwise `write` has raised the cause
                raise
        if sentence := self._clock.sentence(self._path.name):
            self._notes.append(sentence)

    def _mux(self, container: OutputContainer, packet: av.Packet) -> None:
        # Otherwise the last frame has the average duration, which pauses make long.
        packet.duration = round(self._clock.step * CLOCK)
        container.mux(packet)

    def _next_time(self, time: float) -> float:
        """Return the time of a frame in the video, and copy the sound before the frame."""
        clock = self._clock
        last, step, shift = clock.last_time, clock.step, clock.shift
        written = clock.next(time)
        if clock.shift == shift:
            self._copy_sound(time, shift)
        elif last is not None:
            self._copy_sound(last + step, shift)
            if self._sound is not None:
                self._sound.skip_until(time)
        return written

    def _copy_sound(self, time: float, shift: float) -> None:
        """Copy the sound before a time of the source."""
        if self._sound is not None:
            try:
                self._sound.copy_until(time, shift)
            except ValueError as error:
                self._leave_out_sound(error)

    def _leave_out_sound(self, error: ValueError) -> None:
        self._notes.append(f"{self._path.name}: the sound is left out, because {error}")
        self._close_sound()

    def _close_sound(self) -> None:
        sound, self._sound = self._sound, None
        if sound is not None:
            sound.close()

    def _move_index(self, part: str) -> None:
        """Make an MP4 file playable during a download."""
        if VIDEO_FORMATS[self._path.suffix.lower()] == "matroska" or self._failed or stop_requested():
            return
        copy = AtomicFile(part)
        # Without space for a copy the file stays as it is, which plays as well.
        with suppress(OSError):
            copy.finish(keep=copy_index_first(part, copy.part))
        copy.finish(keep=False)

    def _open(self, height: int, width: int) -> OutputContainer:
        self._size = height, width
        self._open_container()
        if self._sound_track is not None:
            assert self._container is not None
            try:
                self._sound = SoundCopier(self._sound_track, self._container)
                self._start_with_sound()
            except ValueError as error:
                self._leave_out_sound(error)
                self._open_container()
        assert self._container is not None
        return self._container

    def _start_with_sound(self) -> None:
        """Write the header. Raises ValueError where the container does not take the sound after all."""
        assert self._container is not None
        try:
            self._container.start_encoding()
        except (InvalidDataError, ArgumentError, PatchWelcomeError):
            raise ValueError(f"this kind of file does not take it; {REMEDY}") from None

    def _open_container(self) -> None:
        if self._container is not None:
            with suppress(FFmpegError, ValueError):
                self._container.close()
        # Absolute, because FFmpeg takes what is before a colon for a protocol.
        file_format = VIDEO_FORMATS[self._path.suffix.lower()]
        self._container = av.open(os.path.abspath(self._output.part), "w", format=file_format)
        self._container.metadata["comment"] = COMMENT
        self._stream = add_h264_stream(self._container, self._rate, self._size, {}, self._sample_aspect_ratio)
        self._stream.codec_context.time_base = Fraction(1, CLOCK)
