"""Reader of data-only pickles: numbers, text, bytes, lists, tuples, dictionaries and NumPy arrays.

TAP-Vid is published as pickles, and Python's unpickler calls any function that a file names. Here a name in the file
becomes text, and nothing is imported or called. Arrays are built from their bytes.
"""

from __future__ import annotations

import mmap
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.errors import InputError
from corrflow.file_budget import FileBudget, open_regular

MAX_BYTES = 16 * 2**30
"""Maximum size of a file, which is read into memory."""

MAX_OPCODES = 2_000_000
"""Maximum number of opcodes of a file. Each may take some 100 bytes of memory; TAP-Vid's files have a tenth as many."""

_BYTES_OF_OPCODE = 200
_PythonUnpickler = vars(pickle)["_Unpickler"]
_NAMES = {
    "numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer", "_codecs.encode", "builtins.bytes",
}  # fmt: skip
_KEYS = {str, int, float, bool, type(None)}
_DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "O8"}
_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG",
    "LONG1", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "PUT", "BINPUT", "LONG_BINPUT",
    "MEMOIZE", "GET", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip


def read_pickle(path: Path) -> Any:
    """Read a pickle of None, bool, int, float, str, bytes, tuple, list, dict and NumPy arrays of numbers or objects.

    Raises InputError for a file that is damaged, too large, or holds other types.
    """
    try:
        with open_regular(path) as file:
            # Mapped bytes need no memory for lengths that a damaged file claims and lacks.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"expected a pickle at {path}, found no readable file ({error})") from error
    with content:
        try:
            if len(content) > MAX_BYTES:
                raise pickle.UnpicklingError(f"a file of {len(content)} bytes")
            budget = FileBudget(path, len(content))
            for count, _ in enumerate(pickletools.genops(content)):  # pyright: ignore[reportArgumentType]
                budget.take(_BYTES_OF_OPCODE, "parts")
                if count == MAX_OPCODES:
                    raise pickle.UnpicklingError(f"more than {MAX_OPCODES} opcodes")
            content.seek(0)
            return _DataUnpickler(content, spare=2 * len(content)).load()
        except InputError:
            raise
        except Exception as error:  # damaged bytes raise any type, such as MemoryError and RecursionError
            known = isinstance(error, pickle.UnpicklingError)
            found = str(error) if known else f"bytes that make no sense ({type(error).__name__})"
            raise InputError(
                f"expected a pickle of numbers, text, lists and NumPy arrays in {path}, found {found}; nothing in it"
                " was executed"
            ) from error


class _DataUnpickler(_PythonUnpickler):
    """Unpickler with the opcodes of data alone; the calls that build arrays are recognised, not executed.

    The base is Python's unpickler in Python: the C unpickler calls objects on its stack, hashes any key, and allocates
    memory for a memo's index.

    spare:  bytes that may still be copied. A malicious file can copy one text many times; a valid file copies each
            text once to bytes and once to an array.
    """

    def __init__(self, file: mmap.mmap, spare: int) -> None:
        super().__init__(file)
        self._spare = spare

    def find_class(self, module: str, name: str) -> str:
        full = f"{module}.{name}".replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if full not in _NAMES:
            raise pickle.UnpicklingError(f"the name {full[:80]!r}, which no array needs")
        return full

    def load_reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        match name if isinstance(name, str) else None, arguments:
            case "numpy.core.multiarray._reconstruct", _:
                value = np.empty(0, np.int8)  # BUILD completes the array; the shape in the file is ignored
            case "numpy.dtype", (str(code), *_) if code in _DTYPES:
                value = np.dtype(code, False, True)
            case "numpy.core.multiarray.scalar", (dtype, data):
                value = _array(data, dtype, ())[()]
            case "numpy.core.numeric._frombuffer", (data, dtype, shape, "C" | "F" as order):
                value = _array(data, dtype, shape, order)
            case "numpy.core.numeric._frombuffer", (data, dtype, shape, "K", axes):
                value = _array(data, dtype, shape).transpose(axes)
            case "_codecs.encode", (str(text), "latin1"):
                self._copy(len(text))
                value = text.encode("latin-1")
            case "builtins.bytes", ():
                value = b""
            case _:
                raise pickle.UnpicklingError("a call that no array of numbers needs")
        self.stack.append(value)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        match state, target:
            case (_, "<" | ">" as order, None, None, None, *_), np.dtype(kind="b" | "i" | "u" | "f"):
                target.__setstate__((3, order, None, None, None, -1, -1, 0))  # pyright: ignore[reportAttributeAccessIssue]
            case (_, "|" | "=", None, None, None, *_), np.dtype():
                pass
            # An array with bytes may have views, which would lose their memory.
            case (_, shape, np.dtype() as dtype, fortran, data), np.ndarray(nbytes=0):
                self._copy(len(data))
                array = np.empty(len(data), dtype).reshape(shape) if dtype.hasobject else _array(data, dtype, shape)
                target.__setstate__((1, array.shape, dtype, bool(fortran), data))  # pyright: ignore[reportArgumentType]
            case _:
                raise pickle.UnpicklingError("a state that makes no array of numbers")

    def load_setitems(self) -> None:
        items = self.pop_mark()
        # The hash of deeply shared tuples takes exponential time.
        if not {type(key) for key in items[::2]} <= _KEYS:
            raise pickle.UnpicklingError("a dictionary's key that is neither text nor number")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_setitem(self) -> None:
        self.metastack.append(self.stack[:-2])
        self.stack = self.stack[-2:]
        self.load_setitems()

    def load_dict(self) -> None:
        self.metastack[-1].append({})
        self.load_setitems()

    def _copy(self, count: int) -> None:
        self._spare -= count
        if self._spare < 0:
            raise pickle.UnpicklingError("more bytes in its arrays than in the file")

    dispatch = {
        ord(opcode.code): _PythonUnpickler.dispatch[ord(opcode.code)]
        for opcode in pickletools.opcodes
        if opcode.name in _OPCODES
    } | {b"R"[0]: load_reduce, b"b"[0]: load_build, b"u"[0]: load_setitems, b"s"[0]: load_setitem, b"d"[0]: load_dict}


def _array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    """View bytes as an array [shape]. Raises an error for another number of bytes."""
    if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, np.dtype):
        raise pickle.UnpicklingError("an array without bytes or without a type of numbers")
    return np.frombuffer(data, dtype).reshape(shape, order=order)
