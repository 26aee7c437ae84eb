"""The labels of one video, found by its name in the folder of labels: on one frame, or on several.

NAME.png             masks of the first frame
NAME.csv             points: name,x,y of the first frame, or with a column `frame` (index from 0) of that frame
NAME.json            COCO: masks (RLE or polygons) and keypoints of pictures, whose file names name the frames
NAME/FRAME.png       masks of the frame of that name: its index in a video, the picture's name in a folder
NAME/OBJECT/FRAME.png  one black and white mask for each object of that frame
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from corrflow.plugins.errors import InputError
from corrflow.runtime.batch.strands import Packed
from corrflow.runtime.coco import read_coco
from corrflow.runtime.initial import read_mask_objects
from corrflow.runtime.points_csv import read_points_by_frame
from corrflow.runtime.tracks import Frame, MaskObject, TrackedObject

FIRST = 0

FrameKey = int | str
"""A frame's index from 0, or its name; a name of digits alone also means the frame of that number."""


@dataclass(frozen=True)
class Labels:
    """The objects by what files call their frame; an object has one id on all of them."""

    objects: Mapping[FrameKey, Sequence[Packed]]

    @property
    def frames(self) -> tuple[FrameKey, ...]:
        return tuple(self.objects)

    def on(self, frame: Frame) -> list[FrameKey]:
        """The keys that mean this frame."""
        meant: list[FrameKey] = [frame.index] if frame.index in self.objects else []
        if frame.name.isdecimal():
            return meant + self._numbered.get(int(frame.name), [])
        return meant + [frame.name] * (frame.name in self.objects)

    @cached_property
    def _numbered(self) -> dict[int, list[FrameKey]]:
        """The names of digits alone by their number, whatever the zeros before it."""
        numbered: dict[int, list[FrameKey]] = {}
        for key in self.objects:
            if isinstance(key, str) and key.isdecimal():
                numbered.setdefault(int(key), []).append(key)
        return numbered


def label_files(folder: Path, name: str) -> list[Path]:
    """The files with labels of the video of that name, in a fixed order. Raises InputError where there are none."""
    files = [path for suffix in (".png", ".csv", ".json") if (path := folder / f"{name}{suffix}").is_file()]
    inner = folder / name
    if inner.is_dir():
        files += sorted(path for pattern in ("*.png", "*/*.png") for path in inner.glob(pattern) if path.is_file())
    if not files:
        raise InputError(
            f"expected labels for {name!r} in {str(folder)!r}, got none; add {name}.png, {name}.csv, {name}.json "
            f"or {name}/FRAME.png"
        )
    return files


def read_labels(folder: Path, name: str) -> Labels:
    """Raises InputError for files that cannot be read or that hold no object."""
    found: dict[FrameKey, list[Packed]] = {}
    for path in label_files(folder, name):
        for frame, objects in _read(path, folder, name).items():
            found.setdefault(frame, []).extend(map(Packed.of, objects))
    found = {frame: objects for frame, objects in found.items() if objects}
    if not found:
        raise InputError(f"expected objects in the labels for {name!r} in {str(folder)!r}, got none; label one")
    return Labels(_with_own_ids(found))


def _read(path: Path, folder: Path, name: str) -> dict[int | str, list[TrackedObject]]:
    if path.parent.parent == folder / name:
        return {path.stem: [_mask_of_folder(path)]}
    if path.suffix == ".png":
        return {FIRST if path.parent == folder else path.stem: [*read_mask_objects([path])]}
    if path.suffix == ".csv":
        return {frame: list(points) for frame, points in read_points_by_frame(path).items()}
    return read_coco(path)


def _mask_of_folder(path: Path) -> MaskObject:
    """The folder is the object: a number is its id, another word its name."""
    drawn = read_mask_objects([path])
    if len(drawn) > 1:
        raise InputError(f"expected a black and white mask of one object in {path}, got {len(drawn)} values")
    word = path.parent.name
    number = int(word) if word.isascii() and word.isdigit() else 0
    return replace(drawn[0], id=number, name="" if number else word)


def _with_own_ids(found: Mapping[FrameKey, Sequence[Packed]]) -> dict[FrameKey, list[Packed]]:
    """The objects with one id each on all frames: its own if it has one that no other took, else the next after all.

    Objects of one id are one, without ids those of one name (of several in a frame, the first with the first and so
    on). Masks choose first: a mask's id is the value that its labeller drew.
    """
    ids: dict[tuple[object, ...], int] = {}
    highest = max((packed.given.id for objects in found.values() for packed in objects), default=0)
    own: dict[FrameKey, list[Packed]] = {frame: [] for frame in found}
    for kind in (True, False):
        for frame, objects in found.items():
            seen: dict[tuple[object, ...], int] = {}
            for packed in objects:
                given = packed.given
                if isinstance(given, MaskObject) is not kind:
                    continue
                called = (kind, given.id or given.name)
                seen[called] = seen.get(called, 0) + 1
                identity = (*called, seen[called])
                if identity not in ids:
                    taken = not given.id or given.id in ids.values()
                    highest += taken
                    ids[identity] = highest if taken else given.id
                own[frame].append(replace(packed, given=replace(given, id=ids[identity])))
    return own
