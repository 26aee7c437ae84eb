"""Prompt files: a frame with its annotated objects, from which a later run starts.

A prompt file is an .npz of plain arrays and one JSON text, without pickles.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.file_budget import FileBudget
from corrflow.runtime.formats.mask_image import MAX_PIXELS, image_size
from corrflow.runtime.types import KeypointsObject, MaskObject, TrackedObject
from corrflow.runtime.video.image_file import check_chunks

FORMAT = 1


@dataclass(frozen=True)
class Prompt:
    """Frame [H, W, 3] uint8, BGR, with its annotated objects."""

    frame: np.ndarray
    objects: tuple[TrackedObject, ...]


def resized(
    frame: np.ndarray, objects: Sequence[TrackedObject], size: tuple[int, int]
) -> tuple[np.ndarray, list[TrackedObject]]:
    """Resize a frame and its objects to another (height, width). An object keeps at least one pixel."""
    height, width = frame.shape[:2]
    if (height, width) == size:
        return frame, list(objects)
    scale = np.array([size[1] / width, size[0] / height])
    shrinks = size[0] * size[1] < height * width
    image = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    scaled: list[TrackedObject] = []
    for prompt in objects:
        if isinstance(prompt, KeypointsObject):
            points = (np.asarray(prompt.points, np.float64) + 0.5) * scale - 0.5
            points = points.clip(0, np.array(size[::-1]) - 1)
            scaled.append(replace(prompt, points=points.astype(np.float32)))
            continue
        coverage = cv2.resize(prompt.mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
        mask = coverage > 0.5
        if not mask.any():
            mask = coverage >= coverage.max()
        scaled.append(replace(prompt, mask=mask))
    return np.asarray(image, np.uint8), scaled


def save_prompt(prompt: Prompt, path: Path) -> None:
    """Write a prompt file, which appears whole. Raises CorrflowError if writing fails."""
    png = cv2.imencode(".png", prompt.frame)[1].reshape(-1)
    arrays: dict[str, np.ndarray] = {"frame": png}
    objects = []
    for one in prompt.objects:
        entry: dict[str, object] = {"id": one.id, "name": one.name}
        if isinstance(one, MaskObject):
            entry["kind"] = "mask"
            arrays[f"mask_{one.id}"] = np.packbits(one.mask)
        else:
            entry |= {"kind": "points", "point_names": list(one.point_names)}
            arrays[f"points_{one.id}"] = np.asarray(one.points, np.float32)
        objects.append(entry)
    size = list(prompt.frame.shape[:2])
    arrays["description"] = np.array(json.dumps({"format": FORMAT, "size": size, "objects": objects}))
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    write_file(path, content.getvalue())


def load_prompt(path: Path) -> Prompt:
    """Read and check a file of `save_prompt`. Raises InputError for any other content."""
    remedy = "write it again with --save-prompt"
    try:
        budget = FileBudget.of(path)
        budget.take_arrays(path, 2)
        with np.load(path, allow_pickle=False) as arrays:
            description = json.loads(str(arrays["description"][()]))
            if description["format"] != FORMAT:
                raise InputError(
                    f"{path}: expected a prompt file of format {FORMAT}, got {description['format']}; {remedy}"
                )
            height, width = (int(side) for side in description["size"])
            if not (height >= 1 and width >= 1 and height * width <= MAX_PIXELS):
                raise ValueError(f"a size of {width}x{height}")
            # The frame and each mask, which may be small files of one value.
            budget.take(height * width * (3 + len(description["objects"])), "masks")
            if image_size(arrays["frame"].tobytes()) != (height, width):
                raise ValueError("a frame of another size")
            check_chunks(arrays["frame"].tobytes())
            frame = cv2.imdecode(arrays["frame"].astype(np.uint8), cv2.IMREAD_COLOR)
            if frame is None or frame.shape[:2] != (height, width):
                raise ValueError("a frame that cannot be decoded or has another size")
            objects = tuple(_object(entry, arrays, (height, width)) for entry in description["objects"])
    except FileNotFoundError:
        raise InputError(f"expected a prompt file at {path}, found no file; check the path") from None
    except InputError:
        raise
    except Exception as error:  # damaged archives raise many kinds of errors
        raise InputError(f"{path} is no prompt file ({type(error).__name__}: {error!s:.200}); {remedy}") from None
    ids = [one.id for one in objects]
    if not ids or len(set(ids)) < len(ids) or not all(1 <= one <= 255 for one in ids):
        raise InputError(f"{path}: expected objects with different ids from 1 to 255, got {ids[:8]}; {remedy}")
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
