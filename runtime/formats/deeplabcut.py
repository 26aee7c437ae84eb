"""DeepLabCut's CSV of points, for one animal or several: lines of names, then one line for each frame."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.atomic_files import AtomicFile, encoded, write_errors
from corrflow.errors import InputError
from corrflow.file_budget import open_text
from corrflow.runtime.formats.annotations import FileContent, ReadContext
from corrflow.runtime.formats.base import TableSink
from corrflow.runtime.formats.deeplabcut_table import COORDINATES, TITLES, TableLayout, read_rows, row_of
from corrflow.runtime.formats.label_schema import EMPTY_SCHEMA, LabelSchema
from corrflow.runtime.types import FrameResult

_BYTES_OF_ROW, _BYTES_OF_CELL = 600, 40  # of a table in memory; a row may lack cells


class DeepLabCutSink(TableSink):
    """Writer of x, y and likelihood of every point, in the columns of the labels.

    Objects are individuals. Rows are indices of frames from 0, or images where the labels name images of a folder.
    """

    _streams = False

    def __init__(self, path: str | Path, schema: LabelSchema = EMPTY_SCHEMA) -> None:
        """Create the file. Raises InputError where the path cannot be written to."""
        super().__init__(path)
        self._schema, self._layout = schema, TableLayout.of(schema)
        self._columns_in_file = 0

    def _lines(self, result: FrameResult) -> str:
        self._layout.extend(result, self._schema)
        if self._is_empty:
            self._columns_in_file = len(self._layout.points)
            self._header = header_text(self._layout.columns(), self._layout.titles())
        return csv_line([row_of(result, self._schema), *cells_of(self._layout.values(result))])

    def close(self) -> None:
        assert self._file is not None  # `_streams`
        if not self._file.closed and len(self._layout.points) > self._columns_in_file and not self._is_empty:
            with write_errors(self._path):
                self._write_header_anew()
        super().close()

    def _write_header_anew(self) -> None:
        """Add the columns of objects that came later, and empty cells to the rows before."""
        width = 1 + len(COORDINATES) * len(self._layout.points)
        with (
            AtomicFile(self._output.part) as part,
            open(self._output.part, encoding="utf-8", newline="") as old,
            open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as new,
        ):
            old.seek(len(encoded(self._header)))
            new.write(header_text(self._layout.columns(), self._layout.titles()))
            for row in csv.reader(old):
                new.write(csv_line([*row, *[""] * (width - len(row))]))


def header_text(columns: Sequence[tuple[str, ...]], titles: Sequence[str], index_columns: int = 1) -> str:
    """Return the lines of names of a table."""
    blank = [""] * (index_columns - 1)
    rows = zip(titles, zip(*columns, strict=True), strict=False)
    return "".join(csv_line([title, *blank, *names]) for title, names in rows)


def table_text(
    columns: Sequence[tuple[str, ...]], titles: Sequence[str], rows: Sequence[int | str], values: np.ndarray
) -> str:
    """Return a whole table; rows that are paths of three parts have three columns, as DeepLabCut writes them."""
    keys = [str(row).split("/") for row in rows]
    keys = keys if all(len(parts) == 3 for parts in keys) else [[str(row)] for row in rows]
    lines = [csv_line([*key, *cells_of(numbers)]) for key, numbers in zip(keys, values.tolist(), strict=True)]
    return header_text(columns, titles, len(keys[0]) if keys else 1) + "".join(lines)


def cells_of(values: Sequence[float]) -> list[str]:
    """Return the cells of a row of x, y and likelihood; empty for NaN."""
    return [
        "" if math.isnan(value) else f"{value:.4f}" if k % len(COORDINATES) == 2 else f"{value:.3f}"
        for k, value in enumerate(values)
    ]


def csv_line(cells: Iterable[object]) -> str:
    """Return a line of CSV."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def is_deeplabcut(first_line: str) -> bool:
    """Return True for the first line of DeepLabCut's CSV."""
    return first_line.lstrip("\ufeff").split(",")[0].strip().strip('"').lower() == TITLES[0]


def read_deeplabcut(path: Path, content: Any, context: ReadContext) -> FileContent:
    """Read the labelled points by frame; see `read_rows`. Raises InputError."""
    try:
        with open_text(path) as file:
            columns, rows = read_csv_table(file, context)
            return read_rows(columns, rows, context)
    except OSError as error:
        raise InputError(f"expected a CSV of DeepLabCut in {path}, which cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, IndexError, csv.Error) as error:
        raise InputError(
            f"expected a CSV of DeepLabCut in {path}, got one that cannot be read ({type(error).__name__}: {error})"
        ) from error


def read_csv_table(
    file: Iterable[str], context: ReadContext
) -> tuple[list[tuple[str, ...]], Iterator[tuple[Sequence[str], Sequence[float]]]]:
    """Return the columns of a CSV, and an iterator of its rows. Raises ValueError and csv.Error."""
    lines = csv.reader(file)
    header: dict[str, list[str]] = {}
    for line in lines:
        title = line[0].strip().lower() if line else ""
        header[title] = line
        if title not in TITLES or title == TITLES[-1]:
            break
    if not {"scorer", "bodyparts", "coords"} <= set(header):
        raise ValueError("no lines of scorer, bodyparts and coords")
    first = next((k for k, cell in enumerate(header["coords"]) if k and cell.strip()), 1)
    levels = [header[title][first:] for title in TITLES if title in header]
    columns = [tuple(cell.strip() for cell in names) for names in zip(*levels, strict=False)]
    return columns, _rows(lines, first, len(columns), context)


def _rows(
    lines: Iterable[list[str]], first: int, count: int, context: ReadContext
) -> Iterator[tuple[Sequence[str], Sequence[float]]]:
    for line in lines:
        key, cells = line[:first], line[first:]
        if not any(cell.strip() for cell in key):
            if any(cell.strip() for cell in cells):
                context.leave_out(f"row {','.join(line)[:60]!r}", "it names no frame")
            continue
        context.budget.take(_BYTES_OF_ROW + _BYTES_OF_CELL * count, "rows")
        if any(cell.strip() for cell in cells[count:]):
            context.leave_out(f"row {'/'.join(key)!r}, the cells at its end", "the table has fewer columns")
        yield key, [_number(cell) for cell in cells[:count]] + [math.nan] * (count - len(cells))


def _number(cell: str) -> float:
    """Return the number of a cell, NaN for an empty one, and infinity for one without a number."""
    try:
        return float(cell) if cell.strip() else math.nan
    except ValueError:
        return math.inf
