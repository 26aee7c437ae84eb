"""Sound of a source, copied into a video without decoding, packet by packet."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import ArgumentError, InvalidDataError

from corrflow.runtime.video.ffmpeg_files import DECODING_ERRORS, open_input, shortage_reported
from corrflow.runtime.video.source import SoundTrack

REMEDY = "convert the source's sound to AAC to keep it"

_RESTART_SECONDS = 1.0  # time stamps that go back by more start again, as where one recording follows another
_LONGEST_PACKET = 1.0  # seconds


class SoundCopier:
    """Copier of a source's sound into a container, as far as the frames are written."""

    def __init__(self, track: SoundTrack, container: OutputContainer) -> None:
        """Open the source once more, and add its best sound stream to a container.

        Raises ValueError, whose message ends a sentence about the sound, where the container cannot take the stream.
        """
        self._track = track
        try:
            self._input = open_input(Path(track.path))
        except DECODING_ERRORS:
            raise ValueError("the source cannot be opened again") from None
        try:
            source = self._input.streams.best("audio")
            if not isinstance(source, AudioStream) or source.codec_context is None:
                raise ValueError("its codec is unknown")
            try:
                self._output = container.add_stream_from_template(source)
            except (ValueError, *DECODING_ERRORS):
                codec = source.codec_context.name
                raise ValueError(f"this kind of file takes no {codec}; {REMEDY}") from None
            self._source = source
        except BaseException:
            self._input.close()
            raise
        self._container = container
        self._packets = self._timed_packets()
        self._next = next(self._packets, None)
        self._last_tick = -1

    def copy_until(self, time: float, shift: float) -> None:
        """Copy the sound before a time in seconds since frame 0; shift: seconds that are added to the times.

        Raises an error of FFmpeg where the file cannot be written, ValueError where the sound does not fit in.
        """
        assert self._source.time_base is not None
        while self._next is not None and self._next[0] < time:
            start, packet = self._next
            tick = round((start + shift) / float(self._source.time_base))
            # The container needs rising times; earlier sound belongs to frames that are not there.
            if tick > self._last_tick:
                self._last_tick = packet.pts = packet.dts = tick
                packet.stream = self._output
                try:
                    self._container.mux(packet)
                except (InvalidDataError, ArgumentError):
                    raise ValueError("its packets do not fit into this kind of file") from None
            self._next = next(self._packets, None)

    def skip_until(self, time: float) -> None:
        """Leave out the sound before a time in seconds since frame 0."""
        while self._next is not None and self._next[0] < time:
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Close the source."""
        self._packets.close()
        self._input.close()

    def _timed_packets(self) -> Generator[tuple[float, av.Packet], None, None]:
        """Yield the packets with their times in seconds since frame 0; damage ends the sound."""
        offset, following, usual = -self._track.start, 0.0, 0
        try:
            with shortage_reported(Path(self._track.path)):
                for packet in self._input.demux(self._source):
                    stamp = packet.pts if packet.pts is not None else packet.dts
                    if not packet.size or packet.is_corrupt or packet.time_base is None:
                        continue
                    start = following if stamp is None else float(stamp * packet.time_base) + offset
                    if start < following - _RESTART_SECONDS:
                        offset += following - start
                        start = following
                    # Before a jump of the clock, MP4 has a packet that is as long as the jump.
                    if packet.duration and packet.duration * packet.time_base < _LONGEST_PACKET:
                        usual = packet.duration
                    packet.duration = usual
                    following = max(following, start + float(usual * packet.time_base))
                    if start >= -_TOLERANCE:
                        yield max(0.0, start), packet
        except DECODING_ERRORS:
            return


_TOLERANCE = 1e-3  # seconds that rounded time stamps may lie before the first frame
