"""Image files: pixels of any depth in BGR, upright, with a limit for their size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from corrflow.runtime.types import size_text
from corrflow.runtime.video.image_header import MAX_PIXELS, ImageHeader, TiffPage, read_header, tiff_pages
from corrflow.runtime.video.source import reason_text

_PNG, _MOST_CHUNK_BYTES = b"\x89PNG\r\n\x1a\n", 1 << 26
_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH  # keeps EXIF's orientation, which IMREAD_UNCHANGED ignores


def read_image(path: Path) -> tuple[np.ndarray, bool]:
    """Read the first frame of an image file.

    Returns the image [H, W, 3], BGR, upright by its EXIF orientation, uint8 or a deeper type, and True if the file
    holds more frames. Raises ValueError, whose message continues a sentence about the file.
    """
    try:
        # imread cannot open some paths on Windows: those with characters outside the code page.
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({reason_text(error)})") from None
    header = read_header(io.BytesIO(data))
    if header is None:
        raise ValueError("cannot be decoded (it is no JPEG, PNG, BMP, TIFF, WebP, AVIF or GIF)")
    check_size(header.width, header.height)
    image = _decode_tiff(data) if header.kind == "TIFF" else _decode(data, header)
    if image is None:
        raise ValueError("cannot be decoded")
    return image, header.is_sequence


def check_size(width: int, height: int) -> None:
    """Raise ValueError, whose message continues a sentence about the file, for a frame that is too large."""
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"cannot be decoded, because it is {width}x{height}, more than {MAX_PIXELS // 10**6} million pixels"
        )


def check_chunks(data: bytes) -> None:
    """Raise ValueError for a PNG with a chunk that states far more bytes than there are, for which OpenCV takes memory.

    A PNG that merely ends early is decoded as far as it goes.
    """
    at = 8
    while data.startswith(_PNG) and at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length > max(len(data), _MOST_CHUNK_BYTES):
            raise ValueError(f"cannot be decoded, because a part of its {len(data)} bytes states {length}")
        at += 12 + length


def _decode(data: bytes, header: ImageHeader) -> np.ndarray | None:
    check_chunks(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
    except cv2.error:
        return None
    if image is None and header.kind == "AVIF":  # builds of OpenCV without it
        try:
            with pillow_errors(), Image.open(io.BytesIO(data)) as still:
                return pixels(still)
        except ValueError:
            return None
    return image


def _decode_tiff(data: bytes) -> np.ndarray | None:
    page = next(tiff_pages(io.BytesIO(data)))
    if is_deep_colour(page):
        return _decode(data, ImageHeader("TIFF", page.width, page.height))
    try:
        with pillow_errors(), Image.open(io.BytesIO(data)) as image:
            image.seek(page.index)
            return pixels(image)
    except ValueError:
        return _decode(data, ImageHeader("TIFF", page.width, page.height))


@contextmanager
def pillow_errors() -> Iterator[None]:
    """Turn Pillow's errors, which have many types, into ValueError; its warnings about damage are not printed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise ValueError(f"cannot be decoded ({reason_text(error)})") from None


def is_deep_colour(page: TiffPage) -> bool:
    """Return True for colours of more than 8 bits, which Pillow cannot read."""
    return page.bits > 8 and page.samples >= 3


def read_deep_colour_pages(path: Path, first: int, count: int) -> list[np.ndarray]:
    """Read pages of a TIFF file, counted with its thumbnails, as [H, W, 3], BGR. Raises ValueError."""
    try:
        found, images = cv2.imreadmulti(str(path), first, count, flags=_FLAGS)
    except cv2.error:
        found, images = False, ()
    if not found or len(images) < count:
        raise ValueError("cannot be decoded")
    return list(images)


def pixels(image: Any) -> np.ndarray:
    """Return the pixels of a PIL image as [H, W, 3], BGR: uint8, or the number type of a deep grey image."""
    if image.mode == "F" or image.mode.startswith("I"):
        deep = np.asarray(image)
        return np.repeat(deep.astype(deep.dtype.newbyteorder("="))[..., None], 3, 2)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])


def different_size(image: np.ndarray, shape: tuple[int, ...]) -> ValueError:
    """Return an error for a frame whose size is not that of the first; it continues a sentence about the frame."""
    return ValueError(f"is {size_text(image.shape)} where the first image is {size_text(shape)}")
