"""DeepLabCut's .h5: a pandas table of points in PyTables' HDF5, read and written by h5py alone.

pandas has two layouts. Labels have the "fixed" layout of plain arrays, which is also written here. Predictions often
have the "table" layout, whose column names are pickles. A pickle is never executed here: its opcodes are read as data,
and only a list of names is accepted.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.errors import InputError
from corrflow.file_budget import FileBudget
from corrflow.runtime.formats.annotations import FileContent, ReadContext
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.deeplabcut_table import TableLayout, read_rows, row_of
from corrflow.runtime.formats.hdf5_check import check_hdf5
from corrflow.runtime.formats.label_schema import EMPTY_SCHEMA, LabelSchema
from corrflow.runtime.types import FrameResult

KEY = "df_with_missing"
"""Name of DeepLabCut's table."""

_ROWS = 1024  # rows of a chunk
_CACHE = 1 << 16  # bytes for each table; HDF5's default of a mebibyte grows with the video
_BYTES_OF_VALUE = 5  # in Python, for each byte of a table
_MAX_NAMES = 1 << 20  # opcodes of the pickled names of columns


class DeepLabCutH5Sink(Sink):
    """Writer of x, y and likelihood of every point and frame, in the columns of the labels.

    Objects are individuals. Rows are indices of frames from 0, or images where the labels name images of a folder.
    """

    def __init__(self, path: str | Path, schema: LabelSchema = EMPTY_SCHEMA) -> None:
        """Create the file. Raises InputError where the path cannot be written to, or h5py is missing."""
        self._table = H5Table(path)
        self._schema, self._layout = schema, TableLayout.of(schema)

    def write(self, result: FrameResult) -> None:
        self._layout.extend(result, self._schema)
        if self._layout.points:
            self._table.append(row_of(result, self._schema), self._layout.values(result))

    def close(self) -> None:
        self._table.finish(self._layout.columns(), self._layout.titles())


class H5Table:
    """Table of numbers that grows by rows, in pandas' fixed layout."""

    def __init__(self, path: str | Path) -> None:
        """Create the file. Raises InputError where the path cannot be written to, or h5py is missing."""
        self._path = Path(path)
        check_writable(self._path)
        self._h5py = import_h5py(self._path)
        self._output = AtomicFile(self._path)
        self._file = self._h5py.File(self._output.part, "w", rdcc_nbytes=_CACHE, locking=False)
        self._values: Any = None
        self._rows: list[int | str] | None = None  # of images; indices of frames are in the file
        self._frames: Any = None

    def append(self, row: int | str, values: Sequence[float]) -> None:
        """Add a row, which may have more columns than the rows before. Raises CorrflowError where the disk is full."""
        count = len(values)
        with write_errors(self._path):
            if self._values is None:
                self._values = self._file.create_dataset(
                    f"{KEY}/block0_values", (0, count), "<f8", maxshape=(None, None), chunks=(_ROWS, count),
                    fillvalue=np.nan,
                )  # fmt: skip
                self._frames = self._file.create_dataset("frames", (0,), "<i8", maxshape=(None,), chunks=(_ROWS,))
                self._rows = [] if isinstance(row, str) else None
            rows = self._values.shape[0] + 1
            self._values.resize((rows, count))
            self._values[-1] = values
            if self._rows is not None:
                self._rows.append(row)
            else:
                self._frames.resize(rows, 0)
                self._frames[-1] = row

    def finish(self, columns: Sequence[tuple[str, ...]], titles: Sequence[str]) -> None:
        """Write the names of columns and rows, and the file appears; without rows it does not. Raises CorrflowError."""
        if self._file:
            try:
                with write_errors(self._path):
                    if self._values is not None:
                        self._write_axes(columns, titles)
                    self._file.close()
                    self._output.finish(keep=self._values is not None)
            finally:
                self._output.finish(keep=False)

    def _write_axes(self, columns: Sequence[tuple[str, ...]], titles: Sequence[str]) -> None:
        """Write the axes and attributes that make a pandas table of the values."""
        group = self._file[KEY]
        group.attrs.update({"ndim": 2, "nblocks": 1})
        for name, word in {"pandas_type": "frame", "encoding": "UTF-8", "errors": "strict"}.items():
            self._set_text(group, name, word)
        group["block0_values"].attrs["transposed"] = np.uint8(1)
        for axis in ("axis0", "block0_items"):
            self._write_levels(group, axis, columns, titles)
        paths = [PurePosixPath(str(row)).parts for row in self._rows or ()]
        if paths and all(len(parts) == 3 for parts in paths):  # labeled-data, folder, image
            self._write_levels(group, "axis1", paths, ())
        else:
            self._set_text(group, "axis1_variety", "regular")
            if self._rows is None:
                self._file.move("frames", f"{KEY}/axis1")
                self._set_text(group["axis1"], "kind", "integer")
            else:
                self._write_texts(group, "axis1", [str(row) for row in self._rows])
        if "frames" in self._file:
            del self._file["frames"]

    def _write_levels(self, group: Any, axis: str, names: Sequence[Sequence[str]], titles: Sequence[str]) -> None:
        self._set_text(group, f"{axis}_variety", "multi")
        group.attrs[f"{axis}_nlevels"] = len(names[0])
        for level in range(len(names[0])):
            words = [entry[level] for entry in names]
            values = sorted(set(words))
            number = {value: k for k, value in enumerate(values)}
            group[f"{axis}_label{level}"] = np.array([number[word] for word in words], np.int32)
            dataset = self._write_texts(group, f"{axis}_level{level}", values)
            if titles:
                self._set_text(dataset, "name", titles[level])

    def _write_texts(self, group: Any, name: str, texts: Sequence[str]) -> Any:
        encoded = np.array([text.encode() or b" " for text in texts], "S")
        dataset = group.create_dataset(name, data=encoded)
        self._set_text(dataset, "kind", "string")
        self._set_text(dataset, "nan_rep", "nan")
        return dataset

    def _set_text(self, node: Any, name: str, word: str) -> None:
        node.attrs.create(name, word, dtype=self._h5py.string_dtype("utf-8", len(word.encode())))


