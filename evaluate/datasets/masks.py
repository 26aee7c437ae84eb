"""Video object segmentation data sets in the layouts of DAVIS and of YouTube-VOS.

    DAVIS         ROOT/ImageSets/<year>/<split>.txt                  names of the sequences, one a line
                  ROOT/JPEGImages/<resolution>/<sequence>/*.jpg      frames
                  ROOT/Annotations/<resolution>/<sequence>/*.png     one mask per frame, of the same stem
    YouTube-VOS   ROOT/JPEGImages/<sequence>/*.jpg                   frames
                  ROOT/Annotations/<sequence>/*.png                  masks of some frames, of the same stem

Masks hold 0 and 255 for a single object, or object ids as palette indices for several objects.

DAVIS prompts a tracker with the objects of the first frame, and scores every frame but the first and the last.
YouTube-VOS prompts an object on the first annotated frame that shows it, and scores every later annotated frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from corrflow.errors import InputError
from corrflow.file_budget import open_regular, read_text
from corrflow.runtime.formats.mask_image import MAX_PIXELS
from corrflow.runtime.formats.mask_png import read_indexed_png
from corrflow.runtime.types import Frame, MaskObject

VOID = 255
"""Value of the pixels that belong to no object and no background, in masks of object ids."""

FRAMES_PER_SECOND = 24.0
"""Rate of the recordings; DAVIS is published as images."""

MAX_LIST_BYTES = 4 << 20
"""Size of a list of names."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


