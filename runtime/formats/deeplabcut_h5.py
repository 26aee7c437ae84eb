"""DeepLabCut's .h5: a pandas table of points in PyTables' HDF5, in and out by h5py alone.

pandas stores such a table in two layouts. Labels are in its "fixed" one, which is plain arrays and is what is written
here; predictions are often in its "table" one, whose names of columns are pickles. pandas and PyTables unpickle what a
file holds; here the opcodes of a list of names are read as data, and anything else is refused.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.atomic_files import finish, part_of, prepare_place, write_failed
from corrflow.errors import InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.deeplabcut import HEADER, SCORER, frame_of, objects_of
from corrflow.runtime.types import FrameResult, KeypointsObject

_KEY = "df_with_missing"
"""What DeepLabCut calls its table."""

_COORDINATES = ("x", "y", "likelihood")
_ROWS = 1024  # of a chunk
_CACHE = 1 << 16  # bytes for each table, in place of a mebibyte, which fills up as a video goes on


class DeepLabCutH5Sink(Sink):
    """x, y and likelihood of every point of every frame, objects as individuals; rows are appended as they come."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError where the path cannot be written to or h5py is missing."""
        self._path = Path(path)
        prepare_place(self._path)
        self._h5py = _h5py(self._path)
        self._file = self._h5py.File(part_of(self._path), "w", rdcc_nbytes=_CACHE)
        self._columns: list[tuple[str, ...]] = []
        self._frames: Any = None

    def write(self, result: FrameResult) -> None:
        tracked = [track for track in result.objects if track.points is not None]
        if self._frames is None:
            self._columns = [
                (SCORER, track.name or str(track.id), name, coordinate)
                for track in tracked for name in track.point_names for coordinate in _COORDINATES
            ]  # fmt: skip
            columns = max(len(self._columns), 1)
            self._frames = self._file.create_dataset("frames", (0,), "<i8", maxshape=(None,), chunks=(_ROWS,))
            self._values = self._file.create_dataset(
                f"{_KEY}/block0_values", (0, columns), "<f8", maxshape=(None, columns), chunks=(_ROWS, columns)
            )
        if not self._columns:
            return
        row: list[float] = []
        for track in tracked:
            assert track.points is not None and track.point_confidence is not None
            for (x, y), confidence in zip(track.points.tolist(), track.point_confidence.tolist(), strict=True):
                row += [x, y, confidence]
        try:
            for dataset, value in ((self._frames, result.frame.index), (self._values, row)):
                dataset.resize(len(dataset) + 1, 0)
                dataset[-1] = value
        except OSError as error:
            raise write_failed(self._path, error) from None

    def close(self) -> None:
        if not self._file:
            return
        try:
            if self._columns:
                self._describe()
            self._file.close()
            finish(self._path, keep=bool(self._columns))
        except OSError as error:
            raise write_failed(self._path, error) from None

    def _describe(self) -> None:
        """Write around the values what makes them a table to pandas."""
        group = self._file[_KEY]
        self._file.move("frames", f"{_KEY}/axis1")
        group.attrs.update({"ndim": 2, "nblocks": 1, "axis0_nlevels": len(HEADER), "block0_items_nlevels": len(HEADER)})
        words = {"pandas_type": "frame", "encoding": "UTF-8", "errors": "strict", "axis1_variety": "regular"}
        for name, word in (words | {"axis0_variety": "multi", "block0_items_variety": "multi"}).items():
            self._say(group, name, word)
        self._say(group["axis1"], "kind", "integer")
        group["block0_values"].attrs["transposed"] = np.uint8(1)
        for axis in ("axis0", "block0_items"):
            for level, name in enumerate(HEADER):
                own = [column[level] for column in self._columns]
                values = sorted(set(own))
                group[f"{axis}_label{level}"] = np.array([values.index(value) for value in own], np.int32)
                dataset = group.create_dataset(f"{axis}_level{level}", data=np.array([v.encode() for v in values], "S"))
                for attribute, word in (("kind", "string"), ("name", name), ("nan_rep", "nan")):
                    self._say(dataset, attribute, word)

    def _say(self, place: Any, name: str, word: str) -> None:
        place.attrs.create(name, word, dtype=self._h5py.string_dtype("utf-8", len(word.encode())))


def read_deeplabcut_h5(path: Path) -> dict[int | str, list[KeypointsObject]]:
    """The labelled points by frame, as `read_deeplabcut`. Raises InputError for what cannot be read."""
    h5py = _h5py(path)
    try:
        with h5py.File(path, "r") as file:
            tables = [group for group in file.values() if "pandas_type" in group.attrs]
            if len(tables) != 1:
                raise ValueError(f"{len(tables)} tables in place of one")
            read = _fixed if _text(tables[0].attrs["pandas_type"]) == "frame" else _table
            columns, index, values = read(tables[0])
        found: dict[int | str, list[KeypointsObject]] = {}
        for row, numbers in zip(index, values, strict=True):
            objects: dict[str, dict[str, tuple[float, float]]] = {}
            places = dict(zip(columns, numbers.tolist(), strict=True))
            for column in columns:
                place = tuple(places[(*column[:-1], coordinate)] for coordinate in ("x", "y"))
                if column[-1] == "x" and np.isfinite(place).all():
                    individual = column[1] if len(column) == 4 else ""
                    objects.setdefault(individual, {})[column[-2]] = place
            if objects:
                found[frame_of(row)] = objects_of(objects)
        if not found:
            raise InputError(f"expected labelled points in {path}, got none; label at least one frame")
        return found
    # h5py reports damage with many plain exceptions.
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"expected DeepLabCut's table of points in {path}, got a file that cannot be read "
            f"({type(error).__name__}: {error}); save it again, or as CSV"
        ) from error


_Table = tuple[list[tuple[str, ...]], list[str], np.ndarray]  # columns, rows, values [rows, columns]


def _fixed(group: Any) -> _Table:
    """pandas' fixed layout: each axis as arrays of levels and of places in them, one block of values."""
    if int(group.attrs.get("nblocks", 1)) != 1:
        raise ValueError("columns of several types")
    columns = _levels(group, "block0_items")
    rows = [row[-1] for row in _levels(group, "axis1")] if "axis1_level0" in group else _texts(group["axis1"][()])
    return columns, rows, _block(group["block0_values"][()], columns)


def _levels(group: Any, axis: str) -> list[tuple[str, ...]]:
    count = sum(f"{axis}_level{level}" in group for level in range(8))
    if not count:
        raise ValueError("columns that are not of scorer, bodyparts and coords")
    levels = [_texts(group[f"{axis}_level{level}"][()]) for level in range(count)]
    places = [group[f"{axis}_label{level}"][()].tolist() for level in range(count)]
    return [tuple(level[at] for level, at in zip(levels, row, strict=True)) for row in zip(*places, strict=True)]


def _table(group: Any) -> _Table:
    """pandas' table layout: one record for each row, the names of the columns in an attribute."""
    table = group["table"]
    blocks = sorted(name for name in table.dtype.names if name.startswith("values_block_") and table.dtype[name].shape)
    if len(blocks) != 1:
        raise ValueError("columns of several types")
    columns = _names(bytes(table.attrs[f"{blocks[0]}_kind"]))
    return columns, _texts(table["index"]), _block(table[blocks[0]], columns)


def _block(values: np.ndarray, columns: list[tuple[str, ...]]) -> np.ndarray:
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
    """A list of tuples of texts out of a pickle, by its opcodes: nothing is looked up or called."""
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


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"expected h5py for {path}, found none; pip install 'corrflow[formats]'") from error
    return h5py
