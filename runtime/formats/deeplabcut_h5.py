"""DeepLabCut's .h5: a pandas table of points in PyTables' HDF5, read and written by h5py alone.

pandas has two layouts. Labels have the "fixed" layout of plain arrays, which is also written here. Predictions often
have the "table" layout, whose column names are pickles. A pickle is never executed here: its opcodes are read as data,
and only a list of names is accepted.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.errors import InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.deeplabcut import HEADER, SCORER, frame_of, objects_of
from corrflow.runtime.types import FrameResult, KeypointsObject

_KEY = "df_with_missing"
"""Name of DeepLabCut's table."""

_COORDINATES = ("x", "y", "likelihood")
_ROWS = 1024  # rows of a chunk
_CACHE = 1 << 16  # bytes for each table; HDF5's default of a mebibyte grows with the video


class DeepLabCutH5Sink(Sink):
    """Writer of x, y and likelihood of every point and frame. Objects are individuals."""

    def __init__(self, path: str | Path) -> None:
        """Create the file. Raises InputError where the path cannot be written to, or h5py is missing."""
        self._path = Path(path)
        check_writable(self._path)
        self._h5py = import_h5py(self._path)
        self._output = AtomicFile(self._path, exclusive=True)
        self._file = self._h5py.File(self._output.part, "w", rdcc_nbytes=_CACHE)
        self._columns: list[tuple[str, ...]] = []
        self._frames: Any = None

    def write(self, result: FrameResult) -> None:
        keypoints = [obj for obj in result.objects if obj.points is not None]
        if self._frames is None:
            self._columns = [
                (SCORER, obj.name or str(obj.id), name, coordinate)
                for obj in keypoints for name in obj.point_names for coordinate in _COORDINATES
            ]  # fmt: skip
            columns = max(len(self._columns), 1)
            self._frames = self._file.create_dataset("frames", (0,), "<i8", maxshape=(None,), chunks=(_ROWS,))
            self._values = self._file.create_dataset(
                f"{_KEY}/block0_values", (0, columns), "<f8", maxshape=(None, columns), chunks=(_ROWS, columns)
            )
        if not self._columns:
            return
        row: list[float] = []
        for obj in keypoints:
            assert obj.points is not None and obj.point_confidence is not None
            for (x, y), confidence in zip(obj.points.tolist(), obj.point_confidence.tolist(), strict=True):
                row += [x, y, confidence]
        with write_errors(self._path):
            for dataset, value in ((self._frames, result.frame.index), (self._values, row)):
                dataset.resize(len(dataset) + 1, 0)
                dataset[-1] = value

    def close(self) -> None:
        if self._file:
            with write_errors(self._path):
                if self._columns:
                    self._write_axes()
                self._file.close()
                self._output.finish(keep=bool(self._columns))

    def _write_axes(self) -> None:
        """Write the axes and attributes that make a pandas table of the values."""
        group = self._file[_KEY]
        self._file.move("frames", f"{_KEY}/axis1")
        group.attrs.update({"ndim": 2, "nblocks": 1, "axis0_nlevels": len(HEADER), "block0_items_nlevels": len(HEADER)})
        words = {"pandas_type": "frame", "encoding": "UTF-8", "errors": "strict", "axis1_variety": "regular"}
        for name, word in (words | {"axis0_variety": "multi", "block0_items_variety": "multi"}).items():
            self._set_text(group, name, word)
        self._set_text(group["axis1"], "kind", "integer")
        group["block0_values"].attrs["transposed"] = np.uint8(1)
        for axis in ("axis0", "block0_items"):
            for level, title in enumerate(HEADER):
                names = [column[level] for column in self._columns]
                values = sorted(set(names))
                group[f"{axis}_label{level}"] = np.array([values.index(name) for name in names], np.int32)
                dataset = group.create_dataset(f"{axis}_level{level}", data=np.array([v.encode() for v in values], "S"))
                for attribute, word in (("kind", "string"), ("name", title), ("nan_rep", "nan")):
                    self._set_text(dataset, attribute, word)

    def _set_text(self, node: Any, name: str, word: str) -> None:
        node.attrs.create(name, word, dtype=self._h5py.string_dtype("utf-8", len(word.encode())))


