"""Annotations: objects from files by frame, with one id for each object of a video."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from corrflow.runtime.types import Frame, KeypointsObject, MaskObject, TrackedObject

FrameKey = int | str
"""Index of a frame from 0, or its name; a name of digits also matches the frame of that number."""


@dataclass(frozen=True)
class ReadContext:
    """Context of a file, for its reader.

    video:      name of the video
    frame:      frame of a file that describes a single frame
    frame_size: returns (height, width) of the video's frames; called only for files that do not state it
    """

    video: str
    frame: FrameKey
    frame_size: Callable[[], tuple[int, int]]


@dataclass(frozen=True)
class AnnotationFile:
    """Content of one file for one video.

    format:   name of the file's format
    frames:   objects by frame; id 0 for an object without an id
    left_out: one sentence for each part of the file that was not read
    """

    path: Path
    format: str
    frames: Mapping[FrameKey, Sequence[TrackedObject]]
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class CompressedAnnotation:
    """Object with a compressed mask, because the annotations of all frames are in memory."""

    prompt: TrackedObject
    shape: tuple[int, ...]

    @classmethod
    def of(cls, prompt: TrackedObject) -> CompressedAnnotation:
        """Compress an object."""
        if isinstance(prompt, KeypointsObject):
            return cls(prompt, ())
        bits = zlib.compress(np.packbits(prompt.mask).tobytes(), 1)
        return cls(replace(prompt, mask=np.frombuffer(bits, np.uint8)), prompt.mask.shape)

    def unpacked(self) -> TrackedObject:
        """Return the object with its mask."""
        if isinstance(self.prompt, KeypointsObject):
            return self.prompt
        bits = np.frombuffer(zlib.decompress(self.prompt.mask.tobytes()), np.uint8)
        count = int(np.prod(self.shape))
        return replace(self.prompt, mask=np.unpackbits(bits, count=count).reshape(self.shape).astype(bool))


@dataclass(frozen=True)
class Annotations:
    """Annotated objects of one video by frame; an object has the same id on all frames."""

    objects: Mapping[FrameKey, Sequence[CompressedAnnotation]]

    @classmethod
    def of(cls, files: Iterable[AnnotationFile]) -> Annotations:
        """Combine the files of one video, and assign an id to every object."""
        by_frame: dict[FrameKey, list[CompressedAnnotation]] = {}
        for file in files:
            for frame, objects in file.frames.items():
                by_frame.setdefault(frame, []).extend(map(CompressedAnnotation.of, objects))
        return cls(_assign_ids({frame: objects for frame, objects in by_frame.items() if objects}))

    @property
    def frames(self) -> tuple[FrameKey, ...]:
        """Keys of the annotated frames."""
        return tuple(self.objects)

    def keys_of(self, frame: Frame) -> list[FrameKey]:
        """Return the keys that match a frame."""
        keys: list[FrameKey] = [frame.index] if frame.index in self.objects else []
        if frame.name.isdecimal():
            return keys + self._by_number.get(int(frame.name), [])
        return keys + [frame.name] * (frame.name in self.objects)

    def on(self, frame: Frame) -> list[TrackedObject]:
        """Return the objects of a frame."""
        return [packed.unpacked() for key in self.keys_of(frame) for packed in self.objects[key]]

    @cached_property
    def _by_number(self) -> dict[int, list[FrameKey]]:
        """Keys of digits by their number, without leading zeros."""
        numbered: dict[int, list[FrameKey]] = {}
        for key in self.objects:
            if isinstance(key, str) and key.isdecimal():
                numbered.setdefault(int(key), []).append(key)
        return numbered


def _assign_ids(
    by_frame: Mapping[FrameKey, Sequence[CompressedAnnotation]],
) -> dict[FrameKey, list[CompressedAnnotation]]:
    """Assign one id per object across all frames: the id from the file if it is free, otherwise max(id) + 1.

    Objects with the same id are one object. Objects without ids are matched by name, and by their order among the
    objects of that name in a frame. A name that has a single id stands for that id. Masks are assigned first, because
    the id of a mask is the value that its annotator drew.
    """
    ids_of_name: dict[tuple[bool, str], set[int]] = {}
    for packed in (packed for objects in by_frame.values() for packed in objects):
        if packed.prompt.id and packed.prompt.name:
            key = (isinstance(packed.prompt, MaskObject), packed.prompt.name)
            ids_of_name.setdefault(key, set()).add(packed.prompt.id)
    ids: dict[tuple[object, ...], int] = {}
    highest = max((packed.prompt.id for objects in by_frame.values() for packed in objects), default=0)
    assigned: dict[FrameKey, list[CompressedAnnotation]] = {frame: [] for frame in by_frame}
    for is_mask in (True, False):
        for frame, objects in by_frame.items():
            count: dict[tuple[object, ...], int] = {}
            for packed in objects:
                prompt = packed.prompt
                if isinstance(prompt, MaskObject) is not is_mask:
                    continue
                same_name = ids_of_name.get((is_mask, prompt.name), set())
                number = prompt.id or (next(iter(same_name)) if len(same_name) == 1 else 0)
                label = (is_mask, number or prompt.name)
                count[label] = count.get(label, 0) + 1
                identity = (*label, count[label])
                if identity not in ids:
                    is_taken = not number or number in ids.values()
                    highest += is_taken
                    ids[identity] = highest if is_taken else number
                assigned[frame].append(replace(packed, prompt=replace(prompt, id=ids[identity])))
    return assigned
