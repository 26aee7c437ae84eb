"""The frame that objects were given on, kept so that a later run finds them without anybody drawing them again.

On disk it is one .npz of plain arrays and one JSON text, without pickles.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from corrflow.atomic_files import write_whole
from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.types import KeypointsObject, MaskObject, TrackedObject

FORMAT = 1
_LARGEST_FILE = 2**30
_LARGEST_SIDE = 16384


@dataclass(frozen=True)
class Prompt:
    """A frame [H, W, 3] uint8, BGR, and the objects given on it."""

    frame: np.ndarray
    objects: tuple[TrackedObject, ...]


def resized(
    frame: np.ndarray, objects: Sequence[TrackedObject], size: tuple[int, int]
) -> tuple[np.ndarray, list[TrackedObject]]:
    """A frame and its objects at another (height, width); an object that has no pixel left keeps its nearest one."""
    height, width = frame.shape[:2]
    if (height, width) == size:
        return frame, list(objects)
    scale = np.array([size[1] / width, size[0] / height])
    shrinks = size[0] * size[1] < height * width
    image = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    moved: list[TrackedObject] = []
    for given in objects:
        if isinstance(given, KeypointsObject):
            points = (np.asarray(given.points, np.float64) + 0.5) * scale - 0.5
            points = points.clip(0, np.array(size[::-1]) - 1)
            moved.append(replace(given, points=points.astype(np.float32)))
            continue
        share = cv2.resize(given.mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
        mask = share > 0.5
        if not mask.any():
            mask = share >= share.max()
        moved.append(replace(given, mask=mask))
    return np.asarray(image, np.uint8), moved


def save_prompt(reference: Prompt, path: Path) -> None:
    """Write a reference; it appears in one piece. Raises CorrflowError where the disk fails."""
    png = cv2.imencode(".png", reference.frame)[1].reshape(-1)
    arrays: dict[str, np.ndarray] = {"frame": png}
    objects = []
    for given in reference.objects:
        entry: dict[str, object] = {"id": given.id, "name": given.name}
        if isinstance(given, MaskObject):
            entry["kind"] = "mask"
            arrays[f"mask_{given.id}"] = np.packbits(given.mask)
        else:
            entry |= {"kind": "points", "point_names": list(given.point_names)}
            arrays[f"points_{given.id}"] = np.asarray(given.points, np.float32)
        objects.append(entry)
    size = list(reference.frame.shape[:2])
    arrays["description"] = np.array(json.dumps({"format": FORMAT, "size": size, "objects": objects}))
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
    except OSError as error:
        raise CorrflowError(
            f"expected to write the reference {str(path)!r}, got an error ({error.strerror}); free some space or choose"
            " another place"
        ) from None


def load_prompt(path: Path) -> Prompt:
    """Read and check what `save_prompt` wrote; raises InputError for anything else."""
    remedy = "write it again with --save-prompt"
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _LARGEST_FILE:
                raise InputError(f"expected a reference of at most {_LARGEST_FILE} bytes, got {path}, which is larger")
        with np.load(path, allow_pickle=False) as arrays:
            description = json.loads(str(arrays["description"][()]))
            if description["format"] != FORMAT:
                raise InputError(
                    f"{path}: expected a reference of format {FORMAT}, got {description['format']}; {remedy}"
                )
            height, width = (int(side) for side in description["size"])
            if not (1 <= height <= _LARGEST_SIDE and 1 <= width <= _LARGEST_SIDE):
                raise ValueError(f"a size of {width}x{height}")
            frame = cv2.imdecode(arrays["frame"].astype(np.uint8), cv2.IMREAD_COLOR)
            if frame is None or frame.shape[:2] != (height, width):
                raise ValueError("a frame that cannot be decoded or has another size")
            objects = tuple(_object(entry, arrays, (height, width)) for entry in description["objects"])
    except FileNotFoundError:
        raise InputError(f"expected a reference at {path}, found no file; check the path") from None
    except InputError:
        raise
    except Exception as error:  # a damaged archive shows itself in as many ways as there are bytes to damage
        raise InputError(f"{path} is no reference ({type(error).__name__}: {error}); {remedy}") from None
    ids = [given.id for given in objects]
    if not ids or len(set(ids)) < len(ids) or not all(1 <= one <= 255 for one in ids):
        raise InputError(f"{path}: expected objects with ids of their own from 1 to 255, got {ids[:8]}; {remedy}")
    return Prompt(np.asarray(frame, np.uint8), objects)


def _object(entry: dict, arrays, size: tuple[int, int]) -> TrackedObject:
    number, name = int(entry["id"]), str(entry["name"])[:100]
    height, width = size
    if entry["kind"] == "mask":
        bits = np.unpackbits(arrays[f"mask_{number}"].astype(np.uint8), count=height * width)
        mask = bits.reshape(height, width).astype(bool)
        if not mask.any():
            raise ValueError(f"object {number} has no pixels")
        return MaskObject(number, mask, name)
    points = np.asarray(arrays[f"points_{number}"], np.float32)
    names = tuple(str(one)[:100] for one in entry["point_names"])
    inside = points.ndim == 2 and points.shape == (len(names), 2) and len(names) > 0
    if not inside or not ((points >= -0.5) & (points <= np.array([width, height]) - 0.5)).all():
        raise ValueError(f"points of object {number}")
    return KeypointsObject(number, points, names, name)
