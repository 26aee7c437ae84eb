"""Run-length encodings of masks: COCO's and CVAT's."""

from __future__ import annotations

from xml.etree.ElementTree import Element

import numpy as np


def _run_lengths(own: np.ndarray) -> dict[str, str]:
    rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
    if not len(rows):
        rows = columns = np.zeros(1, int)
    box = own[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    changes = np.flatnonzero(np.diff(np.concatenate([[False], box.ravel()]).astype(np.int8))) if box.size else []
    runs = np.diff(np.concatenate([[0], changes, [box.size]])).tolist()
    return {
        "rle": ", ".join(map(str, runs)),
        "left": str(columns[0]),
        "top": str(rows[0]),
        "width": str(box.shape[1]),
        "height": str(box.shape[0]),
    }


def _of_run_lengths(entry: Element, shape: tuple[int, int]) -> np.ndarray:
    left, top, width, height = (int(entry.attrib[side]) for side in ("left", "top", "width", "height"))
    if left < 0 or top < 0 or width < 1 or height < 1 or left + width > shape[1] or top + height > shape[0]:
        raise ValueError("a mask that leaves its picture")
    runs = np.array([int(run) for run in entry.attrib["rle"].split(",")])
    if (runs < 0).any() or runs.sum() != width * height:
        raise ValueError("run lengths that do not fill their box")
    mask = np.zeros(shape, bool)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[top : top + height, left : left + width] = inside.reshape(height, width)
    return mask


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """A mask [H, W] bool as COCO's uncompressed runs: {"size": [H, W], "counts": [...]}.

    The counts go down the columns, in turn of background and object, and begin with the background's, which may be 0.
    """
    flat = np.concatenate([[False], mask.ravel(order="F"), [True]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    counts = counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts
    return {"size": [int(side) for side in mask.shape], "counts": [int(count) for count in counts]}
