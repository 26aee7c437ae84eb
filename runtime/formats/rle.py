"""Run-length encodings of masks: COCO's and CVAT's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def coco_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """Encode a mask [H, W] bool as COCO's uncompressed runs: {"size": [H, W], "counts": [...]}.

    The counts go down the columns. Background and object alternate; the first count, of background, may be 0.
    """
    flat = np.concatenate([[False], mask.ravel(order="F"), [True]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    counts = counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts
    return {"size": [int(side) for side in mask.shape], "counts": [int(count) for count in counts]}


def coco_runs(encoded: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """Return COCO's runs [n] int64, from a list or a compressed text. Raises ValueError for damaged ones."""
    if [int(side) for side in encoded["size"]] != list(shape):
        raise ValueError("its run lengths are of an image of another size")
    counts = encoded["counts"]
    if isinstance(counts, (str, bytes)):
        runs = _decompressed(counts.encode() if isinstance(counts, str) else counts)
    else:
        runs = np.array([int(run) for run in counts], np.int64)
    if (runs < 0).any() or (runs > shape[0] * shape[1]).any() or runs.sum() != shape[0] * shape[1]:
        raise ValueError("its run lengths do not fill the image")
    return runs


def _decompressed(text: bytes) -> np.ndarray:
    """Return the runs of COCO's compressed text: 5 bits a character, and differences from the run before the last."""
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("its run lengths are no text of COCO")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("its run lengths are no text of COCO")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << 5 * places, starts)
    values -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    values[2::2] = values[2::2].cumsum()
    values[1::2] = values[1::2].cumsum()
    return values


def cvat_rle(mask: np.ndarray) -> dict[str, str]:
    """Encode a mask [H, W] bool as the XML attributes of CVAT: a box, and runs along the rows of that box.

    The first run is background and may be 0. An empty mask becomes the box of one pixel.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        rows = columns = np.zeros(1, int)
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    changes = np.flatnonzero(np.diff(np.concatenate([[False], box.ravel()]).astype(np.int8))) if box.size else []
    runs = np.diff(np.concatenate([[0], changes, [box.size]])).tolist()
    return {
        "rle": ", ".join(map(str, runs)),
        "left": str(columns[0]),
        "top": str(rows[0]),
        "width": str(box.shape[1]),
        "height": str(box.shape[0]),
    }


def decode_cvat_rle(attributes: Mapping[str, str], shape: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Decode the XML attributes of a CVAT mask to its box [h, w] bool, and the row and column of the box in the image.

    Raises ValueError for a box outside the image.
    """
    left, top, width, height = (int(attributes[side]) for side in ("left", "top", "width", "height"))
    if left < 0 or top < 0 or width < 1 or height < 1 or left + width > shape[1] or top + height > shape[0]:
        raise ValueError("it leaves the image")
    runs = np.array([int(run) for run in attributes["rle"].split(",")], np.int64)
    if (runs < 0).any() or (runs > width * height).any() or runs.sum() != width * height:
        raise ValueError("its run lengths do not fill their box")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width), top, left