@dataclass(frozen=True)
class MaskSequence:
    """One video with masks; files are read on demand.

    image_paths:      T >= 1 files in the order of their names
    annotation_paths: T masks of the same stems, None for a frame without a mask; DAVIS needs all of them
    late_prompts:     objects are prompted where they first appear (YouTube-VOS), not on the first frame only (DAVIS)
    """

    name: str
    image_paths: tuple[Path, ...]
    annotation_paths: tuple[Path | None, ...]
    late_prompts: bool = False

    def __len__(self) -> int:
        return len(self.image_paths)

    @property
    def recording(self) -> str:
        """Name of the sequence's folder, which resampled sequences share."""
        return self.image_paths[0].parent.name

    def frames(self) -> Iterator[Frame]:
        """Read the frames in order, images [H, W, 3] uint8, BGR. Raises InputError for a file that is no image."""
        for index, path in enumerate(self.image_paths):
            yield Frame(image=self.image(index), index=index, time=index / FRAMES_PER_SECOND, name=path.stem)

    def image(self, index: int) -> np.ndarray:
        """Read frame `index`: [H, W, 3] uint8, BGR. Raises InputError for a file that is no image."""
        return read_image(self.image_paths[index])

    def annotation(self, index: int) -> np.ndarray:
        """Read the mask of frame `index`: [H, W] uint8, 0 for background, otherwise an object's id or `VOID`.

        The single object of a mask of 0 and 255 gets id 1. Raises InputError for a file that is no mask of the
        frame's size.
        """
        path = self.annotation_path(index)
        values = read_indexed_png(path)
        height, width = self.size(index)
        if values.shape != (height, width):
            raise InputError(
                f"expected a mask of its frame's size {width}x{height}, found {values.shape[1]}x{values.shape[0]} "
                f"in {path}; take frames and masks of one resolution"
            )
        if not self._has_one_object:
            return values
        inside = values == VOID
        if (inside | (values == 0)).all():
            return inside.astype(np.uint8)
        raise InputError(
            f"expected a mask of 0 and 255, as in the sequence's first frame, found the values "
            f"{distinct(values)[:8]} in {path}; take the masks of one data set"
        )

    def annotation_path(self, index: int) -> Path:
        """Return the path of the mask of frame `index`. Raises InputError for a frame without a mask."""
        path = self.annotation_paths[index]
        if path is None:
            raise InputError(f"expected a mask for frame {self.image_paths[index].stem} of {self.name}, found none")
        return path

    def size(self, index: int) -> tuple[int, int]:
        """Read (height, width) of frame `index` from the file's header."""
        return _image_size(self.image_paths[index])

    @cached_property
    def prompt_ids(self) -> dict[int, tuple[int, ...]]:
        """Ids of the objects that are prompted on each frame, by the frame's index. Raises InputError for no object.

        Only prompted objects are tracked and scored.
        """
        seen: set[int] = set()
        prompts: dict[int, tuple[int, ...]] = {}
        for index in self._annotated if self.late_prompts else self._annotated[:1]:
            new = tuple(value for value in distinct(self.annotation(index)) if value not in {0, VOID, *seen})
            if new:
                prompts[index] = new
                seen |= set(new)
        if not prompts:
            where = "any mask" if self.late_prompts else "the first frame"
            raise InputError(
                f"expected an object in {where}, found an empty mask: {self.annotation_path(self._annotated[0])}; "
                "remove the sequence from the split"
            )
        return prompts

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of all objects, ascending."""
        return tuple(sorted(object_id for ids in self.prompt_ids.values() for object_id in ids))

    def prompts(self, index: int = 0) -> tuple[MaskObject, ...]:
        """Return the objects that are prompted on frame `index`, as inputs of a tracker."""
        if index not in self.prompt_ids:
            return ()
        mask = self.annotation(index)
        return tuple(MaskObject(id=object_id, mask=mask == object_id) for object_id in self.prompt_ids[index])

    @cached_property
    def scored(self) -> dict[int, tuple[int, ...]]:
        """Ascending indices of each object's scored frames, by object id, as the data set's rule says.

        Raises InputError for an object without scored frames.
        """
        scored = {}
        for first, ids in self.prompt_ids.items():
            frames = tuple(index for index in self._annotated if index > first)
            frames = frames if self.late_prompts else frames[:-1]
            if not frames:
                least = "2 annotated frames" if self.late_prompts else "3 frames, the first and last are not scored"
                raise InputError(
                    f"expected frames to score object {ids[0]} of sequence {self.name} on, found none (it takes at"
                    f" least {least}); remove it from the split"
                )
            scored |= dict.fromkeys(ids, frames)
        return scored

    @cached_property
    def _annotated(self) -> tuple[int, ...]:
        return tuple(index for index, path in enumerate(self.annotation_paths) if path is not None)

    @cached_property
    def _has_one_object(self) -> bool:
        # The first mask decides for the sequence: a later mask of object ids may hold nothing but void.
        first = read_indexed_png(self.annotation_path(self._annotated[0]))
        return set(distinct(first)) in ({0, VOID}, {VOID})


def open_davis(
    root: Path | str, split: str, year: str | None = None, resolution: str = "480p"
) -> tuple[MaskSequence, ...]:
    """List the sequences of a DAVIS split, in the order of the split's list.

    root:  folder of ImageSets, JPEGImages and Annotations
    split: name of the list, for instance "val"
    year:  folder of the list; needed only where several folders have a list of that name

    Raises InputError for a folder in another layout. Masks and frames are not opened.
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
    """List the sequences of a folder in the layout of YouTube-VOS, by name.

    Raises InputError for a folder in another layout. Masks and frames are not opened.
    """
    root = Path(root)
    images, annotations = root / "JPEGImages", root / "Annotations"
    for folder in (images, annotations):
        if not folder.is_dir():
            raise InputError(f"expected the folder {folder} of a data set in the YouTube-VOS layout, found none")
    sequences = []
    for folder in sorted(path for path in annotations.iterdir() if path.is_dir()):
        frames = _files(images / folder.name, IMAGE_SUFFIXES, "frames")
        masks = {path.stem: path for path in _files(folder, {".png"}, "masks")}
        unpaired = sorted(set(masks) - {path.stem for path in frames})
        if unpaired:
            raise InputError(
                f"expected a frame for every mask of sequence {folder.name}, found none for {', '.join(unpaired[:4])};"
                " complete the files"
            )
        sequences.append(MaskSequence(folder.name, frames, tuple(masks.get(path.stem) for path in frames), True))
    if not sequences:
        raise InputError(f"expected a folder of masks for each sequence in {annotations}, found none")
    return tuple(sequences)


