"""The labels of one video, found by its name in the folder of labels: on one frame, or on several.

NAME.png             masks of the first frame
NAME.csv             points: name,x,y of the first frame, or with a column `frame` (index from 0) of that frame;
                     boxes: x0,y0,x1,y1, likewise; or DeepLabCut's
NAME.json            COCO: masks (RLE or polygons) and keypoints of pictures, whose file names name the frames;
                     or LabelMe's of the first frame
NAME.xml             CVAT 1.1, of pictures or of a video
NAME.slp             SLEAP
NAME.h5              DeepLabCut's table
NAME/FRAME.json      LabelMe, of the frame of that name
NAME/FRAME.txt       YOLO, for segmentation or, where NAME/data.yaml has kpt_shape, for pose
NAME/FRAME.png       masks of the frame of that name: its index in a video, the picture's name in a folder
NAME/OBJECT/FRAME.png  one black and white mask for each object of that frame, in a folder of its id or its name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.batch.targets import CompressedAnnotation
from corrflow.runtime.formats.registry import _read
from corrflow.runtime.formats.yolo import SETUP
from corrflow.runtime.types import Frame, MaskObject

FrameKey = int | str
"""A frame's index from 0, or its name; a name of digits alone also means the frame of that number."""


@dataclass(frozen=True)
class Labels:
    """The objects by what files call their frame; an object has one id on all of them."""

    objects: Mapping[FrameKey, Sequence[CompressedAnnotation]]

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
    suffixes = (".png", ".csv", ".json", ".xml", ".slp", ".h5")
    files = [path for suffix in suffixes if (path := folder / f"{name}{suffix}").is_file()]
    inner = folder / name
    if inner.is_dir():
        patterns = ("*.png", "*.json", "*.txt", "*/*.png", SETUP)
        files += sorted(path for pattern in patterns for path in inner.glob(pattern) if path.is_file())
    if not files:
        raise InputError(
            f"expected labels for {name!r} in {str(folder)!r}, got none; add {name}.png, .csv, .json, .xml, .slp or "
            f".h5, or {name}/FRAME.png, .json or .txt"
        )
    return files


def read_labels(folder: Path, name: str, frame_size: Callable[[], tuple[int, int]]) -> Labels:
    """frame_size: (height, width) of the video's frames, asked for where a file does not say it.

    Raises InputError for files that cannot be read or that hold no object.
    """
    found: dict[FrameKey, list[CompressedAnnotation]] = {}
    for path in label_files(folder, name):
        if path.name == SETUP or (path.suffix == ".txt" and path.stem == "classes"):
            continue  # belongs to others
        for frame, objects in _read(path, folder, name, frame_size).items():
            found.setdefault(frame, []).extend(map(CompressedAnnotation.of, objects))
    found = {frame: objects for frame, objects in found.items() if objects}
    if not found:
        raise InputError(f"expected objects in the labels for {name!r} in {str(folder)!r}, got none; label one")
    return Labels(_with_own_ids(found))


def _with_own_ids(
    found: Mapping[FrameKey, Sequence[CompressedAnnotation]],
) -> dict[FrameKey, list[CompressedAnnotation]]:
    """The objects with one id each on all frames: its own if it has one that no other took, else the next after all.

    Objects of one id are one, without ids those of one name (of several in a frame, the first with the first and so
    on), which is also that of the only id of this name. Masks choose first: a mask's id is the value that its labeller
    drew.
    """
    numbers: dict[tuple[bool, str], set[int]] = {}
    for packed in (packed for objects in found.values() for packed in objects):
        if packed.given.id and packed.given.name:
            numbers.setdefault((isinstance(packed.given, MaskObject), packed.given.name), set()).add(packed.given.id)
    ids: dict[tuple[object, ...], int] = {}
    highest = max((packed.given.id for objects in found.values() for packed in objects), default=0)
    own: dict[FrameKey, list[CompressedAnnotation]] = {frame: [] for frame in found}
    for kind in (True, False):
        for frame, objects in found.items():
            seen: dict[tuple[object, ...], int] = {}
            for packed in objects:
                given = packed.given
                if isinstance(given, MaskObject) is not kind:
                    continue
                same = numbers.get((kind, given.name), set())
                number = given.id or (next(iter(same)) if len(same) == 1 else 0)
                called = (kind, number or given.name)
                seen[called] = seen.get(called, 0) + 1
                identity = (*called, seen[called])
                if identity not in ids:
                    taken = not number or number in ids.values()
                    highest += taken
                    ids[identity] = highest if taken else number
                own[frame].append(replace(packed, given=replace(given, id=ids[identity])))
    return own
