"""Check of ONNX files before a runtime loads them: no external data, no operators of unknown domains.

The check reads the wire format of protocol buffers, because the runtime does not depend on the onnx package. Field
numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

from corrflow.errors import InputError

ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "corrflow"})
_MAX_DEPTH = 32  # of nested messages; exported artifacts have one subgraph level

# Message fields by message and field number; other fields are skipped.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 8: "OperatorSet", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Function": {7: "Node", 9: "OperatorSet", 11: "Attribute"},
    "Training": {1: "Graph", 2: "Graph"},
    "OperatorSet": {},
    "Tensor": {},
}
_DOMAIN_FIELD = {"Node": 7, "OperatorSet": 1, "Function": 10}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def check_onnx(name: str, content: bytes) -> None:
    """Raise InputError unless `content` is an ONNX model without external data and unknown operators."""
    try:
        kinds = _check(name, memoryview(content), "Model", 0)
    except (IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{name} is damaged: expected an ONNX model, got bytes that end early or make no sense"
                         "; export the artifact again") from error  # fmt: skip
    if "Graph" not in kinds:
        raise InputError(f"{name}: expected an ONNX model, got a file without a graph; export the artifact again")


def _check(name: str, content: memoryview, kind: str, depth: int) -> set[str]:
    """Check a message and its submessages, and return the kinds of the latter. Raises InputError."""
    if depth > _MAX_DEPTH:
        raise InputError(f"{name}: expected subgraphs nested at most {_MAX_DEPTH} deep; refused")
    kinds: set[str] = set()
    for field, value in _fields(content):
        inner = _MESSAGES[kind].get(field)
        if inner is not None and isinstance(value, memoryview):
            kinds.add(inner)
            _check(name, value, inner, depth + 1)
        elif field == _DOMAIN_FIELD.get(kind) and isinstance(value, memoryview):
            domain = bytes(value).decode()
            if domain not in ALLOWED_DOMAINS:
                raise InputError(
                    f"{name}: expected operators of {sorted(ALLOWED_DOMAINS - {''})}, got the domain {domain!r};"
                    " only artifacts written by corrflow-export are loaded"
                )
        elif kind == "Tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)):
            raise InputError(
                f"{name}: expected all weights inside the file, got a tensor with external data;"
                " only artifacts written by corrflow-export are loaded"
            )
    return kinds


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, integer or bytes) of each field of a message. Raises IndexError for a truncated message."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield field, value
            continue
        if wire == 2:
            length, at = _varint(content, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise IndexError(f"wire type {wire}")
        if field == 0 or at + length > len(content):
            raise IndexError(at)
        yield field, content[at : at + length]
        at += length


def _varint(content: memoryview, at: int) -> tuple[int, int]:
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