def read_deeplabcut_h5(path: Path) -> dict[int | str, list[KeypointsObject]]:
    """Read the labelled points by frame, as `read_deeplabcut` does. Raises InputError."""
    h5py = import_h5py(path)
    try:
        with h5py.File(path, "r") as file:
            tables = [group for group in file.values() if "pandas_type" in group.attrs]
            if len(tables) != 1:
                raise ValueError(f"{len(tables)} tables in place of one")
            read = _fixed if _text(tables[0].attrs["pandas_type"]) == "frame" else _table
            columns, index, values = read(tables[0])
        by_frame: dict[int | str, list[KeypointsObject]] = {}
        for row, numbers in zip(index, values, strict=True):
            objects: dict[str, dict[str, tuple[float, float]]] = {}
            cells = dict(zip(columns, numbers.tolist(), strict=True))
            for column in columns:
                point = tuple(cells[(*column[:-1], coordinate)] for coordinate in ("x", "y"))
                if column[-1] == "x" and np.isfinite(point).all():
                    individual = column[1] if len(column) == 4 else ""
                    objects.setdefault(individual, {})[column[-2]] = point
            if objects:
                by_frame[frame_of(row)] = objects_of(objects)
        if not by_frame:
            raise InputError(f"expected labelled points in {path}, got none; label at least one frame")
        return by_frame
    # h5py reports damage with many plain exceptions.
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"expected DeepLabCut's table of points in {path}, got a file that cannot be read "
            f"({type(error).__name__}: {error}); save it again, or as CSV"
        ) from error


_Table = tuple[list[tuple[str, ...]], list[str], np.ndarray]  # columns, rows, values [rows, columns]


def _fixed(group: Any) -> _Table:
    """Read pandas' fixed layout: each axis as arrays of levels and of indices into them, and one block of values."""
    if int(group.attrs.get("nblocks", 1)) != 1:
        raise ValueError("columns of several types")
    columns = _levels(group, "block0_items")
    rows = [row[-1] for row in _levels(group, "axis1")] if "axis1_level0" in group else _texts(group["axis1"][()])
    return columns, rows, _block(group["block0_values"][()], columns)


def _levels(group: Any, axis: str) -> list[tuple[str, ...]]:
    """Return the names along an axis, one tuple of levels for each entry."""
    count = sum(f"{axis}_level{level}" in group for level in range(8))
    if not count:
        raise ValueError("columns that are not of scorer, bodyparts and coords")
    levels = [_texts(group[f"{axis}_level{level}"][()]) for level in range(count)]
    indices = [group[f"{axis}_label{level}"][()].tolist() for level in range(count)]
    return [tuple(level[at] for level, at in zip(levels, row, strict=True)) for row in zip(*indices, strict=True)]


def _table(group: Any) -> _Table:
    """Read pandas' table layout: one record for each row, with the column names in an attribute."""
    table = group["table"]
    blocks = sorted(name for name in table.dtype.names if name.startswith("values_block_") and table.dtype[name].shape)
    if len(blocks) != 1:
        raise ValueError("columns of several types")
    columns = _names(bytes(table.attrs[f"{blocks[0]}_kind"]))
    return columns, _texts(table["index"]), _block(table[blocks[0]], columns)


def _block(values: np.ndarray, columns: list[tuple[str, ...]]) -> np.ndarray:
    """Return the values [rows, columns]. Raises ValueError where they do not fit the columns."""
    if values.dtype.kind != "f" or values.ndim != 2 or values.shape[1] != len(columns):
        raise ValueError(f"values of {values.dtype} {list(values.shape)} for {len(columns)} columns")
    if not columns or len(columns[0]) not in (3, 4):
        raise ValueError("columns that are not of scorer, bodyparts and coords")
    return values


def _texts(values: np.ndarray) -> list[str]:
    return [_text(value) for value in values.tolist()]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _names(pickled: bytes) -> list[tuple[str, ...]]:
    """Read a list of tuples of texts from the opcodes of a pickle, without looking up or calling anything."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif opcode.name in ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"):
            stack.append(argument)
        elif opcode.name in ("LIST", "TUPLE"):
            start = marks.pop()
            stack[start:] = [list(stack[start:]) if opcode.name == "LIST" else tuple(stack[start:])]
        elif opcode.name in ("PUT", "BINPUT"):
            memo[argument] = stack[-1]
        elif opcode.name in ("GET", "BINGET"):
            stack.append(memo[argument])
        elif opcode.name == "APPEND":
            entry = stack.pop()
            stack[-1].append(entry)
        elif opcode.name not in ("STOP", "PROTO"):
            raise ValueError(f"names of columns that are no list of texts ({opcode.name})")
    (names,) = stack
    if not all(isinstance(name, tuple) and all(isinstance(part, str) for part in name) for name in names):
        raise ValueError("names of columns that are no texts")
    return names


def import_h5py(path: Path) -> Any:
    """Return the module h5py. Raises InputError, with the path that needs it, where h5py is missing."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"expected h5py for {path}, found none; pip install 'corrflow[formats]'") from error
    return h5py
