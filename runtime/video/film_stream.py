"""Choice of the video stream that is the film, among thumbnails, previews and covers."""

from __future__ import annotations

from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition

from corrflow.runtime.video.ffmpeg_files import DECODING_ERRORS, open_input, shortage_reported

_NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.metadata
_MOST_PACKETS = 500  # read to count the frames of the streams


def film_stream(container: InputContainer, path: Path) -> tuple[av.VideoStream | None, int]:
    """Return the stream of a container to track through, or None without one, and the number of films in the file.

    Attached pictures do not count. A stream of several frames comes before a single picture, a large one before a
    small one, and of two alike the default stream.
    """
    # The cover of a music file is a video stream.
    streams = [stream for stream in container.streams.video if not stream.disposition & _NO_FILM]
    if len(streams) < 2:
        return (streams[0], 1) if streams else (None, 0)
    counts = _packet_counts(path, {stream.index for stream in streams})

    def rank(stream: av.VideoStream) -> tuple[bool, bool, int, bool, int]:
        context = stream.codec_context
        area = context.width * context.height if context is not None else 0
        is_default = bool(stream.disposition & Disposition.default)
        return context is not None, counts[stream.index] > 1, area, is_default, -stream.index

    return max(streams, key=rank), sum(count > 1 for count in counts.values())


def _packet_counts(path: Path, streams: set[int]) -> dict[int, int]:
    """Count packets of streams at the beginning of a file, which is opened once more."""
    counts = dict.fromkeys(streams, 0)
    try:
        with open_input(path) as container, shortage_reported(path):
            for number, packet in enumerate(container.demux(*(container.streams[index] for index in streams))):
                counts[packet.stream_index] += bool(packet.size)
                if number > _MOST_PACKETS or min(counts.values()) > 1:
                    break
    except DECODING_ERRORS:
        pass  # of a damaged file, what was read so far decides
    return counts
