"""Annotations: the objects that files describe, by frame, and how they become the objects of one video."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from corrflow.runtime.types import Frame, KeypointsObject, MaskObject, TrackedObject

FrameKey = int | str
"""Index of a frame from 0, or its name; a name of digits alone also means the frame of that number."""


@dataclass(frozen=True)
class ReadContext:
    """Facts that a reader may need besides its file.

    video:      name of the video whose annotations are wanted
    frame:      key of the frame that a file about a single frame belongs to
    frame_size: returns (height, width) of the video's frames; called only for files that do not state it
    """

    video: str
    frame: FrameKey
    frame_size: Callable[[], tuple[int, int]]


@dataclass(frozen=True)
class AnnotationFile:
    """Content of one file for one video.

    format:   name of the file's format
    frames:   objects by the key of their frame; id 0 where the file gives none
    left_out: one sentence for each part of the file that was not read
    """

    path: Path
    format: str
    frames: Mapping[FrameKey, Sequence[TrackedObject]]
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class CompressedAnnotation:
    """An object with its mask packed: annotations of many frames wait in memory until their frame comes."""

    prompt: TrackedObject
    shape: tuple[int, ...]

    @classmethod
    def of(cls, prompt: TrackedObject) -> CompressedAnnotation:
        """Pack an object."""
        if isinstance(prompt, KeypointsObject):
            return cls(prompt, ())
        bits = zlib.compress(np.packbits(prompt.mask).tobytes(), 1)
        return cls(replace(prompt, mask=np.frombuffer(bits, np.uint8)), prompt.mask.shape)

    def unpacked(self) -> TrackedObject:
        """Return the object as it was."""
        if isinstance(self.prompt, KeypointsObject):
            return self.prompt
        bits = np.frombuffer(zlib.decompress(self.prompt.mask.tobytes()), np.uint8)
        count = int(np.prod(self.shape))
        return replace(self.prompt, mask=np.unpackbits(bits, count=count).reshape(self.shape).astype(bool))


@dataclass(frozen=True)
class Annotations:
    """Annotated objects of one video, by the key of their frame; an object has the same id on all of them."""

    objects: Mapping[FrameKey, Sequence[CompressedAnnotation]]

    @classmethod
    def of(cls, files: Iterable[AnnotationFile]) -> Annotations:
        """Combine the files of one video, and give every object an id."""
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
        """Return the keys that mean this frame."""
        keys: list[FrameKey] = [frame.index] if frame.index in self.objects else []
        if frame.name.isdecimal():
            return keys + self._by_number.get(int(frame.name), [])
        return keys + [frame.name] * (frame.name in self.objects)

    def on(self, frame: Frame) -> list[TrackedObject]:
        """Return the objects of this frame."""
        return [packed.unpacked() for key in self.keys_of(frame) for packed in self.objects[key]]

    @cached_property
    def _by_number(self) -> dict[int, list[FrameKey]]:
        """Keys that are digits alone, by their number, whatever zeros stand before it."""
        numbered: dict[int, list[FrameKey]] = {}
        for key in self.objects:
            if isinstance(key, str) and key.isdecimal():
                numbered.setdefault(int(key), []).append(key)
        return numbered


def _assign_ids(
    by_frame: Mapping[FrameKey, Sequence[CompressedAnnotation]],
) -> dict[FrameKey, list[CompressedAnnotation]]:
    """Assign one id per object across all frames: the id from the file if it is free, otherwise max(id) + 1.

    Objects with the same id are one object. Without ids, objects with the same name are one object: of several in a
    frame the first with the first, and so on. A name whose objects have a single id means that id. Masks choose first,
    because the id of a mask is the value that its annotator drew.
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