def read_deeplabcut_h5(path: Path, content: Any, context: ReadContext) -> FileContent:
    """Read the labelled points by frame; see `read_rows`. Raises InputError."""
    try:
        columns, rows, values = read_h5_table(path, context.budget)
        return read_rows(columns, zip(rows, values.tolist(), strict=True), context)
    # h5py reports damage with many plain exceptions.
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"expected DeepLabCut's table of points in {path}, got a file that cannot be read "
            f"({type(error).__name__}: {error}); save it again, or as CSV"
        ) from error


_Table = tuple[list[tuple[str, ...]], list[tuple[str, ...]], np.ndarray]  # columns, rows, values [rows, columns]


def read_h5_table(path: Path, budget: FileBudget | None = None) -> _Table:
    """Return columns, rows and values of a table. Raises plain exceptions, and InputError where h5py is missing."""
    h5py = import_h5py(path)
    budget = budget or FileBudget.of(path)
    check_hdf5(path)
    with h5py.File(path, "r") as file:
        tables = [group for group in file.values() if "pandas_type" in group.attrs]
        if len(tables) != 1:
            raise ValueError(f"{len(tables)} tables in place of one")
        return (_fixed if _text(tables[0].attrs["pandas_type"]) == "frame" else _table)(tables[0], budget)


def _fixed(group: Any, budget: FileBudget) -> _Table:
    """Read pandas' fixed layout: axes as arrays of levels and of indices into them; columns of one type are a block."""
    count = int(group.attrs.get("nblocks", 1))
    blocks = [
        _block(read_array(group[f"block{k}_values"], budget), _levels(group, f"block{k}_items", budget))
        for k in range(min(count, 64))
    ]
    if "axis1_level0" in group:
        rows = _levels(group, "axis1", budget)
    else:
        rows = [(one,) for one in _texts(read_array(group["axis1"], budget))]
    return _joined(blocks, _levels(group, "axis0", budget), rows)


def _levels(group: Any, axis: str, budget: FileBudget) -> list[tuple[str, ...]]:
    """Return the names along an axis, one tuple of levels for each entry."""
    count = sum(f"{axis}_level{level}" in group for level in range(8))
    if not count:
        raise ValueError("columns that are not of scorer, bodyparts and coords")
    levels = [_texts(read_array(group[f"{axis}_level{level}"], budget)) for level in range(count)]
    indices = [read_array(group[f"{axis}_label{level}"], budget).tolist() for level in range(count)]
    return [tuple(level[at] for level, at in zip(levels, row, strict=True)) for row in zip(*indices, strict=True)]


def _table(group: Any, budget: FileBudget) -> _Table:
    """Read pandas' table layout: one record for each row, with the column names in attributes."""
    table = group["table"]
    names = sorted(name for name in table.dtype.names if name.startswith("values_block_") and table.dtype[name].shape)
    if not names:
        raise ValueError("no columns of numbers")
    records = read_array(table, budget)
    blocks = [_block(records[name], _names(bytes(table.attrs[f"{name}_kind"]))) for name in names]
    columns = [column for _, columns in blocks for column in columns]
    return _joined(blocks, columns, [(one,) for one in _texts(records["index"])])


_Block = tuple[np.ndarray, list[tuple[str, ...]]]  # values [rows, columns], and the columns


def _block(values: np.ndarray, columns: list[tuple[str, ...]]) -> _Block:
    """Check a block. Raises ValueError where the values do not fit the columns."""
    if values.dtype.kind not in "fiu" or values.ndim != 2 or values.shape[1] != len(columns):
        raise ValueError(f"values of {values.dtype} {list(values.shape)} for {len(columns)} columns")
    return values, columns


def _joined(blocks: Sequence[_Block], order: list[tuple[str, ...]], rows: list[tuple[str, ...]]) -> _Table:
    """Combine the blocks of a table, with their columns in order."""
    columns = [column for _, columns in blocks for column in columns]
    if len(set(columns)) != len(columns) or set(order) != set(columns):
        order = columns
    place = {column: k for k, column in enumerate(columns)}
    values = np.concatenate([np.asarray(values, np.float64) for values, _ in blocks], 1)
    return order, rows, values[:, [place[column] for column in order]] if len(place) == len(order) else values


def read_array(dataset: Any, budget: FileBudget) -> np.ndarray:
    """Return a data set as an array. Raises ValueError for one in other files, and BudgetExceeded for a large one.

    A small file may state a table of any size, whose cells it does not have.
    """
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"a table {dataset.name} that is in other files")
    if dataset.size is None:
        raise ValueError(f"a table {dataset.name} without cells")
    budget.take(_BYTES_OF_VALUE * dataset.size * max(dataset.dtype.itemsize, 8), "tables")
    return dataset[()]


def _texts(values: np.ndarray) -> list[str]:
    return [_text(value) for value in values.tolist()]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _names(pickled: bytes) -> list[tuple[str, ...]]:
    """Read a list of tuples of texts from the opcodes of a pickle, without looking up or calling anything."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if count > _MAX_NAMES:
            raise ValueError(f"more than {_MAX_NAMES} steps of a pickle for the names of columns")
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
        raise InputError(f"expected h5py for {path}, found none; pip install h5py") from error
    return h5py
