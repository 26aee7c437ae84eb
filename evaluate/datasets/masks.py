"""Video object segmentation data sets in the layouts of DAVIS and of YouTube-VOS.

    DAVIS         ROOT/ImageSets/<year>/<split>.txt                  names of the sequences, one a line
                  ROOT/JPEGImages/<resolution>/<sequence>/*.jpg      the frames
                  ROOT/Annotations/<resolution>/<sequence>/*.png     one mask per frame, of the same stem
    YouTube-VOS   ROOT/JPEGImages/<sequence>/*.jpg                   the frames
                  ROOT/Annotations/<sequence>/*.png                  masks of some of them, of the same stem

The masks of one data set hold 0 and 255 (a single object) or object ids as palette indices (several objects).

The rules of the data sets. DAVIS: the objects of the first frame are given, every frame but the first and the last is
scored. YouTube-VOS: an object is given on the first annotated frame that shows it, and every annotated frame after
that one is scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from corrflow.errors import InputError
from corrflow.runtime.formats.mask_png import read_indexed_png
from corrflow.runtime.types import Frame, MaskObject

VOID = 255
"""Value of the pixels that no score counts, in masks of object ids."""

FRAMES_PER_SECOND = 24.0
"""DAVIS is published as pictures; this is the rate it was recorded at."""

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


@dataclass(frozen=True)
class MaskSequence:
    """One video with masks; the files are read when they are asked for.

    image_paths:      T >= 1 files in the order of their names
    annotation_paths: T masks of the same stems, None for a frame without; the rule of DAVIS needs all of them
    objects_appear:   whether objects are given where they first appear (YouTube-VOS), and not in the first frame only
    """

    name: str
    image_paths: tuple[Path, ...]
    annotation_paths: tuple[Path | None, ...]
    objects_appear: bool = False

    def __len__(self) -> int:
        return len(self.image_paths)

    def frames(self) -> Iterator[Frame]:
        """The frames in order, each image [H, W, 3] uint8, BGR. Raises InputError for a file that is no picture."""
        for index, path in enumerate(self.image_paths):
            yield Frame(image=self.image(index), index=index, time=index / FRAMES_PER_SECOND, name=path.stem)

    def image(self, index: int) -> np.ndarray:
        """Frame `index`, [H, W, 3] uint8, BGR. Raises InputError for a file that is no picture."""
        return read_picture(self.image_paths[index])

    def annotation(self, index: int) -> np.ndarray:
        """The mask of frame `index`: [H, W] uint8, 0 for background, else an object's id, or 255 for `VOID`.

        A mask of 0 and 255 comes as 0 and 1. Raises InputError for a file that is no mask of the frame's size.
        """
        path = self.annotation_path(index)
        values = read_indexed_png(path)
        height, width = self.size(index)
        if values.shape != (height, width):
            raise InputError(
                f"expected a mask of its frame's size {width}x{height}, found {values.shape[1]}x{values.shape[0]} "
                f"in {path}; take frames and masks of one resolution"
            )
        if not self._holds_one_object:
            return values
        inside = values == VOID
        if (inside | (values == 0)).all():
            return inside.astype(np.uint8)
        raise InputError(
            f"expected a mask of 0 and 255, as in the sequence's first frame, found the values "
            f"{distinct(values)[:8]} in {path}; take the masks of one data set"
        )

    def annotation_path(self, index: int) -> Path:
        """The file of that mask; raises InputError for a frame without."""
        path = self.annotation_paths[index]
        if path is None:
            raise InputError(f"expected a mask for frame {self.image_paths[index].stem} of {self.name}, found none")
        return path

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of frame `index`, from the file's header alone."""
        return _picture_size(self.image_paths[index])

    @cached_property
    def given(self) -> dict[int, tuple[int, ...]]:
        """Ids of the objects given on a frame, by the frame's index: those that are tracked and scored.

        Raises InputError where there are none.
        """
        seen: set[int] = set()
        found: dict[int, tuple[int, ...]] = {}
        for index in self._annotated if self.objects_appear else self._annotated[:1]:
            new = tuple(value for value in distinct(self.annotation(index)) if value not in {0, VOID, *seen})
            if new:
                found[index] = new
                seen |= set(new)
        if not found:
            where = "any mask" if self.objects_appear else "the first frame"
            raise InputError(
                f"expected an object in {where}, found an empty mask: {self.annotation_path(self._annotated[0])}; "
                "remove the sequence from the split"
            )
        return found

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of all objects, ascending."""
        return tuple(sorted(object_id for ids in self.given.values() for object_id in ids))

    def objects(self, index: int = 0) -> tuple[MaskObject, ...]:
        """The objects given on frame `index`, as a tracker takes them."""
        if index not in self.given:
            return ()
        mask = self.annotation(index)
        return tuple(MaskObject(id=object_id, mask=mask == object_id) for object_id in self.given[index])

    @cached_property
    def scored(self) -> dict[int, tuple[int, ...]]:
        """Indices of the frames that an object is scored on, ascending, by the object's id; see the data sets' rules.

        Raises InputError where there are none for an object.
        """
        found = {}
        for first, ids in self.given.items():
            frames = tuple(index for index in self._annotated if index > first)
            frames = frames if self.objects_appear else frames[:-1]
            if not frames:
                least = "2 annotated frames" if self.objects_appear else "3 frames, the first and last are not scored"
                raise InputError(
                    f"expected frames to score object {ids[0]} of sequence {self.name} on, found none (it takes at"
                    f" least {least}); remove it from the split"
                )
            found |= dict.fromkeys(ids, frames)
        return found

    @cached_property
    def _annotated(self) -> tuple[int, ...]:
        return tuple(index for index, path in enumerate(self.annotation_paths) if path is not None)

    @cached_property
    def _holds_one_object(self) -> bool:
        # The first frame decides for the whole sequence: a later frame of object ids may hold nothing but void.
        first = read_indexed_png(self.annotation_path(self._annotated[0]))
        return set(distinct(first)) in ({0, VOID}, {VOID})


def open_davis(
    root: Path | str, split: str, year: str | None = None, resolution: str = "480p"
) -> tuple[MaskSequence, ...]:
    """The sequences of a DAVIS split, in the order of its list.

    root: folder that holds ImageSets, JPEGImages and Annotations
    split: name of the list, for instance "val"
    year: folder of the list; needed only where several hold a list of that name

    Raises InputError where the folder does not match the layout. Masks and pictures are not opened here.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"expected the folder of a data set in the DAVIS layout, found no folder {root}")
    list_path = _split_list(root, split, year, resolution)
    names = _names(list_path)
    if not names:
        raise InputError(f"expected names of sequences, one a line, found none in {list_path}; choose another split")
    return tuple(_sequence(root, name, resolution) for name in names)


