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
from corrflow.runtime.tracks import Frame, KeypointsObject, MaskObject, TrackedObject

FIRST = 0


@dataclass(frozen=True)
class Labels:
    """Objects and the one frame that they are given on.

    frames: what files call it: its index from 0, its name, or both
    """

    frames: tuple[int | str, ...]
    objects: tuple[TrackedObject, ...]

    def are_on(self, frame: Frame) -> bool:
        """Raises InputError where the frame is meant by one file and not by another."""
        meant = [_means(key, frame) for key in self.frames]
        if any(meant) and not all(meant):
            raise _several(self.frames)
        return all(meant)


def _means(key: int | str, frame: Frame) -> bool:
    """A name of digits alone also means the frame of that number, whatever the zeros before it."""
    if isinstance(key, int):
        return key == frame.index
    return key == frame.name or (key.isdecimal() and frame.name.isdecimal() and int(key) == int(frame.name))


def _several(frames: Sequence[int | str]) -> InputError:
    named = ", ".join(map(str, frames[:4]))
    return InputError(f"expected labels on one frame, got labels for {len(frames)} ({named}); keep one frame's")


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
    frames = tuple(dict.fromkeys(frame for frame, _ in found))
    # An index and a name may be one frame, which shows when the frames are read.
    if len(frames) > 2 or len({type(frame) for frame in frames}) < len(frames):
        raise _several(frames)
    return Labels(frames, _with_own_ids([given for _, objects in found for given in objects]))


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
    """The objects, those whose id is 0 or already taken with the next ones after the highest; masks choose first.

    A mask's id is the value that its labeller drew, points are numbered here.
    """
    objects = sorted(objects, key=lambda given: isinstance(given, KeypointsObject))
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
