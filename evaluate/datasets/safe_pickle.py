"""Reads pickles as data: numbers, text, lists, dictionaries and NumPy arrays. Nothing in them is ever executed.

TAP-Vid is published as pickles, and unpickling runs whatever a file says. This reader goes through the opcodes itself.
It imports nothing and calls nothing that the file names: the few names under which NumPy stores an array and its type
are recognised and read as plain values, every other name ends the reading. Arrays are views of the mapped file, so
that a data set larger than the memory can be read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.errors import InputError

_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
_KNOWN = {
    **{(core, "_reconstruct"): "array" for core in _CORES},
    **{(core, "scalar"): "scalar" for core in _CORES},
    ("numpy", "ndarray"): "array type",
    ("numpy", "dtype"): "type",
    ("numpy.core.numeric", "_frombuffer"): "buffer",
    ("numpy._core.numeric", "_frombuffer"): "buffer",
    ("_codecs", "encode"): "bytes",
    ("__builtin__", "bytes"): "no bytes",
    ("builtins", "bytes"): "no bytes",
}
_KINDS = "biuf"
_MOST_AXES = 8


class _Damaged(Exception):
    """What the file holds makes no sense; the message says what."""


@dataclass(frozen=True)
class _Name:
    """A name of `_KNOWN`: says how the values after it are to be read."""

    meaning: str


@dataclass
class _Type:
    """A NumPy type to be: None stands for Python objects."""

    dtype: np.dtype | None


@dataclass
class _Array:
    """A NumPy array to be."""

    value: np.ndarray | list | None = None


_MARK = object()


def read_inert_pickle(path: Path) -> Any:
    """What a pickle holds, made of None, bool, int, float, str, bytes, tuple, list, dict and read-only NumPy arrays.

    Arrays of objects come as lists. Raises InputError for a file that is damaged or holds anything else.
    """
    try:
        with path.open("rb") as file:
            # It stays mapped as long as an array looks at it.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"expected a pickle at {path}, found no readable file ({error})") from error
    try:
        return _Reader(memoryview(content)).read()
    except _Damaged as error:
        raise InputError(
            f"expected a pickle of numbers, text, lists and NumPy arrays in {path}, found {error}; nothing in it was"
            " executed"
        ) from error


class _Reader:
    """One pass over the opcodes, with the stack and memo that they speak of."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._at = content, 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        try:
            while True:
                opcode = self._take(1)[0]
                if opcode == ord("."):
                    return _plain(self._pop(), {})
                if opcode not in _OPCODES:
                    raise _Damaged(f"the opcode {bytes([opcode])!r} at byte {self._at - 1}")
                _OPCODES[opcode](self)
        except (IndexError, TypeError, KeyError, struct.error, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise _Damaged(f"bytes that make no sense at {self._at} ({type(error).__name__})") from error

    def _take(self, count: int) -> memoryview:
        if count < 0 or self._at + count > len(self._content):
            raise _Damaged(f"an end in the middle, at byte {len(self._content)}")
        taken = self._content[self._at : self._at + count]
        self._at += count
        return taken

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self._at
        while self._content[end] != 10:
            end += 1
            if end - self._at > 256:
                raise _Damaged("a name of more than 256 characters")
        text = bytes(self._content[self._at : end]).decode()
        self._at = end + 1
        return text

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _Damaged("an instruction without its values")
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                values = self._stack[at + 1 :]
                del self._stack[at:]
                return values
        raise _Damaged("an instruction without its mark")

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise _Damaged(f"something else in place of a {kind.__name__}")
        return self._stack[-1]

    # --- one method for each kind of opcode ---

    def text(self, form: str) -> None:
        self._push(bytes(self._take(self._number(form))).decode("utf-8", "surrogatepass"))

    def data(self, form: str) -> None:
        self._push(self._take(self._number(form)))

    def integer(self, form: str) -> None:
        self._push(self._number(form))

    def long(self) -> None:
        self._push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def append(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise _Damaged("a key without a value")
        target = self._top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if isinstance(key, memoryview):
                key = bytes(key).decode("latin-1")  # text of Python 2
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise _Damaged(f"a dictionary's key of type {type(key).__name__}")
            target[key] = value

    def name(self, module: Any, name: Any) -> None:
        meaning = _KNOWN.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if meaning is None:
            called = f"{module}.{name}"
            raise _Damaged(f"the name {called!r}, which is none of NumPy's arrays")
        self._push(_Name(meaning))

    def call(self) -> None:
        """Read the values behind a name; nothing is called."""
        values, name = self._pop(), self._pop()
        if not isinstance(name, _Name) or not isinstance(values, tuple):
            raise _Damaged("a call of something that is no name")
        if name.meaning == "array":
            self._push(_Array())
        elif name.meaning == "type":
            self._push(_Type(_dtype(values[0])))
        elif name.meaning == "buffer":
            data, kind, shape, order = values
            self._push(_Array(_array(data, _known(kind), shape, order == "F")))
        elif name.meaning == "scalar":
            self._push(_array(values[1], _known(values[0]), (), False).item())
        elif name.meaning == "bytes":
            text, coding = values
            if coding != "latin1":
                raise _Damaged(f"bytes written as {coding!r}")
            self._push(memoryview(text.encode("latin-1")))
        elif name.meaning == "no bytes" and values == ():
            self._push(memoryview(b""))
        else:
            raise _Damaged(f"a call of NumPy's {name.meaning}")

    def build(self) -> None:
        """Complete the array or type on the stack with its state."""
        state = self._pop()
        if self._stack and isinstance(self._stack[-1], _Type):
            order = state[1]
            if isinstance(order, memoryview):
                order = bytes(order).decode("latin-1")
            kind = self._stack[-1]
            if (
                state[2] is not None
                or state[3] is not None
                or state[4] is not None
                or order not in ("<", ">", "|", "=")
            ):
                raise _Damaged("an array of records")
            if kind.dtype is not None and order in ("<", ">"):
                kind.dtype = kind.dtype.newbyteorder(order)
            return
        target = self._top(_Array)
        _, shape, kind, fortran, data = state
        if isinstance(kind, _Type) and kind.dtype is None:
            if not isinstance(data, list) or int(np.prod(_shape(shape), dtype=object)) != len(data):
                raise _Damaged("an array of objects of another length than it says")
            target.value = data
        else:
            target.value = _array(data, _known(kind), shape, bool(fortran))


def _dtype(code: Any) -> np.dtype | None:
    """The type of a code such as "f4", numbers and truth values alone; None for Python objects."""
    if isinstance(code, memoryview):
        code = bytes(code).decode("latin-1")
    if code in ("O8", "O4", "O"):
        return None
    if not (isinstance(code, str) and len(code) == 2 and code[0] in _KINDS and code[1] in "1248"):
        raise _Damaged(f"an array of type {code!r}")
    if code == "f1" or (code[0] == "b" and code != "b1"):
        raise _Damaged(f"an array of type {code!r}")
    return np.dtype(code)


def _known(kind: Any) -> np.dtype:
    if not isinstance(kind, _Type) or kind.dtype is None:
        raise _Damaged("an array without a type of numbers")
    return kind.dtype


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > _MOST_AXES:
        raise _Damaged(f"an array of shape {shape!r}")
    if not all(isinstance(side, int) and not isinstance(side, bool) and 0 <= side < 2**40 for side in shape):
        raise _Damaged(f"an array of shape {shape!r}")
    return shape


def _array(data: Any, dtype: np.dtype, shape: Any, fortran: bool) -> np.ndarray:
    """A read-only view [shape] of bytes; their number has to agree."""
    sides = _shape(shape)
    if not isinstance(data, memoryview):
        raise _Damaged("an array without bytes")
    expected = int(np.prod(sides, dtype=object)) * dtype.itemsize
    if expected != len(data):
        raise _Damaged(f"{len(data)} bytes for an array of {expected}")
    return np.frombuffer(data.toreadonly(), dtype).reshape(sides, order="F" if fortran else "C")


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """The value with arrays in place of what stood for them; each container is looked at once."""
    if isinstance(value, (_Name, _Type)) or value is _MARK:
        raise _Damaged("a name in place of a value")
    if isinstance(value, _Array):
        if value.value is None:
            raise _Damaged("an array without content")
        return _plain(value.value, done) if isinstance(value.value, list) else value.value
    if isinstance(value, memoryview):
        return bytes(value)
    if not isinstance(value, (list, tuple, dict)):
        return value
    if id(value) in done:
        if done[id(value)] is _MARK:
            raise _Damaged("a list that holds itself")
        return done[id(value)]
    done[id(value)] = _MARK
    if isinstance(value, dict):
        result: Any = {key: _plain(item, done) for key, item in value.items()}
    else:
        result = type(value)(_plain(item, done) for item in value)
    done[id(value)] = result
    return result


def _remember(reader: _Reader, at: int) -> None:
    if not reader._stack:
        raise _Damaged("nothing to remember")
    reader._memo[at] = reader._stack[-1]


def _opcode_table() -> dict[int, Callable[[_Reader], object]]:
    """How each opcode is read; names are those of Python's pickletools."""

    def named(reader: _Reader) -> None:
        name, module = reader._pop(), reader._pop()
        reader.name(module, name)

    table: dict[bytes, Callable[[_Reader], object]] = {
        b"\x80": lambda r: r._take(1),  # PROTO
        b"\x95": lambda r: r._take(8),  # FRAME
        b"(": lambda r: r._push(_MARK),
        b"0": lambda r: r._pop(),  # POP
        b"1": lambda r: r._since_mark(),  # POP_MARK
        b"N": lambda r: r._push(None),
        b"\x88": lambda r: r._push(True),
        b"\x89": lambda r: r._push(False),
        b"J": lambda r: r.integer("<i"),  # BININT
        b"K": lambda r: r.integer("<B"),  # BININT1
        b"M": lambda r: r.integer("<H"),  # BININT2
        b"\x8a": lambda r: r.long(),  # LONG1
        b"G": lambda r: r.integer(">d"),  # BINFLOAT
        b"X": lambda r: r.text("<I"),  # BINUNICODE
        b"\x8c": lambda r: r.text("<B"),  # SHORT_BINUNICODE
        b"\x8d": lambda r: r.text("<Q"),  # BINUNICODE8
        b"T": lambda r: r.data("<i"),  # BINSTRING
        b"U": lambda r: r.data("<B"),  # SHORT_BINSTRING
        b"B": lambda r: r.data("<I"),  # BINBYTES
        b"C": lambda r: r.data("<B"),  # SHORT_BINBYTES
        b"\x8e": lambda r: r.data("<Q"),  # BINBYTES8
        b"\x96": lambda r: r.data("<Q"),  # BYTEARRAY8
        b"]": lambda r: r._push([]),
        b"}": lambda r: r._push({}),
        b")": lambda r: r._push(()),
        b"t": lambda r: r._push(tuple(r._since_mark())),
        b"l": lambda r: r._push(r._since_mark()),
        b"\x85": lambda r: r.tuple_of(1),
        b"\x86": lambda r: r.tuple_of(2),
        b"\x87": lambda r: r.tuple_of(3),
        b"a": lambda r: r.append([r._pop()]),
        b"e": lambda r: r.append(r._since_mark()),
        b"s": lambda r: r.set_items([r._pop(), r._pop()][::-1]),
        b"u": lambda r: r.set_items(r._since_mark()),
        b"q": lambda r: _remember(r, r._number("<B")),  # BINPUT
        b"r": lambda r: _remember(r, r._number("<I")),  # LONG_BINPUT
        b"\x94": lambda r: _remember(r, len(r._memo)),  # MEMOIZE
        b"h": lambda r: r._push(r._memo[r._number("<B")]),  # BINGET
        b"j": lambda r: r._push(r._memo[r._number("<I")]),  # LONG_BINGET
        b"c": lambda r: r.name(r._line(), r._line()),  # GLOBAL
        b"\x93": named,  # STACK_GLOBAL
        b"R": lambda r: r.call(),
        b"b": lambda r: r.build(),
    }
    return {opcode[0]: read for opcode, read in table.items()}


_OPCODES = _opcode_table()
