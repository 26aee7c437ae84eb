"""Run-length encodings of masks: COCO's and CVAT's."""

from __future__ import annotations

from collections.abc import Mapping

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


def decode_cvat_rle(attributes: Mapping[str, str], shape: tuple[int, int]) -> np.ndarray:
    """Decode the XML attributes of a CVAT mask to [H, W] bool. Raises ValueError for a box outside the image."""
    left, top, width, height = (int(attributes[side]) for side in ("left", "top", "width", "height"))
    if left < 0 or top < 0 or width < 1 or height < 1 or left + width > shape[1] or top + height > shape[0]:
        raise ValueError("a mask that leaves its image")
    runs = np.array([int(run) for run in attributes["rle"].split(",")])
    if (runs < 0).any() or runs.sum() != width * height:
        raise ValueError("run lengths that do not fill their box")
    mask = np.zeros(shape, bool)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[top : top + height, left : left + width] = inside.reshape(height, width)
    return mask
