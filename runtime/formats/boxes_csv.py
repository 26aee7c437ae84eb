"""Boxes as CSV: frame,object,x0,y0,x1,y1 in pixels; x1 and y1 are exclusive."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.errors import InputError
from corrflow.file_budget import open_text
from corrflow.runtime.formats.annotations import FileContent, ReadContext
from corrflow.runtime.formats.base import MAX_TABLE_BYTES, TableSink, identity_texts
from corrflow.runtime.formats.compressed_annotation import PACKED, PackedFrames
from corrflow.runtime.formats.packed_masks import BoxMask
from corrflow.runtime.types import FrameResult, MaskObject

COLUMNS = ("x0", "y0", "x1", "y1")


class BoxCsvSink(TableSink):
    """Writer of one row for each visible mask object: frame,time,object,name,x0,y0,x1,y1,confidence.

    object: identity in the labels, else the id
    """

    _header = "frame,time,object,name,x0,y0,x1,y1,confidence\n"

    def _lines(self, result: FrameResult) -> str:
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        masks = [obj for obj in result.objects if obj.points is None]
        for obj, identity in zip(masks, identity_texts(masks), strict=True):
            if obj.box is not None:
                start = [result.frame.index, f"{result.frame.time:.6f}", identity, obj.name]
                table.writerow([*start, *obj.box, f"{obj.confidence:.4f}"])
        return text.getvalue()


def is_boxes(first_line: str) -> bool:
    """Return True for a header with the columns of boxes."""
    return set(COLUMNS) <= {cell.strip().lower() for cell in first_line.lstrip("\ufeff").split(",")}


def read_boxes(path: Path, content: Any, context: ReadContext) -> FileContent:
    """Read boxes as masks, by the index of their frame, 0 without the column `frame`.

    The column `object` has the identity of an object: a number, or its name. A box outside the frame is left out, and
    one whose `confidence` is too low is ignored. Raises InputError, also for values that are no numbers.
    """
    height, width = context.frame_size()
    frames = PackedFrames(context.budget)
    number = 0
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(f"expected a CSV of at most {MAX_TABLE_BYTES >> 20} MB, got {path}; split it")
        with open_text(path) as file:
            for number, cells in enumerate(csv.DictReader(file), 1):
                row = {key.strip().lower(): (cell or "").strip() for key, cell in cells.items() if isinstance(key, str)}
                x0, y0, x1, y1 = (float(row[name]) for name in COLUMNS)
                confidence, frame = float(row.get("confidence") or 1), int(row.get("frame") or 0)
                if not np.isfinite([x0, y0, x1, y1]).all() or frame < 0:
                    raise ValueError(f"row {number}: {x0:g},{y0:g},{x1:g},{y1:g} on frame {frame}")
                label = row.get("object", "")
                is_number = label.isascii() and label.isdigit() and len(label) < 19
                track_id = int(label) if is_number else label or None
                name = row.get("name", "") or ("" if is_number else label)
                what = f"row {number}, frame {frame}, {name or label or 'a box'!r}"
                # The mask has the pixels with their centre in the box.
                left, top, right, bottom = (
                    math.ceil(min(max(edge - 0.5, 0), side))
                    for edge, side in ((x0, width), (y0, height), (x1, width), (y1, height))
                )
                if confidence < context.min_score:
                    context.ignore(what, f"its confidence is less than {context.min_score:g}")
                elif left >= right or top >= bottom:
                    context.leave_out(what, f"its box has no pixel in the frame of {width}x{height}")
                else:
                    one = MaskObject(0, PACKED, name, track_id, row.get("category", ""))
                    frames.add(frame, one, BoxMask((height, width), left, top, right, bottom))
    except OSError as error:
        raise InputError(f"expected a CSV of boxes in {path}, which cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, OverflowError, csv.Error) as error:
        raise InputError(
            f"expected a CSV of boxes with the columns {','.join(COLUMNS)} in {path}, got one that cannot be read "
            f"({type(error).__name__}: {error})"
        ) from error
    if not number:
        raise InputError(f"expected boxes in {path}, got none; add a line for each")
    return FileContent(frames)
