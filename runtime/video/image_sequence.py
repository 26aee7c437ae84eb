"""Pictures as frames: a folder, a glob pattern, one picture."""

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

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


def natural_order(path: Path) -> list[str | int]:
    """The sorting key that puts frame2 before frame10: runs of digits compare as numbers, the rest as text."""
    parts = re.split(r"([0-9]+)", path.as_posix())
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)]


class PictureSource(FrameSource):
    """Pictures in the given order, each decoded when its turn comes."""

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        """Decode the first of the paths (at least one).

        Raises InputError where it cannot be decoded or where two paths share one stem.
        """
        _refuse_shared_names(paths)
        self.name = name
        self.frame_count: int | None = len(paths)
        self.frames_per_second: Fraction | None = None
        try:
            first = _read_picture(paths[0])
        except ValueError as error:
            raise InputError(
                f"expected a picture in {str(paths[0])!r}, got a file that {error}; replace or remove it"
            ) from None
        self._frames = chain([_picture_frame(paths, 0, first)], self._later_frames(paths, first.shape))

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def close(self) -> None:
        self._frames = iter(())

    def _later_frames(self, paths: Sequence[Path], shape: tuple[int, ...]) -> Iterator[Frame]:
        for index in range(1, len(paths)):
            try:
                image = _read_picture(paths[index])
                if image.shape != shape:
                    raise ValueError(f"is {size_text(image.shape)} where the first picture is {size_text(shape)}")
            except ValueError as error:
                raise SourceEndedEarly(
                    f"{self.name} ends early: {index} of {len(paths)} frames decoded, because {paths[index].name} "
                    f"{error}; replace or remove that picture for the rest"
                ) from None
            yield _picture_frame(paths, index, image)


def find_pictures(pattern: str, place: str) -> list[Path]:
    """The pictures that a pattern matches in natural order; InputError that names the place where there are none."""
    # glob leaves hidden files out, and with them the "._name.jpg" companions that macOS puts on foreign disks.
    paths = [path for path in map(Path, glob.iglob(pattern, recursive=True)) if is_picture(path) and path.is_file()]
    if not paths:
        raise InputError(
            f"expected pictures (jpg, png, bmp, tif, webp) in the {place}, got none; check path and access rights"
        )
    return sorted(paths, key=lambda path: (natural_order(path), str(path)))


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def _refuse_shared_names(paths: Sequence[Path]) -> None:
    """Results are written under the pictures' stems, where two of one stem would overwrite each other."""
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise InputError(
                f"expected pictures with different names, got {str(other)!r} and {str(path)!r}; "
                f"name one kind with a glob pattern such as '{path.parent / ('*' + path.suffix)}'"
            )


def _read_picture(path: Path) -> np.ndarray:
    """[H, W, 3] uint8, BGR, upright by its EXIF orientation; ValueError with the end of a sentence otherwise."""
    try:
        # imread cannot open every path that Python can: on Windows it takes no characters outside the code page.
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        reason = reason_text(error) if isinstance(error, OSError) else "no picture in it"
        raise ValueError(f"cannot be read ({reason})") from None
    if image is None:
        raise ValueError("cannot be decoded")
    return image


def _picture_frame(paths: Sequence[Path], index: int, image: np.ndarray) -> Frame:
    return Frame(image, index, float(index / NOMINAL_FRAMES_PER_SECOND), paths[index].stem)
