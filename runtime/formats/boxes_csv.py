"""Boxes as CSV: frame,object,x0,y0,x1,y1 in pixels; x1 and y1 are exclusive."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.formats.base import TableSink
from corrflow.runtime.types import FrameResult, MaskObject

COLUMNS = ("x0", "y0", "x1", "y1")


class BoxCsvSink(TableSink):
    """Writer of one row for each visible mask object: frame,time,object,name,x0,y0,x1,y1,confidence."""

    _header = "frame,time,object,name,x0,y0,x1,y1,confidence\n"

    def _lines(self, result: FrameResult) -> str:
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        for obj in result.objects:
            if obj.box is not None:
                start = [result.frame.index, f"{result.frame.time:.6f}", obj.id, obj.name]
                table.writerow([*start, *obj.box, f"{obj.confidence:.4f}"])
        return text.getvalue()


def is_boxes(first_line: str) -> bool:
    """Return True for a header with the columns of boxes."""
    return set(COLUMNS) <= {cell.strip().lower() for cell in first_line.lstrip("\ufeff").split(",")}


def read_boxes(path: Path, shape: tuple[int, int]) -> dict[int, list[MaskObject]]:
    """Read boxes as masks, by the index of their frame, 0 without the column `frame`.

    shape: (height, width) of the frames

    A number in the column `object` is an id, other text a name. Raises InputError, also for a box outside its frame.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [
                {(key or "").strip().lower(): (cell or "").strip() for key, cell in row.items() if isinstance(key, str)}
                for row in csv.DictReader(file)
            ]
        by_frame: dict[int, list[MaskObject]] = {}
        for row in rows:
            x0, y0, x1, y1 = (float(row[name]) for name in COLUMNS)
            if not np.isfinite([x0, y0, x1, y1]).all():
                raise ValueError(f"the box {x0:g},{y0:g},{x1:g},{y1:g}")
            mask = np.zeros(shape, bool)
            # The mask has the pixels with their centre in the box.
            (left, top), (right, bottom) = (
                np.ceil(np.clip([x - 0.5, y - 0.5], 0, shape[::-1])).astype(int).tolist()
                for x, y in ((x0, y0), (x1, y1))
            )
            mask[top:bottom, left:right] = True
            if not mask.any():
                raise ValueError(f"the box {x0:g},{y0:g},{x1:g},{y1:g} without a pixel of {shape[1]}x{shape[0]}")
            label, name = row.get("object", ""), row.get("name", "")
            number = int(label) if label.isascii() and label.isdigit() and len(label) < 4 else 0
            identity = number if 0 < number < 256 else 0
            frame = int(row.get("frame") or 0)
            if frame < 0:
                raise ValueError(f"frame {frame}")
            by_frame.setdefault(frame, []).append(MaskObject(identity, mask, name or ("" if identity else label)))
        if not by_frame:
            raise InputError(f"expected boxes in {path}, got none; add a line for each")
        return by_frame
    except OSError as error:
        raise InputError(f"expected a CSV of boxes in {path}, which cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, OverflowError, csv.Error) as error:
        raise InputError(
            f"expected a CSV of boxes with the columns {','.join(COLUMNS)} in {path}, got one that cannot be read "
            f"({type(error).__name__}: {error})"
        ) from error
