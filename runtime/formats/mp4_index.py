"""Index of an MP4 file: moved before the frames, so that a player starts during a download.

FFmpeg's own `faststart` rewrites the file in one call that nothing ends, which for a long film takes many seconds. This
copy ends as soon as a signal stops the command.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from corrflow.stopping import stop_requested

_BLOCK = 1 << 22
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def copy_index_first(source: str, target: str) -> bool:
    """Copy an MP4 file with its index in front. Return False, with an incomplete target, where that is not possible.

    Raises OSError.
    """
    with open(source, "rb") as file, open(target, "wb") as output:
        boxes = list(_boxes(file, 0, os.path.getsize(source)))
        if [kind for kind, *_ in boxes if kind != b"free"] != [b"ftyp", b"mdat", b"moov"]:
            return False
        (_, begin, end, _) = boxes[-1]
        file.seek(begin)
        index = bytearray(file.read(end - begin))
        if not _shift_offsets(index, 0, len(index), len(index)):
            return False
        first = boxes[0][2]
        file.seek(0)
        output.write(file.read(first) + index)
        left = begin - first
        while left:
            if stop_requested():
                return False
            block = file.read(min(left, _BLOCK))
            output.write(block)
            left -= len(block)
    return True


def _boxes(file: BinaryIO, position: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield kind, begin, end and begin of the content of each box."""
    while position + 8 <= end:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        content = position + 8
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
            content += 8
        if size < 8 or position + size > end:
            return
        yield kind, position, position + size, content
        position += size


def _shift_offsets(index: bytearray, position: int, end: int, shift: int) -> bool:
    """Add `shift` to the place of every chunk of frames. Return False where 32 bits are too few."""
    while position + 8 <= end:
        size, kind = struct.unpack_from(">I4s", index, position)
        if size < 8:
            return False
        if kind in _CONTAINERS:
            if not _shift_offsets(index, position + 8, position + size, shift):
                return False
        elif kind in (b"stco", b"co64"):
            (count,) = struct.unpack_from(">I", index, position + 12)
            layout = f">{count}{'I' if kind == b'stco' else 'Q'}"
            places = [place + shift for place in struct.unpack_from(layout, index, position + 16)]
            if kind == b"stco" and places and max(places) >= 1 << 32:
                return False
            struct.pack_into(layout, index, position + 16, *places)
        position += size
    return True
