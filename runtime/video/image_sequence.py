"""Image sequences: the images of a folder or a glob pattern, or one image, as frames."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np

from corrflow.errors import InputError, SourceEndedEarly
from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND
from corrflow.runtime.types import Frame
from corrflow.runtime.video.bit_depth import DepthMapper
from corrflow.runtime.video.image_file import different_size, read_image
from corrflow.runtime.video.source import FrameSource
from corrflow.runtime.video.suffixes import IMAGE_SUFFIXES

_NUM_SAMPLES = 8  # images whose values decide the range of deep images


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
        self.frame_names: Sequence[str] | None = [path.stem for path in paths]
        self.paths = self._paths = paths
        self._depth = DepthMapper(name, self.notes)
        self._has_sequences = False
        try:
            first = self._read(paths[0])
        except ValueError as error:
            raise InputError(
                f"expected an image in {str(paths[0])!r}, got a file that {error}; replace or remove it"
            ) from None
        if first.dtype != np.uint8:
            self._observe(first)
        self._frames = chain([self._frame(0, first)], self._later_frames(first.shape))

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def close(self) -> None:
        self._frames = iter(())

    def _observe(self, first: np.ndarray) -> None:
        """Let images from all over the sequence decide how deep values are mapped, so that few frames exceed them."""
        self._depth.observe(first)
        for index in sorted(set(np.linspace(0, len(self._paths) - 1, _NUM_SAMPLES).astype(int)) - {0}):
            with suppress(ValueError):  # told when its frame is read
                self._depth.observe(read_image(self._paths[index])[0])

    def _later_frames(self, shape: tuple[int, ...]) -> Iterator[Frame]:
        for index in range(1, len(self._paths)):
            try:
                image = self._read(self._paths[index])
                if image.shape != shape:
                    raise different_size(image, shape)
            except ValueError as error:
                raise SourceEndedEarly(
                    f"{self.name} ends early: {index} of {len(self._paths)} frames decoded, because "
                    f"{self._paths[index].name} {error}; replace or remove that image for the rest"
                ) from None
            yield self._frame(index, image)

    def _read(self, path: Path) -> np.ndarray:
        image, is_sequence = read_image(path)
        if is_sequence and not self._has_sequences:
            self._has_sequences = True
            self.notes.append(
                f"{self.name}: files such as {path.name} hold several frames, of which the first is used; "
                "name such a file alone to track through all"
            )
        return image

    def _frame(self, index: int, image: np.ndarray) -> Frame:
        path = self._paths[index]
        time = float(index / NOMINAL_FRAMES_PER_SECOND)
        return Frame(self._depth.to_8_bits(image, path.name), index, time, path.stem, path.name)


def find_images(pattern: str, place: str) -> list[Path]:
    """Return the images of a glob pattern in natural order. Raises InputError, with the text `place`, without any."""
    # glob skips hidden files, among them the "._name.jpg" files that macOS writes to foreign disks.
    paths = [path for path in map(Path, glob.iglob(pattern, recursive=True)) if is_image(path) and path.is_file()]
    if not paths:
        raise InputError(
            f"expected images (jpg, png, bmp, tif, webp, avif) in the {place}, got none; check path and access rights"
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