def read_image(path: Path) -> np.ndarray:
    """Read an image as stored: [H, W, 3] uint8, BGR. Raises InputError for a file that is no image."""
    # Masks and points refer to the stored pixels, so the camera's orientation tag must not rotate the image.
    height, width = _image_size(path)
    if height * width > MAX_PIXELS:
        raise InputError(
            f"expected an image of at most {MAX_PIXELS // 10**6} million pixels, found {width}x{height} in {path};"
            " replace the file"
        )
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise InputError(f"expected an image, found a file that cannot be decoded: {path}; replace the file")
    return image


def resample(sequence: MaskSequence, stride: int = 1, backward: bool = False) -> MaskSequence:
    """Keep frames 0, stride, 2 * stride and so on; with `backward`, in reverse order.

    Backward, the sequence begins with the last kept frame whose mask shows an object, as the prompt. The new name says
    how the frames were taken, such as "bear@stride3" or "bear@backward".

    Raises InputError for a stride below 1.
    """
    if stride < 1:
        raise InputError(f"expected a stride of at least 1, got {stride}")
    name = sequence.name + (f"@stride{stride}" if stride > 1 else "") + ("@backward" if backward else "")
    kept = list(range(0, len(sequence), stride))
    if backward:
        kept.reverse()
        while len(kept) > 1 and not _shows_object(sequence, kept[0]):
            del kept[0]
    return replace(
        sequence,
        name=name,
        image_paths=tuple(sequence.image_paths[index] for index in kept),
        annotation_paths=tuple(sequence.annotation_paths[index] for index in kept),
    )


def _shows_object(sequence: MaskSequence, index: int) -> bool:
    """Return True for a frame whose mask has a pixel of an object."""
    return sequence.annotation_paths[index] is not None and bool(set(distinct(sequence.annotation(index))) - {0, VOID})


def select_sequences(sequences: Sequence[MaskSequence], names: Sequence[str]) -> list[MaskSequence]:
    """Return the sequences of these names, or all sequences for no names. Raises InputError for an unknown name."""
    known = [sequence.name for sequence in sequences]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InputError(f"expected sequences of the split ({', '.join(known)}), got {', '.join(unknown)}")
    return [sequence for sequence in sequences if not names or sequence.name in names]


def _split_list(root: Path, split: str, year: str | None, resolution: str) -> Path:
    lists = sorted(root.glob(f"ImageSets/{year or '*'}/*.txt"))
    # DAVIS 2016 has one list per resolution; later editions have folders of years.
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
    """Read the distinct names of sequences: a line is a name, or the paths of one frame and its mask (DAVIS 2016)."""
    entries = [line.split()[0] for line in read_lines(list_path) if line.strip()]
    return tuple(dict.fromkeys(Path(entry).parent.name if "/" in entry else entry for entry in entries))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list of names. Raises InputError."""
    try:
        return read_text(path, MAX_LIST_BYTES).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a list of names in {path}, found a file that cannot be read; replace it") from error


def _sequence(root: Path, name: str, resolution: str) -> MaskSequence:
    image_paths = _files(root / "JPEGImages" / resolution / name, IMAGE_SUFFIXES, "frames")
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
    """List the folder's files with these suffixes in the order of their names."""
    wanted = set(suffixes)
    if not folder.is_dir():
        raise InputError(f"expected a folder of {content}, found none at {folder}; check root and resolution")
    paths = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in wanted))
    if not paths:
        kinds = " or ".join(sorted(wanted))
        raise InputError(f"expected {content} ({kinds}), found none in {folder}; complete the data set")
    return paths


def _image_size(path: Path) -> tuple[int, int]:
    """Read (height, width) from the header."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            return image.height, image.width
    # Pillow raises any of these for damaged files.
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, MemoryError) as error:
        raise InputError(f"expected an image, found a file that cannot be decoded: {path}; replace the file") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"expected an image, found a file that cannot be decoded: {path}; replace the file") from error


def distinct(values: np.ndarray) -> list[int]:
    """Return the distinct values of a uint8 array, ascending."""
    return np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
