"""Masks as images: drawings and indexed images are read, palette PNGs are written.

Written masks have a palette and 8 bits, as all ids have; 16 bits where the labels have identities over 255, as masks of
16 bits do. Identities that are texts, or over 65535, are in the other formats.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

# OpenCV converts the palette of an indexed PNG to colours, which loses the object ids; Pillow keeps them.
from PIL import Image

from corrflow.atomic_files import check_writable, write_file
from corrflow.errors import InputError
from corrflow.file_budget import open_regular
from corrflow.runtime.formats.annotations import FileContent, ReadContext
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.mask_image import MAX_OBJECTS, MAX_PIXELS, MaskImage, read_mask_image
from corrflow.runtime.types import FrameResult, MaskObject
from corrflow.runtime.video.overlay import davis_palette

logger = logging.getLogger(__name__)


def read_mask_images(paths: Sequence[Path]) -> list[MaskImage]:
    """Read masks that are prompts; soft edges are logged. Raises InputError for one without an object."""
    images = [read_mask_image(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if not image:
            raise InputError(f"expected an object in the mask {path}, found only background; draw one")
        if image.remark:
            logger.warning("%s: %s", path, image.remark)
    if (count := sum(map(len, images))) > MAX_OBJECTS:
        raise InputError(f"expected at most {MAX_OBJECTS} objects, found {count}; track them in several runs")
    return images


def mask_objects(images: Sequence[MaskImage]) -> list[MaskObject]:
    """Return the objects of one or several masks.

    An object of a single mask has its value as id where that is at most 255, else the next id. Objects of several
    masks are numbered on.
    """
    if len(images) != 1:
        objects = [one for image in images for one in image]
        # Values of several masks are no identities: most often all are 1 or 255.
        return [replace(one, id=number, track_id=None) for number, one in enumerate(objects, 1)]
    (image,) = images
    own = {one for one in image.identities if isinstance(one, int) and one <= MAX_OBJECTS}
    following = [*range(max(own, default=0) + 1, MAX_OBJECTS + 1), *range(1, MAX_OBJECTS + 1)]
    others = iter([number for number in following if number not in own])
    return [
        replace(one, id=one.track_id if isinstance(one.track_id, int) and one.track_id in own else next(others))
        for one in image
    ]


def read_mask_objects(paths: Sequence[Path]) -> list[MaskObject]:
    """Read the objects of one or several masks, see `mask_objects`. Raises InputError."""
    return mask_objects(read_mask_images(paths))


def read_mask(path: Path, content: Any, context: ReadContext) -> FileContent:
    """Read the objects of one frame; values of an indexed or grey mask are their identities. Raises InputError."""
    return FileContent({context.frame: _noted(read_mask_image(path), context)})


def read_object_mask(path: Path, context: ReadContext) -> FileContent:
    """Read the mask of one object; its folder has the object's id or name. Raises InputError."""
    image = _noted(read_mask_image(path), context)
    if len(image) > 1:
        raise InputError(f"expected a black and white mask of one object in {path}, got {len(image)} values")
    label = path.parent.name
    is_number = label.isascii() and label.isdigit() and len(label) < 10
    name, track_id = ("", int(label)) if is_number else (label, label)
    return FileContent({context.frame: [MaskObject(0, image.labels > 0, name, track_id)] if image else []})


def _noted(image: MaskImage, context: ReadContext) -> MaskImage:
    if not image:
        context.ignore("the mask", "it has only background")
    if image.remark:
        context.ignore("soft edges", image.remark)
    return image


def read_indexed_png(path: Path) -> np.ndarray:
    """Read the stored values of a mask, such as palette indices, as [H, W] uint8. Raises InputError."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            mode = image.mode
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"expected a mask of at most {MAX_PIXELS // 10**6} million pixels, found"
                    f" {image.width}x{image.height} in {path}; take the mask of the frame"
                )
            values = np.asarray(image)
    # Pillow raises any of these for damaged files.
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, MemoryError) as error:
        raise InputError(f"expected a PNG, found a file that cannot be decoded: {path}; replace the file") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"expected a PNG, found a file that cannot be decoded: {path}; replace the file") from error
    # Some grey masks are stored as colours or with an alpha channel, also in DAVIS.
    if values.ndim == 3:
        colours = values[..., :1] if mode == "LA" else values[..., :3]
        values = colours[..., 0]
        if mode not in ("LA", "RGB", "RGBA") or (colours != values[..., None]).any():
            raise InputError(
                f"expected a mask of palette indices or of 0 and 255, found colours ({mode}) in {path}; "
                "store the object ids as an indexed PNG"
            )
    if values.dtype not in (np.bool_, np.uint8):
        raise InputError(f"expected a mask of 8 bits a pixel, found {mode} in {path}; store object ids as 0..254")
    return values.astype(np.uint8)


def write_mask_png(path: str | Path, mask: np.ndarray) -> None:
    """Write ids [H, W] uint8 as a palette PNG. Raises CorrflowError."""
    image, encoded = Image.fromarray(np.ascontiguousarray(mask)), io.BytesIO()
    image.putpalette(davis_palette().tobytes())
    image.save(encoded, format="PNG")
    write_file(path, encoded.getvalue())


def _wide_ids(result: FrameResult) -> np.ndarray | None:
    """Return the value of each id, [256] uint16, where labels have identities from 256 to 65535; else None."""
    identities = [one.track_id for one in result.objects if one.points is None]
    values = np.arange(256, dtype=np.uint16)
    for one in result.objects:
        number = one.track_id
        if one.points is None and isinstance(number, int) and 255 < number < 65536 and identities.count(number) == 1:
            values[one.id] = number
    return values if values.max() > 255 else None


class MaskFolderSink(Sink):
    """Writer of one palette PNG of object ids for each frame, FRAME.png, as in DAVIS."""

    def __init__(self, folder: str | Path, is_wide: bool = True) -> None:
        """Create the folder.

        is_wide: True for PNG of 16 bits where the labels have identities over 255

        Raises InputError where nothing can be written to the folder.
        """
        self._folder, self._is_wide = Path(folder), is_wide
        check_writable(self._folder / "mask.png")

    def write(self, result: FrameResult) -> None:
        path = os.path.join(self._folder, f"{result.frame.name}.png")
        if self._is_wide and (values := _wide_ids(result)) is not None:
            encoded = io.BytesIO()
            Image.fromarray(values[result.mask]).save(encoded, format="PNG")
            write_file(path, encoded.getvalue())
        else:
            write_mask_png(path, result.mask)

    def close(self) -> None:
        pass
