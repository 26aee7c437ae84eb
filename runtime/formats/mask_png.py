"""Masks as PNG: drawings and indexed images are read, palette PNGs are written."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# OpenCV converts the palette of an indexed PNG to colours, which loses the object ids; Pillow keeps them.
from PIL import Image

from corrflow.atomic_files import check_writable, write_file
from corrflow.errors import InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult, MaskObject
from corrflow.runtime.video.overlay import davis_palette

_MAX_COLOURS = 32  # an image with more colours is a photograph, or has smooth edges


def read_mask_objects(paths: Sequence[Path]) -> list[MaskObject]:
    """Read the objects of one or several masks.

    Values of an indexed or grey PNG are object ids; 0 and 255 alone are one object. In a colour image every colour but
    black is an object. Objects of several files are numbered on. Raises InputError for a missing or invalid file.
    """
    objects: list[MaskObject] = []
    for path in paths:
        ids = _read_ids(path)
        values = [value for value in np.unique(ids).tolist() if value]
        if not values:
            raise InputError(f"expected an object in the mask {path}, found only background; draw one")
        if values == [255]:
            ids, values = (ids == 255).astype(np.uint8), [1]
        highest = max((obj.id for obj in objects), default=0)
        if len(paths) == 1:
            objects += [MaskObject(value, ids == value) for value in values]
        else:
            objects += [MaskObject(highest + 1 + k, ids == value) for k, value in enumerate(values)]
    if objects and objects[-1].id > 255:
        raise InputError(f"expected at most 255 objects, found {objects[-1].id}; track them in several runs")
    return objects


def _read_ids(path: Path) -> np.ndarray:
    """Read the object ids of a mask, [H, W] uint8; colours are numbered in the order of their values."""
    if not path.is_file():
        raise InputError(f"expected a mask at {path}, found no file; check the path")
    try:
        return read_indexed_png(path)
    except InputError:
        try:
            with Image.open(path) as image:
                coloured = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            coloured = None
        if coloured is None:
            raise
    packed = (coloured.astype(np.uint32) * np.array([65536, 256, 1], np.uint32)).sum(2, dtype=np.uint32)
    colours = np.unique(packed)
    colours = colours[colours > 0]
    if len(colours) > _MAX_COLOURS:
        raise InputError(
            f"expected a mask of one value for each object, found {len(colours)} colours in {path};"
            " save it as PNG, without smooth edges"
        )
    return np.where(packed > 0, np.searchsorted(colours, packed) + 1, 0).astype(np.uint8)


def read_indexed_png(path: Path) -> np.ndarray:
    """Read the stored values of a mask, such as palette indices, as [H, W] uint8. Raises InputError."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
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


class MaskFolderSink(Sink):
    """Writer of one palette PNG of object ids for each frame, FRAME.png, as in DAVIS."""

    def __init__(self, folder: str | Path) -> None:
        """Create the folder. Raises InputError where nothing can be written to it."""
        self._folder = Path(folder)
        check_writable(self._folder / "mask.png")

    def write(self, result: FrameResult) -> None:
        write_mask_png(os.path.join(self._folder, f"{result.frame.name}.png"), result.mask)

    def close(self) -> None:
        pass
