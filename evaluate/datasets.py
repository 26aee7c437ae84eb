"""Video object segmentation data sets in the DAVIS layout.

    ROOT/ImageSets/<year>/<split>.txt                  names of the sequences, one a line
    ROOT/JPEGImages/<resolution>/<sequence>/*.jpg      the frames
    ROOT/Annotations/<resolution>/<sequence>/*.png     one mask per frame, of the same stem

The masks of one data set hold 0 and 255 (a single object) or object ids as palette indices (several objects).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

# Pillow comes with scikit-image, which is a dependency and requires it.
from PIL import Image

from corrflow.plugins.errors import InputError
from corrflow.runtime.initial import read_indexed_png
from corrflow.runtime.tracks import Frame, MaskObject

VOID = 255
"""Value of the pixels that no score counts, in masks of object ids."""

FRAMES_PER_SECOND = 24.0
"""DAVIS is published as pictures; this is the rate it was recorded at."""

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


@dataclass(frozen=True)
class DavisSequence:
    """One video with a mask for every frame; the files are read when they are asked for.

    image_paths, annotation_paths: T >= 1 files each, in the order of their names, which match
    """

    name: str
    image_paths: tuple[Path, ...]
    annotation_paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.image_paths)

    def frames(self) -> Iterator[Frame]:
        """The frames in order, each image [H, W, 3] uint8, BGR. Raises InputError for a file that is no picture."""
        for index, path in enumerate(self.image_paths):
            # The masks are drawn on the stored raster, so a camera's rotation mark must not turn the picture.
            image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            if image is None:
                raise InputError(f"expected a picture, found a file that cannot be decoded: {path}; replace the file")
            yield Frame(image=image, index=index, time=index / FRAMES_PER_SECOND, name=path.stem)

    def annotation(self, index: int) -> np.ndarray:
        """The mask of frame `index`: [H, W] uint8, 0 for background, else an object's id, or 255 for `VOID`.

        A mask of 0 and 255 comes as 0 and 1. Raises InputError for a file that is no mask of the frame's size.
        """
        path = self.annotation_paths[index]
        values = read_indexed_png(path)
        height, width = _picture_size(self.image_paths[index])
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
            f"{_distinct(values)[:8]} in {path}; take the masks of one data set"
        )

    @cached_property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects in the first frame, ascending: those that are tracked and scored.

        Raises InputError where the first frame has none.
        """
        ids = tuple(value for value in _distinct(self.annotation(0)) if value not in (0, VOID))
        if not ids:
            raise InputError(
                f"expected an object in the first frame, found an empty mask: {self.annotation_paths[0]}; "
                "remove the sequence from the split"
            )
        return ids

    def objects(self) -> tuple[MaskObject, ...]:
        """The objects of the first frame, as a tracker takes them."""
        first = self.annotation(0)
        return tuple(MaskObject(id=object_id, mask=first == object_id) for object_id in self.object_ids)

    @cached_property
    def _holds_one_object(self) -> bool:
        # The first frame decides for the whole sequence: a later frame of object ids may hold nothing but void.
        return set(_distinct(read_indexed_png(self.annotation_paths[0]))) in ({0, VOID}, {VOID})


def open_davis(
    root: Path | str, split: str, year: str | None = None, resolution: str = "480p"
) -> tuple[DavisSequence, ...]:
    """The sequences of a split, in the order of its list.

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


def _sequence(root: Path, name: str, resolution: str) -> DavisSequence:
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
    return DavisSequence(name=name, image_paths=image_paths, annotation_paths=annotation_paths)


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


def _distinct(values: np.ndarray) -> list[int]:
    """The values that occur, ascending."""
    return np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
