"""Image sequences: the images of a folder or a glob pattern, or one image, as frames."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from corrflow.errors import InputError, SourceEndedEarly
from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND
from corrflow.runtime.types import Frame, size_text
from corrflow.runtime.video.source import FrameSource, reason_text

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


def natural_order(path: Path) -> list[str | int]:
    """Return a sort key that puts frame2 before frame10: digits compare as numbers, other characters as text."""
    parts = re.split(r"([0-9]+)", path.as_posix())
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)]


class ImageSequence(FrameSource):
    """Images in the order of their paths, each decoded when its frame is read."""

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        """Decode the first image; paths: at least one.

        Raises InputError where the image cannot be decoded, or two paths have the same stem.
        """
        _check_names(paths)
        self.name = name
        self.frame_count: int | None = len(paths)
        self.frames_per_second: Fraction | None = None
        try:
            first = _read_image(paths[0])
        except ValueError as error:
            raise InputError(
                f"expected an image in {str(paths[0])!r}, got a file that {error}; replace or remove it"
            ) from None
        self._frames = chain([_frame(paths, 0, first)], self._later_frames(paths, first.shape))

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def close(self) -> None:
        self._frames = iter(())

    def _later_frames(self, paths: Sequence[Path], shape: tuple[int, ...]) -> Iterator[Frame]:
        for index in range(1, len(paths)):
            try:
                image = _read_image(paths[index])
                if image.shape != shape:
                    raise ValueError(f"is {size_text(image.shape)} where the first image is {size_text(shape)}")
            except ValueError as error:
                raise SourceEndedEarly(
                    f"{self.name} ends early: {index} of {len(paths)} frames decoded, because {paths[index].name} "
                    f"{error}; replace or remove that image for the rest"
                ) from None
            yield _frame(paths, index, image)


def find_images(pattern: str, place: str) -> list[Path]:
    """Return the images of a glob pattern in natural order. Raises InputError, with the text `place`, without any."""
    # glob skips hidden files, among them the "._name.jpg" files that macOS writes to foreign disks.
    paths = [path for path in map(Path, glob.iglob(pattern, recursive=True)) if is_image(path) and path.is_file()]
    if not paths:
        raise InputError(
            f"expected images (jpg, png, bmp, tif, webp) in the {place}, got none; check path and access rights"
        )
    return sorted(paths, key=lambda path: (natural_order(path), str(path)))


def is_image(path: Path) -> bool:
    """Return True for a suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def _check_names(paths: Sequence[Path]) -> None:
    """Raise InputError for two images with the same stem, because results are named by the stem."""
    by_stem: dict[str, Path] = {}
    for path in paths:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise InputError(
                f"expected images with different names, got {str(other)!r} and {str(path)!r}; "
                f"name one kind with a glob pattern such as '{path.parent / ('*' + path.suffix)}'"
            )


def _read_image(path: Path) -> np.ndarray:
    """Read an image as [H, W, 3] uint8, BGR, upright by its EXIF orientation.

    Raises ValueError, whose message continues a sentence about the file.
    """
    try:
        # imread cannot open some paths on Windows: those with characters outside the code page.
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        reason = reason_text(error) if isinstance(error, OSError) else "no image in it"
        raise ValueError(f"cannot be read ({reason})") from None
    if image is None:
        raise ValueError("cannot be decoded")
    return image


def _frame(paths: Sequence[Path], index: int, image: np.ndarray) -> Frame:
    return Frame(image, index, float(index / NOMINAL_FRAMES_PER_SECOND), paths[index].stem)
