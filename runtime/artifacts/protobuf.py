"""Wire format of protocol buffers, because the runtime does not depend on the onnx package."""

from __future__ import annotations

from collections.abc import Iterator


def message_fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, integer or bytes) of each field of a message. Raises IndexError for a damaged message."""
    at = 0
    while at < len(content):
        key, at = read_varint(content, at)
        # Protocol buffers have keys of 32 bits, and some readers drop the bits above: it would be another field there.
        if key >> 32:
            raise IndexError("a key of more than 32 bits")
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = read_varint(content, at)
            if field == 0:
                raise IndexError(at)
            yield field, value
            continue
        if wire == 2:
            length, at = read_varint(content, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise IndexError(f"wire type {wire}")
        if field == 0 or at + length > len(content):
            raise IndexError(at)
        yield field, content[at : at + length]
        at += length


def read_varint(content: memoryview, at: int) -> tuple[int, int]:
    """Decode a varint, and return its value and the position after it. Raises IndexError."""
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("varint")
