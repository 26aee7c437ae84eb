"""Sizes that constants of an ONNX graph ask for: small files could let operators make any number of values."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

from corrflow.runtime.artifacts.protobuf import message_fields, read_varint

MOST_VALUES = 1 << 26
"""Values that an operator may make of a constant."""
MOST_REPEATS = 1 << 16
"""Times that a constant may repeat or pad a value, or enlarge a side."""

_LONGEST = 64  # numbers of a constant that is a shape; longer ones are weights
_LOOPS = frozenset({"Loop"})
# Operators that make more values than they get, with the input that says how many: a shape, or numbers of repeats.
_SHAPES = {"ConstantOfShape": (0,), "Expand": (1,), "OneHot": (1,), "Resize": (3,), "Range": (0, 1)}
_REPEATS = {"Tile": (1,), "Pad": (1,), "Resize": (1, 2), "Upsample": (1,)}
_PLAIN = frozenset({"Constant", "Slice", "Cast", "Identity"})  # their attributes may be any numbers
_FORMATS = {1: "<f", 6: "<i", 7: "<q", 11: "<d"}  # of the types of a tensor
_Fields = Iterable[tuple[int, "int | memoryview"]]


class TooLarge(Exception):
    """Constant that asks for too many values; the text names it."""


class SizeCheck:
    """Constants and operators of all graphs of a file, by name; a name is checked with every constant that has it."""

    def __init__(self) -> None:
        self._constants: dict[bytes, list[tuple[float, ...]]] = {}
        self._nodes: list[tuple[str, list[bytes]]] = []

    def add_node(self, fields: _Fields) -> None:
        """Add an operator. Raises TooLarge for one that is refused alone."""
        texts: dict[int, list[bytes]] = {}
        attributes: list[memoryview] = []
        for number, value in fields:
            if not isinstance(value, memoryview):
                continue
            if number == 5:
                attributes.append(value)
            elif number in (1, 2, 4):
                texts.setdefault(number, []).append(bytes(value))
        operator = b"".join(texts.get(4, [])[-1:]).decode()
        if operator in _LOOPS:
            raise TooLarge(f"{operator}, whose number of rounds has no limit")
        if operator in _SHAPES or operator in _REPEATS:
            self._nodes.append((operator, texts.get(1, [])))
        for attribute in attributes:
            numbers, tensors = _numbers(attribute)
            if operator == "Constant":
                for name in texts.get(2, []):
                    self._constants.setdefault(name, []).extend([*tensors, *([numbers] if numbers else [])])
            elif operator not in _PLAIN and any(abs(number) > MOST_VALUES for number in numbers):
                raise TooLarge(f"an attribute {max(numbers, key=abs):g} of {operator}")
            elif operator in ("RandomNormal", "RandomUniform") and math.prod(numbers) > MOST_VALUES:
                raise TooLarge(f"{operator} of {math.prod(numbers):g} values")

    def add_weights(self, tensors: Iterable[memoryview]) -> None:
        """Add the weights of a graph."""
        for tensor in tensors:
            name, numbers = _tensor(tensor)
            if numbers:
                self._constants.setdefault(name, []).append(numbers)

    def finish(self) -> None:
        """Raise TooLarge for an operator with a constant that asks for too many values."""
        for operator, inputs in self._nodes:
            for table, is_shape in ((_SHAPES, True), (_REPEATS, False)):
                for index in table.get(operator, ()):
                    for numbers in self._constants.get(inputs[index], []) if index < len(inputs) else ():
                        largest = math.prod(numbers) if is_shape else max(map(abs, numbers))
                        if not abs(largest) <= (MOST_VALUES if is_shape else MOST_REPEATS):
                            raise TooLarge(f"{operator} to {largest:g} values")


def _numbers(attribute: memoryview) -> tuple[tuple[float, ...], list[tuple[float, ...]]]:
    """Return the whole numbers of an attribute, and those of its tensors."""
    numbers: list[float] = []
    tensors: list[tuple[float, ...]] = []
    for field, value in message_fields(attribute):
        if field == 3 and isinstance(value, int):
            numbers.append(_signed(value))
        elif field == 8:
            numbers += _integers(value)
        elif field == 5 and isinstance(value, memoryview):
            tensors.append(_tensor(value)[1])
    return tuple(numbers), [one for one in tensors if one]


def _tensor(content: memoryview) -> tuple[bytes, tuple[float, ...]]:
    """Return the name of a tensor, and its numbers where they may be a shape; else ()."""
    name, kind, raw = b"", 0, b""
    numbers: list[float] = []
    for field, value in message_fields(content):
        if isinstance(value, int):
            kind = value if field == 2 else kind
        elif field == 8:
            name = bytes(value)
        elif field == 9 and len(value) <= 8 * _LONGEST:
            raw = bytes(value)
        if field in (5, 7) and len(numbers) <= _LONGEST:
            numbers += _integers(value)
        elif field in (4, 10) and isinstance(value, memoryview):
            letter, size = ("f", 4) if field == 4 else ("d", 8)
            if len(value) <= size * _LONGEST and not len(value) % size:
                numbers += struct.unpack(f"<{len(value) // size}{letter}", value)
    if raw and kind in _FORMATS and not len(raw) % struct.calcsize(_FORMATS[kind]):
        numbers += [number for (number,) in struct.iter_unpack(_FORMATS[kind], raw)]
    return name, tuple(numbers) if len(numbers) <= _LONGEST else ()


def _integers(value: int | memoryview) -> list[int]:
    """Return the whole numbers of a field, which are one or packed."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers: list[int] = []
    at = 0
    while at < len(value) and len(numbers) <= _LONGEST:
        number, at = read_varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
