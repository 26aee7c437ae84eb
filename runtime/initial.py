"""What a user brings to begin with: masks as PNG and keypoints as CSV, read into objects to track."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

# Pillow comes with scikit-image, which is a dependency and requires it; OpenCV turns the palette of an indexed PNG
# into colours, so that the object ids are lost.
from PIL import Image

from corrflow.plugins.errors import InputError
from corrflow.runtime.tracks import KeypointsObject, MaskObject

_POINT_COLUMNS = ("point", "name", "bodypart", "keypoint")
_MOST_COLOURS = 32  # a drawing with more colours is a photograph, or has blended edges


def read_mask_objects(paths: Sequence[Path]) -> list[MaskObject]:
    """The objects drawn in one or several masks.

    An indexed PNG (as DAVIS has them) and a grey one hold object ids; 0 and 255 alone are one object; in a coloured
    picture every colour but black is an object. Objects of a second file get the ids after those of the first.
    Raises InputError where a file is missing, no mask, or empty.
    """
    objects: list[MaskObject] = []
    for path in paths:
        ids = _read_drawing(path)
        found = [value for value in np.unique(ids).tolist() if value]
        if not found:
            raise InputError(f"expected an object in the mask {path}, found only background; draw one")
        if found == [255]:
            ids, found = (ids == 255).astype(np.uint8), [1]
        highest = max((given.id for given in objects), default=0)
        if len(paths) == 1:
            objects += [MaskObject(value, ids == value) for value in found]
        else:
            objects += [MaskObject(highest + 1 + k, ids == value) for k, value in enumerate(found)]
    if objects and objects[-1].id > 255:
        raise InputError(f"expected at most 255 objects, found {objects[-1].id}; track them in several runs")
    return objects


def read_keypoints(path: Path, first_id: int) -> list[KeypointsObject]:
    """Keypoints of a CSV: columns x, y, and if given point (a name) and object (a name); pixels of the first frame.

    A line of names comes first; without one the columns are x, y or point, x, y. Points of one `object` make one
    object; ids are counted from `first_id`. Raises InputError for what cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return keypoints_of(file, path, first_id)
    except FileNotFoundError as error:
        raise InputError(f"expected keypoints in {path}, which does not exist; check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a CSV of keypoints in {path}, found a file that is none ({error})") from error


def keypoints_of(file: TextIO, path: Path, first_id: int) -> list[KeypointsObject]:
    """As `read_keypoints`, of the open text of what lies at `path`; csv.Error and UnicodeDecodeError pass through."""
    lines = [[cell.strip() for cell in line] for line in csv.reader(file) if any(cell.strip() for cell in line)]
    if not lines:
        raise InputError(f"expected keypoints in {path}, found none; write one line for each: name,x,y")
    header = [cell.lower() for cell in lines[0]]
    if "x" in header and "y" in header:
        lines = lines[1:]
    else:
        header = ["point", "x", "y"] if len(lines[0]) >= 3 else ["x", "y"]
    point_column = next((header.index(name) for name in _POINT_COLUMNS if name in header), None)
    object_column = header.index("object") if "object" in header else None

    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            x, y = float(line[header.index("x")]), float(line[header.index("y")])
            name = line[point_column] if point_column is not None else ""
            group = groups.setdefault(line[object_column] if object_column is not None else "", {})
        except (ValueError, IndexError) as error:
            raise InputError(
                f"expected {','.join(header)} in keypoint {number} of {path}, got {','.join(line)!r}"
            ) from error
        name = name or f"point{len(group) + 1}"
        if name in group:
            raise InputError(f"expected every point of an object to have its own name, got {name!r} twice in {path}")
        group[name] = (x, y)
    if not any(groups.values()):
        raise InputError(f"expected keypoints in {path}, found only the line of names; add one line for each point")
    return [
        KeypointsObject(first_id + k, np.array(list(points.values()), np.float32), tuple(points), name)
        for k, (name, points) in enumerate(groups.items())
    ]


def _read_drawing(path: Path) -> np.ndarray:
    """[H, W] uint8 ids; colours are numbered in the order of their values."""
    if not path.is_file():
        raise InputError(f"expected a mask at {path}, found no file; check the path")
    try:
        return read_indexed_png(path)
    except InputError:
        try:
            with Image.open(path) as picture:
                coloured = np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            coloured = None
        if coloured is None:
            raise
    packed = (coloured.astype(np.uint32) * np.array([65536, 256, 1], np.uint32)).sum(2, dtype=np.uint32)
    colours = np.unique(packed)
    colours = colours[colours > 0]
    if len(colours) > _MOST_COLOURS:
        raise InputError(
            f"expected a mask of one value for each object, found {len(colours)} colours in {path};"
            " save it as PNG, without smooth edges"
        )
    return np.where(packed > 0, np.searchsorted(colours, packed) + 1, 0).astype(np.uint8)


def read_indexed_png(path: Path) -> np.ndarray:
    """The stored values of a mask, palette indices included: [H, W] uint8; raises InputError for anything else."""
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            values = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"expected a PNG, found a file that cannot be decoded: {path}; replace the file") from error
    # Some grey masks are stored as colours or with an alpha channel, in DAVIS itself too.
    if values.ndim == 3:
        colours = values[..., :1] if mode == "LA" else values[..., :3]
        values = colours[..., 0]
        if mode not in ("LA", "RGB", "RGBA") or (colours != values[..., None]).any():
            raise InputError(
                f"expected a mask of palette indices or of 0 and 255, found colours ({mode}) in {path}; "
                "store the object ids as an indexed PNG"
            )
    if values.dtype not in (np.bool_, np.uint8):
        raise InputError(f"expected a mask of 8 bits a pixel, found {mode} in {path}; store object ids as 0..254")
    return values.astype(np.uint8)