def open_youtube_vos(root: Path | str) -> tuple[MaskSequence, ...]:
    """The sequences of a folder in the layout of YouTube-VOS, by name.

    Raises InputError where the folder does not match the layout. Masks and pictures are not opened here.
    """
    root = Path(root)
    images, annotations = root / "JPEGImages", root / "Annotations"
    for folder in (images, annotations):
        if not folder.is_dir():
            raise InputError(f"expected the folder {folder} of a data set in the YouTube-VOS layout, found none")
    sequences = []
    for folder in sorted(path for path in annotations.iterdir() if path.is_dir()):
        frames = _files(images / folder.name, PICTURE_SUFFIXES, "frames")
        masks = {path.stem: path for path in _files(folder, {".png"}, "masks")}
        stray = sorted(set(masks) - {path.stem for path in frames})
        if stray:
            raise InputError(
                f"expected a frame for every mask of sequence {folder.name}, found none for {', '.join(stray[:4])};"
                " complete the files"
            )
        sequences.append(MaskSequence(folder.name, frames, tuple(masks.get(path.stem) for path in frames), True))
    if not sequences:
        raise InputError(f"expected a folder of masks for each sequence in {annotations}, found none")
    return tuple(sequences)


def read_picture(path: Path) -> np.ndarray:
    """[H, W, 3] uint8, BGR, on the stored raster. Raises InputError for a file that is no picture."""
    # Masks and points are drawn on the stored raster, so a camera's rotation mark must not turn the picture.
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise InputError(f"expected a picture, found a file that cannot be decoded: {path}; replace the file")
    return image


