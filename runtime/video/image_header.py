"""Headers of image files: their size and whether they hold several frames, read without decoding."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAX_PIXELS = 80_000_000
"""Limit for the size of a frame: a file of a few bytes can state a frame that takes gigabytes."""

_MAX_PAGES = 1_000_000


@dataclass(frozen=True)
class ImageHeader:
    """Header of an image file.

    kind:        name of the file format
    width:       pixels
    height:      pixels
    is_sequence: True for a file of several frames
    """

    kind: str
    width: int
    height: int
    is_sequence: bool = False


def read_header(file: BinaryIO) -> ImageHeader | None:
    """Return the header of an image file, or None for an unknown or damaged one."""
    head = file.read(64)
    try:
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return _png_header(file, *struct.unpack(">II", head[16:24]))
        if head[:2] == b"\xff\xd8":
            return _jpeg_header(file)
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp_header(head)
        if head[:2] in (b"II", b"MM"):
            pages = tiff_pages(file)
            first = next(pages)
            is_sequence = next(pages, None) is not None or first.states_more_frames
            return ImageHeader("TIFF", first.width, first.height, is_sequence)
        if head[:3] == b"GIF":
            return ImageHeader("GIF", *struct.unpack("<HH", head[6:10]))
        if head[:2] == b"BM":
            width, height = struct.unpack("<hh" if head[14] == 12 else "<ii", head[18 : 22 if head[14] == 12 else 26])
            return ImageHeader("BMP", abs(width), abs(height))
        if head[4:8] == b"ftyp" and (b"avif" in head[8:] or b"avis" in head[8:]):
            return _avif_header(file, b"avis" in head[8 : int.from_bytes(head[:4], "big")])
    except (struct.error, IndexError, StopIteration, ValueError, OverflowError):
        pass
    return None


def _png_header(file: BinaryIO, width: int, height: int) -> ImageHeader | None:
    """Return the header of a PNG whose parts all end within the file: OpenCV reserves memory for what a part states."""
    size = file.seek(0, io.SEEK_END)
    at, is_sequence = 8, False
    while at < size:
        file.seek(at)
        part = file.read(12)
        at += int.from_bytes(part[:4], "big") + 12
        if part[4:8] == b"acTL":
            is_sequence = int.from_bytes(part[8:], "big") > 1
        elif part[4:8] == b"IEND" and at <= size:
            return ImageHeader("PNG", width, height, is_sequence)
    return None


def _jpeg_header(file: BinaryIO) -> ImageHeader | None:
    file.seek(2)
    while len(segment := file.read(4)) == 4:
        if segment[0] != 0xFF:
            return None
        if segment[1] == 0xFF:  # padding
            file.seek(-3, 1)
        elif 0xC0 <= segment[1] <= 0xCF and segment[1] not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = struct.unpack(">xHH", file.read(5))
            return ImageHeader("JPEG", width, height)
        else:
            file.seek(int.from_bytes(segment[2:], "big") - 2, 1)
    return None


def _webp_header(head: bytes) -> ImageHeader | None:
    if head[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        return ImageHeader("WebP", width, height, is_sequence=bool(head[20] & 2))
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return ImageHeader("WebP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if head[12:16] == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return ImageHeader("WebP", width & 0x3FFF, height & 0x3FFF)
    return None


def _avif_header(file: BinaryIO, is_sequence: bool) -> ImageHeader | None:
    file.seek(0)
    head = file.read(1 << 20)
    sizes, at = [], head.find(b"ispe")  # of the image, its tiles and its transparency
    while at >= 0:
        sizes.append(struct.unpack(">II", head[at + 8 : at + 16]))
        at = head.find(b"ispe", at + 4)
    return ImageHeader("AVIF", *max(sizes), is_sequence=is_sequence) if sizes else None


@dataclass(frozen=True)
class TiffPage:
    """Page of a TIFF file.

    index:       position among all pages of the file
    bits:        bits of a sample
    samples:     samples of a pixel
    description: text of the program that wrote the page
    """

    index: int
    width: int
    height: int
    bits: int
    samples: int
    description: str

    @property
    def states_more_frames(self) -> bool:
        """Return True for ImageJ's files of one page whose further frames have none."""
        stated = re.search(r"^images=([0-9]+)", self.description, re.MULTILINE)
        return self.description.startswith("ImageJ=") and stated is not None and int(stated[1]) > 1


def tiff_pages(file: BinaryIO) -> Iterator[TiffPage]:
    """Yield the pages of a TIFF file without its thumbnails and masks. A damaged file has fewer pages.

    Raises ValueError for a tile of more than MAX_PIXELS.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    version = struct.unpack(f"{order}H", head[2:4])[0]
    if version not in (42, 43):
        return
    is_big = version == 43
    count_size, entry_size, offset_size = (8, 20, 8) if is_big else (2, 12, 4)
    offset_code, count_code = ("Q", "Q") if is_big else ("I", "H")
    offset = struct.unpack(order + offset_code, head[8:16] if is_big else head[4:8])[0]
    visited: set[int] = set()
    for index in range(_MAX_PAGES):
        if not offset or offset in visited:
            return
        visited.add(offset)
        file.seek(offset)
        count = file.read(count_size)
        if len(count) < count_size:
            return
        entries = struct.unpack(order + count_code, count)[0]
        table = file.read(min(entries, 65535) * entry_size)
        following = file.read(offset_size)
        tags = _tiff_tags(file, order, table, entry_size)
        width, height = _number(tags.get(256)), _number(tags.get(257))
        if _number(tags.get(322)) * _number(tags.get(323)) > MAX_PIXELS:
            raise ValueError("tiles are too large")
        is_frame = not _number(tags.get(254)) & 5  # 1: reduced copy of another page, 4: mask
        if is_frame and width and height:
            text = tags.get(270, b"") if not index else b""
            description = text.decode("utf-8", "replace") if isinstance(text, bytes) else ""
            samples = _number(tags.get(277)) or 1
            yield TiffPage(index, width, height, _number(tags.get(258)) or 1, samples, description)
        if len(following) < offset_size:
            return
        offset = struct.unpack(order + offset_code, following)[0]


_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def _tiff_tags(file: BinaryIO, order: str, table: bytes, entry_size: int) -> dict[int, int | bytes]:
    """Return the first number, or the text of at most 1 MB, of each tag of one page."""
    tags: dict[int, int | bytes] = {}
    header, inline = (f"{order}HHQ", 8) if entry_size == 20 else (f"{order}HHI", 4)
    for at in range(0, len(table) - entry_size + 1, entry_size):
        tag, kind, count = struct.unpack_from(header, table, at)
        value = table[at + entry_size - inline : at + entry_size]
        if tag not in (254, 256, 257, 258, 270, 277, 322, 323):
            continue
        size = count if kind == 2 else struct.calcsize(_TIFF_TYPES.get(kind, "I")) * count
        if size > inline:
            file.seek(struct.unpack(order + ("Q" if inline == 8 else "I"), value)[0])
            value = file.read(min(size, 1 << 20))
        code = _TIFF_TYPES.get(kind)
        if kind == 2:
            tags[tag] = value
        elif code and len(value) >= struct.calcsize(code):
            tags[tag] = struct.unpack_from(order + code, value)[0]
    return tags


def _number(value: int | bytes | None) -> int:
    return value if isinstance(value, int) else 0
