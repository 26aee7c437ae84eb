"""Prompts: objects of the first frame, from files of any readable format, arrays or images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import (
    AnnotationFile,
    Annotations,
    ReadContext,
    frame_finder,
    packed_annotations,
)
from corrflow.runtime.formats.compressed_annotation import PackedFrames
from corrflow.runtime.formats.label_schema import EMPTY_SCHEMA, LabelSchema
from corrflow.runtime.formats.mask_png import mask_objects, read_mask_images
from corrflow.runtime.formats.points_csv import read_keypoints
from corrflow.runtime.formats.registry import MASK_SUFFIXES, read_annotations
from corrflow.runtime.types import (
    AbsentObject,
    Frame,
    KeypointsObject,
    MaskObject,
    TrackedObject,
    size_text,
)

logger = logging.getLogger(__name__)

Prompts = Callable[[Frame], list[TrackedObject]]
"""Function that returns the objects of the first frame."""


def prompts_from_files(
    files: Sequence[Path], keypoints: Path | None, video: str = "", is_strict: bool = False, min_score: float = 0.0
) -> Prompts:
    """Return prompts from files.

    files:     masks, several for several objects, or annotation files of any readable format
    keypoints: CSV of points; their ids follow those of `files`
    video:     name of the video, for files of several videos
    is_strict, min_score: as for `ReadContext`

    What is left out is logged as a warning. Raises InputError for files that cannot be read; the returned function does
    the same.
    """
    if all(path.suffix.lower() in MASK_SUFFIXES for path in files):
        return _prompts_of_masks(files, keypoints)
    if missing := [path for path in files if not path.is_file()]:
        raise InputError(f"expected annotations at {missing[0]}, found no file; check the path")

    return FilePrompts(files, keypoints, video, is_strict, min_score)


@dataclass
class FilePrompts:
    """Prompts from annotation files.

    schema: classes, skeletons and names of the files, after the call
    """

    files: Sequence[Path]
    keypoints: Path | None
    video: str
    is_strict: bool = False
    min_score: float = 0.0
    schema: LabelSchema = EMPTY_SCHEMA

    def __call__(self, frame: Frame) -> list[TrackedObject]:
        """Return the objects of the first frame. Raises InputError."""
        context = ReadContext(
            self.video,
            frame.index,
            lambda: (frame.image.shape[0], frame.image.shape[1]),
            [frame.name] if frame.file_name else None,
            is_strict=self.is_strict,
            min_score=self.min_score,
        )
        read_files = (_of_frame(frame, read_annotations(path, context)) for path in self.files)
        annotations = Annotations.of(read_files, is_strict=self.is_strict)
        usable = [packed.unpacked() for packed in annotations.usable_on(frame)]
        objects: list[TrackedObject] = [one for one in usable if not isinstance(one, AbsentObject)]
        if not objects:
            others = ", ".join(annotations.notes) or "it is empty"
            place = f"frame {frame.index}" if frame.index else "the first frame"
            raise InputError(
                f"expected objects of {place} in {self.files[0]}, got none ({others}); corrflow-batch tracks from"
                " annotations on any frame"
            )
        for note in annotations.notes:
            logger.warning("%s", note)
        self.schema = annotations.schema
        if self.keypoints is not None:
            objects += read_keypoints(self.keypoints, _next_id(objects))
        return objects


def prompted_frame(prompts: Prompts, start: int | None) -> int | None:
    """Return the number of the prompted frame, counted from 0; None for the first frame that can be decoded.

    start: number that the user gave; by default 0, because a mask belongs to the first frame of the file. Annotation
           files state the numbers of their frames themselves.
    """
    return 0 if start is None and not isinstance(prompts, FilePrompts) else start


def _prompts_of_masks(files: Sequence[Path], keypoints: Path | None) -> Prompts:
    """Return the objects of masks, and points of a CSV; raises InputError for a mask of another size than the frame."""
    images = read_mask_images(files)
    objects: list[TrackedObject] = [*mask_objects(images)]
    if keypoints is not None:
        objects += read_keypoints(keypoints, _next_id(objects))

    def read(frame: Frame) -> list[TrackedObject]:
        for path, image in zip(files, images, strict=True):
            if image.labels.shape != frame.image.shape[:2]:
                raise InputError(
                    f"expected a mask of the frame's size {size_text(frame.image.shape)}, got"
                    f" {size_text(image.labels.shape)} in {path}; draw it at the frame's size"
                )
        return objects

    return read


def _of_frame(frame: Frame, file: AnnotationFile) -> AnnotationFile:
    """Return the content of a file for one frame; labels of other frames are noted."""
    find = frame_finder([frame.name] if frame.file_name else None)
    own = 0 if frame.file_name else frame.index
    frames = PackedFrames()
    for key in file.content.frames:
        packed = packed_annotations(file, key)
        if key == frame.index or (isinstance(key, str) and find(key) == own):
            frames.packed.setdefault(frame.index, []).extend(packed)
        elif packed:
            file.notes.add(file.notes.ignored, f"frame {key!r}", "only labels of the first frame are prompts")
    return replace(file, content=replace(file.content, frames=frames))


def prompts_from_values(masks: Any, keypoints: Any) -> Prompts:
    """Return prompts from the values of a Python caller, see `corrflow.track`.

    Raises InputError for any other value, and without any object.
    """
    if keypoints is not None and not _is_path(keypoints) and not isinstance(keypoints, Mapping):
        keypoints = _numbered_points(keypoints)
    if isinstance(masks, Mapping):
        return _with_points(_labelled_masks(masks), keypoints)
    listed = [masks] if masks is None or _is_path(masks) or _is_array(masks) else _as_list(masks)
    paths = [Path(fspath(value)) for value in listed if _is_path(value)]
    if paths:
        if len(paths) < len(listed):
            raise InputError("expected masks all as paths or all as arrays, got both; read the files first")
        csv = Path(fspath(keypoints)) if _is_path(keypoints) else None
        return _with_points(prompts_from_files(paths, csv), None if csv else keypoints)
    objects: list[TrackedObject] = []
    for value in listed:
        objects += _objects_of(value, objects, len(listed)) if value is not None else []
    if not objects and not keypoints:
        raise InputError("expected masks or keypoints to track, got neither; pass masks= or keypoints=")
    return _with_points(lambda frame: objects, keypoints)


def _numbered_points(points: Any) -> dict[str, tuple[float, float]]:
    """Name points [P, 2], an array or a list, by their position from 1."""
    try:
        values = np.asarray(points, np.float32)
        if values.ndim != 2 or values.shape[1] != 2:
            raise ValueError(values.shape)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected keypoints as a path, as [P, 2] or as {{name: (x, y)}}, got {type(points).__name__}; convert them"
        ) from error
    return {f"point{number}": (float(x), float(y)) for number, (x, y) in enumerate(values, 1)}


def _labelled_masks(masks: Mapping[Any, Any]) -> Prompts:
    """Return the objects of {id: mask} or {name: mask}, each with a mask [H, W] of one object."""
    objects: list[TrackedObject] = []
    for key, value in masks.items():
        if not isinstance(key, (int, str)) or not _is_array(value) or np.ndim(value) != 2:
            raise InputError(
                f"expected masks as {{id: [H, W]}} or {{name: [H, W]}}, got {key!r:.40}: {type(value).__name__}"
            )
        number, name = (key, "") if isinstance(key, int) else (_next_id(objects), key)
        objects.append(MaskObject(number, np.asarray(value) > 0, name))
    if not objects:
        raise InputError("expected masks or keypoints to track, got neither; pass masks= or keypoints=")
    return lambda frame: objects


def _with_points(prompts: Prompts, keypoints: Any) -> Prompts:
    """Return prompts with keypoints, a path or {name: (x, y)}, added."""
    if not keypoints:
        return prompts

    def read(frame: Frame) -> list[TrackedObject]:
        objects = list(prompts(frame))
        if _is_path(keypoints):
            return objects + read_keypoints(Path(fspath(keypoints)), _next_id(objects))
        try:
            points = np.array(list(keypoints.values()), np.float32).reshape(len(keypoints), 2)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"expected keypoints as {{name: (x, y)}}, got {keypoints!r:.80}; give two numbers each"
            ) from error
        return [*objects, KeypointsObject(_next_id(objects), points, tuple(map(str, keypoints)))]

    return read


def _objects_of(value: Any, objects: Sequence[TrackedObject], count: int) -> list[TrackedObject]:
    """Return the objects of an array or image: one for each id, or one of a binary mask.

    objects: objects with lower ids
    count:   number of arrays; ids of several arrays are numbered on
    """
    if not _is_array(value):
        raise InputError(
            f"expected masks as paths, arrays [H, W] or PIL images, got {type(value).__name__}; convert them to arrays"
        )
    mask = np.asarray(value)
    if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
        raise InputError(f"expected masks as [H, W] bool or uint8 of ids, got {mask.dtype} {list(mask.shape)}")
    values = [value for value in np.unique(mask).tolist() if value]
    first = _next_id(objects)
    if mask.dtype == np.bool_ or values == [255] or count > 1:
        return [MaskObject(first + k, mask == value) for k, value in enumerate(values)]
    return [MaskObject(int(value), mask == value) for value in values]


def _next_id(objects: Sequence[TrackedObject]) -> int:
    return max((obj.id for obj in objects), default=0) + 1


def _is_path(value: Any) -> TypeGuard[str | PathLike[str]]:
    return isinstance(value, (str, PathLike))


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")  # the latter: Pillow's images


def _as_list(masks: Any) -> list[Any]:
    if not isinstance(masks, Iterable):
        raise InputError(
            f"expected masks as paths, arrays [H, W] or PIL images, got {type(masks).__name__}; convert them to arrays"
        )
    return list(masks)
