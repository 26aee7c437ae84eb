"""Image files of several frames as films: TIFF stacks and animated WebP. FFmpeg reads GIF, AVIF and animated PNG."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from corrflow.errors import InputError, SourceEndedEarly
from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND
from corrflow.runtime.types import Frame
from corrflow.runtime.video.bit_depth import DepthMapper
from corrflow.runtime.video.image_file import (
    check_size,
    different_size,
    is_deep_colour,
    pillow_errors,
    pixels,
    read_deep_colour_pages,
)
from corrflow.runtime.video.image_header import ImageHeader, TiffPage, tiff_pages
from corrflow.runtime.video.source import FrameSource, reason_text

_NUM_SAMPLES = 8  # pages whose values decide the range
_BLOCK_BYTES = 64 << 20


class StackSource(FrameSource):
    """Frames of one image file, each decoded when it is read."""

    def __init__(self, path: Path, header: ImageHeader) -> None:
        """Open the file and decode its first frame. Raises InputError."""
        self.name = path.stem
        self._path = path
        self._depth = DepthMapper(self.name, self.notes)
        self.frames_per_second: Fraction | None = None
        self.frame_count: int | None = None
        try:
            check_size(header.width, header.height)
            images = self._tiff_images() if header.kind == "TIFF" else self._webp_images()
            self._decoding = self._frames_of(images)
            first = next(self._decoding)
        except (ValueError, StopIteration, SourceEndedEarly) as error:
            raise InputError(
                f"expected images in {str(path)!r}, got a file that {_text(error)}; save it again, or as single images"
            ) from None
        self._frames = chain([first], self._decoding)

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def close(self) -> None:
        self._decoding.close()

    def _frames_of(self, images: Iterator[tuple[np.ndarray, float | None]]) -> Generator[Frame, None, None]:
        """Yield the frames of images, each with its stated time in seconds or None."""
        index, time, shape = 0, 0.0, None
        while True:
            try:
                image, stated = next(images, (None, None))
                if image is None:
                    return
                shape = shape or image.shape
                if image.shape != shape:
                    raise different_size(image, shape)
            except ValueError as error:
                if not index:
                    raise
                total = f" of {self.frame_count}" if self.frame_count else ""
                raise SourceEndedEarly(
                    f"{self._path.name} ends early: {index}{total} frames decoded, because the next one {error}; "
                    "save it again for the rest"
                ) from None
            if index:
                step = float(1 / (self.frames_per_second or NOMINAL_FRAMES_PER_SECOND))
                time = stated if stated is not None and stated > time else time + step
            yield Frame(self._depth.to_8_bits(image, f"frame {index}"), index, time, f"{index:05d}")
            index += 1

    def _tiff_images(self) -> Iterator[tuple[np.ndarray, float | None]]:
        try:
            with self._path.open("rb") as file:
                first = next(tiff_pages(file))
                self.frame_count = num_pages = sum(1 for _ in tiff_pages(file))
                interval = _stated_interval(first.description, num_pages)
                if interval:
                    self.frames_per_second = Fraction(1 / interval).limit_denominator(1000)
                if is_deep_colour(first):
                    yield from ((image, None) for image in self._deep_colour_images())
                    return
                with pillow_errors():
                    stack = Image.open(self._path)
                with stack:
                    samples = set(np.linspace(0, num_pages - 1, _NUM_SAMPLES).astype(int))
                    if first.bits > 8:
                        for number, page in enumerate(tiff_pages(file)):
                            if number in samples:
                                self._depth.observe(_page_pixels(stack, page))
                    for page in tiff_pages(file):
                        yield _page_pixels(stack, page), None
        except OSError as error:
            raise ValueError(f"cannot be read ({reason_text(error)})") from None

    def _deep_colour_images(self) -> Iterator[np.ndarray]:
        """Yield colour images of more than 8 bits, read in blocks, because each block begins at the file's first page.

        The first image alone decides the range.
        """
        with self._path.open("rb") as file:
            block: list[TiffPage] = []
            for page in chain(tiff_pages(file), [None]):
                is_full = block and (
                    page is None
                    or page.index != block[-1].index + 1
                    or len(block) * block[0].width * block[0].height * 6 > _BLOCK_BYTES
                    or len(block) == 16
                )
                if is_full:
                    yield from read_deep_colour_pages(self._path, block[0].index, len(block))
                    block = []
                if page is not None:
                    check_size(page.width, page.height)
                    block.append(page)

    def _webp_images(self) -> Iterator[tuple[np.ndarray, float | None]]:
        with pillow_errors():
            animation = Image.open(self._path)
        with animation:
            self.frame_count = count = getattr(animation, "n_frames", 1)
            for index in range(count):
                with pillow_errors():
                    animation.seek(index)
                    image = pixels(animation)
                stamp, duration = (animation.info.get(key) for key in ("timestamp", "duration"))
                if index == 0 and duration:
                    self.frames_per_second = Fraction(1000, duration)
                yield image, None if stamp is None else stamp / 1000


def _page_pixels(stack: Image.Image, page: TiffPage) -> np.ndarray:
    """Decode a page. Raises ValueError, whose message continues a sentence about the page."""
    check_size(page.width, page.height)
    with pillow_errors():
        stack.seek(page.index)
        return pixels(stack)


def _stated_interval(description: str, num_pages: int) -> float:
    """Return the seconds between two frames as ImageJ or OME-XML state them, or 0.

    Raises ValueError for a stack of channels, and for pages that only ImageJ finds.
    """
    if description.startswith("ImageJ="):
        stated = dict(line.split("=", 1) for line in description.splitlines() if "=" in line)
        images, channels, slices, frames = (
            int(stated.get(key, "")) if stated.get(key, "").strip().isdigit() else 1
            for key in ("images", "channels", "slices", "frames")
        )
        seconds = stated.get("finterval", "")
        rate = stated.get("fps", "")
    elif "<OME" in description[:400]:
        images = num_pages
        channels, slices, frames = (_ome_number(description, f"Size{axis}") for axis in "CZT")
        unit = {"ms": 1e-3, "min": 60.0}.get(_ome_text(description, "TimeIncrementUnit"), 1.0)
        increment = _positive(_ome_text(description, "TimeIncrement"))
        seconds, rate = str(increment * unit), ""
    else:
        return 0.0
    if channels > 1 and num_pages > 1 and num_pages % channels == 0 and num_pages >= channels * slices * frames:
        raise ValueError(f"holds {channels} channels, and not one film; save one channel as a stack of its own")
    if slices > 1 and frames > 1:
        raise ValueError(f"holds {slices} slices at each of {frames} times; save one slice as a stack of its own")
    if images > 1 and num_pages == 1:
        raise ValueError(f"holds {images} frames behind a single page; save it again as TIFF with a page for each")
    rate_seconds = 1 / _positive(rate) if _positive(rate) else 0.0
    return _positive(seconds) or rate_seconds


def _ome_text(description: str, name: str) -> str:
    found = re.search(rf'\b{name}="([^"]*)"', description)
    return found[1] if found else ""


def _ome_number(description: str, name: str) -> int:
    text = _ome_text(description, name)
    return int(text) if text.isdigit() else 1


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if 1e-6 < number < 1e6 else 0.0


def _text(error: Exception) -> str:
    return str(error) or "has no frame"
