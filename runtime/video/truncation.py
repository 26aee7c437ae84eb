"""Truncation of video files: the end that a container states, and files that are cut off."""

from __future__ import annotations

from pathlib import Path

import av
from av.container import InputContainer


def announced(container: InputContainer, stream: av.VideoStream) -> tuple[int | None, float | None]:
    """Return the number of frames and the end in seconds that a container states, each None if not stated.

    Transport and raw streams state neither; FFmpeg only estimates their duration.
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
        # The header also counts samples that an edit list hides.
        entries = getattr(stream, "index_entries", None) or ()
        frames = sum(not entry.is_discard for entry in entries) or frames
    if stream.duration is None or stream.time_base is None or not {"mov", "avi"} & set(formats):
        return frames, None
    return frames, float((stream.duration + (stream.start_time or 0)) * stream.time_base)


def file_is_cut_off(path: Path) -> bool:
    """Return True if an MP4, Matroska or AVI file is shorter than its outermost elements state."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"RIFF":
            return size < 8 + int.from_bytes(head[4:8], "little") < 2**32  # all ones: the writer could not seek back
        if head[:4] == b"\x1a\x45\xdf\xa3":  # EBML: a header, then one segment
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
            if length < 8:  # 0 means "to the end of the file"
                return False
            position += length
        return position > size


def _ebml_length(head: bytes, position: int) -> tuple[int | None, int]:
    """Return the length stated at a position, None for "unknown", and the position after that length."""
    if position >= len(head) or head[position] == 0:
        return None, position
    octets = 9 - head[position].bit_length()
    mask = (1 << 7 * octets) - 1
    length = int.from_bytes(head[position : position + octets], "big") & mask
    return (None if length == mask else length), position + octets
