"""The labels of one video, found by its name in the folder of labels.

NAME.png             masks of the first frame
NAME.csv             points: name,x,y of the first frame, or with a column `frame` (index from 0) of that frame
NAME.json            COCO: masks (RLE or polygons) and keypoints of one picture, whose file name names the frame
NAME/FRAME.png       masks of the frame of that name: its index in a video, the picture's name in a folder
NAME/OBJECT/FRAME.png  one black and white mask for each object, all of one frame
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corrflow.plugins.errors import InputError
from corrflow.runtime.coco import read_coco
from corrflow.runtime.initial import read_mask_objects
from corrflow.runtime.points_csv import read_points_of_frame
from corrflow.runtime.tracks import Frame, MaskObject, TrackedObject

FIRST = 0


@dataclass(frozen=True)
class Labels:
    """Objects and the one frame that they are given on: its index from 0, or its name."""

    frame: int | str
    objects: tuple[TrackedObject, ...]

    def are_on(self, frame: Frame) -> bool:
        """A name of digits alone also means the frame of that number, whatever the zeros before it."""
        if isinstance(self.frame, int):
            return self.frame == frame.index
        if self.frame == frame.name:
            return True
        return self.frame.isdecimal() and frame.name.isdecimal() and int(self.frame) == int(frame.name)


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
    """Raises InputError for files that cannot be read, that hold no object, or that label several frames."""
    found: list[tuple[int | str, list[TrackedObject]]] = []
    per_object: dict[str, list[Path]] = {}
    for path in label_files(folder, name):
        if path.parent.parent == folder / name:
            per_object.setdefault(path.stem, []).append(path)
        elif path.suffix == ".png":
            frame = FIRST if path.parent == folder else path.stem
            found.append((frame, list(read_mask_objects([path]))))
        elif path.suffix == ".csv":
            frame, points = read_points_of_frame(path)
            found.append((frame, list(points)))
        else:
            found.append(read_coco(path))
    for frame, paths in per_object.items():
        found.append((frame, list(_masks_of_folders(paths))))
    frames = list(dict.fromkeys(frame for frame, _ in found))
    if len(frames) > 1:
        raise InputError(
            f"expected labels of {name!r} on one frame, got {len(frames)} ({', '.join(map(str, frames[:4]))}); keep one"
        )
    return Labels(frames[0], _with_own_ids([given for _, objects in found for given in objects]))


def _masks_of_folders(paths: Sequence[Path]) -> list[MaskObject]:
    """One object for each folder: a number is its id, another word its name."""
    objects = []
    for path in paths:
        drawn = read_mask_objects([path])
        if len(drawn) > 1:
            raise InputError(f"expected a black and white mask of one object in {path}, got {len(drawn)} values")
        word = path.parent.name
        number = int(word) if word.isascii() and word.isdigit() else 0
        objects.append(replace(drawn[0], id=number, name="" if number else word))
    return objects


def _with_own_ids(objects: Sequence[TrackedObject]) -> tuple[TrackedObject, ...]:
    """The same objects, those whose id is 0 or already taken with the next ones after the highest."""
    highest = max((given.id for given in objects), default=0)
    taken: set[int] = set()
    own = []
    for given in objects:
        if given.id in taken or not given.id:
            highest += 1
            given = replace(given, id=highest)
        taken.add(given.id)
        own.append(given)
    return tuple(own)