def select(sequences: Sequence[MaskSequence], names: Sequence[str]) -> list[MaskSequence]:
    """The sequences of these names, or all where none is named; raises InputError for a name that is not there."""
    known = [sequence.name for sequence in sequences]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InputError(f"expected sequences of the split ({', '.join(known)}), got {', '.join(unknown)}")
    return [sequence for sequence in sequences if not names or sequence.name in names]


def _split_list(root: Path, split: str, year: str | None, resolution: str) -> Path:
    lists = sorted(root.glob(f"ImageSets/{year or '*'}/*.txt"))
    # The package of 2016 keeps one list per resolution where the later ones have years.
    other_resolutions = {"480p", "1080p", "Full-Resolution"} - {resolution}
    matching = [path for path in lists if path.stem == split and (year or path.parent.name not in other_resolutions)]
    if len(matching) == 1:
        return matching[0]
    expected = root / "ImageSets" / (year or "<year>") / f"{split}.txt"
    if matching:
        years = ", ".join(path.parent.name for path in matching)
        raise InputError(f"expected one list {expected}, found it for {years}; name the year")
    found = ", ".join(path.relative_to(root).as_posix() for path in lists) or "no list"
    raise InputError(f"expected the split's list {expected}, found {found}; choose another split or root")


def _names(list_path: Path) -> tuple[str, ...]:
    """Names of the sequences, each once: a line has the name, or the paths of one frame and its mask (as of 2016)."""
    entries = [line.split()[0] for line in list_path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return tuple(dict.fromkeys(Path(entry).parent.name if "/" in entry else entry for entry in entries))


def _sequence(root: Path, name: str, resolution: str) -> MaskSequence:
    image_paths = _files(root / "JPEGImages" / resolution / name, PICTURE_SUFFIXES, "frames")
    annotation_paths = _files(root / "Annotations" / resolution / name, {".png"}, "masks")
    images, annotations = ({path.stem for path in paths} for paths in (image_paths, annotation_paths))
    if images != annotations or len(images) < len(image_paths):
        unpaired = sorted(images ^ annotations)
        difference = f"unpaired {', '.join(unpaired[:4])}" if unpaired else "two frames of one name"
        raise InputError(
            f"expected one mask per frame, of the same name, for sequence {name}, found {len(image_paths)} frames "
            f"and {len(annotation_paths)} masks ({difference}); complete the files or choose a split with all masks"
        )
    return MaskSequence(name=name, image_paths=image_paths, annotation_paths=annotation_paths)


def _files(folder: Path, suffixes: Iterable[str], content: str) -> tuple[Path, ...]:
    """The folder's files of these suffixes in the order of their names."""
    wanted = set(suffixes)
    if not folder.is_dir():
        raise InputError(f"expected a folder of {content}, found none at {folder}; check root and resolution")
    paths = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in wanted))
    if not paths:
        kinds = " or ".join(sorted(wanted))
        raise InputError(f"expected {content} ({kinds}), found none in {folder}; complete the data set")
    return paths


def _picture_size(path: Path) -> tuple[int, int]:
    """(height, width), from the header alone."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"expected a picture, found a file that cannot be decoded: {path}; replace the file"
        ) from error


def distinct(values: np.ndarray) -> list[int]:
    """The values that occur, ascending."""
    return np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
