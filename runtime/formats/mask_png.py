"""What a user brings to begin with: masks as PNG and keypoints as CSV, read into objects to track."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# OpenCV turns the palette of an indexed PNG into colours, so that the object ids are lost; Pillow keeps them.
from PIL import Image

from corrflow.atomic_files import prepare_place, save_whole
from corrflow.errors import InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.types import FrameResult, MaskObject
from corrflow.runtime.video.overlay import davis_palette

_MOST_COLOURS = 32  # a drawing with more colours is a photograph, or has blended edges


def read_mask_objects(paths: Sequence[Path]) -> list[MaskObject]:
    """The objects drawn in one or several masks.

    An indexed PNG (as DAVIS has them) and a grey one hold object ids; 0 and 255 alone are one object; in a coloured
    picture every colour but black is an object. Objects of a second file get the ids after those of the first.
    Raises InputError where a file is missing, no mask, or empty.
    """
    objects: list[MaskObject] = []
    for path in paths:
        ids = _read_drawing(path)
        found = [value for value in np.unique(ids).tolist() if value]
        if not found:
            raise InputError(f"expected an object in the mask {path}, found only background; draw one")
        if found == [255]:
            ids, found = (ids == 255).astype(np.uint8), [1]
        highest = max((given.id for given in objects), default=0)
        if len(paths) == 1:
            objects += [MaskObject(value, ids == value) for value in found]
        else:
            objects += [MaskObject(highest + 1 + k, ids == value) for k, value in enumerate(found)]
    if objects and objects[-1].id > 255:
        raise InputError(f"expected at most 255 objects, found {objects[-1].id}; track them in several runs")
    return objects


def _read_drawing(path: Path) -> np.ndarray:
    """[H, W] uint8 ids; colours are numbered in the order of their values."""
    if not path.is_file():
        raise InputError(f"expected a mask at {path}, found no file; check the path")
    try:
        return read_indexed_png(path)
    except InputError:
        try:
            with Image.open(path) as picture:
                coloured = np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            coloured = None
        if coloured is None:
            raise
    packed = (coloured.astype(np.uint32) * np.array([65536, 256, 1], np.uint32)).sum(2, dtype=np.uint32)
    colours = np.unique(packed)
    colours = colours[colours > 0]
    if len(colours) > _MOST_COLOURS:
        raise InputError(
            f"expected a mask of one value for each object, found {len(colours)} colours in {path};"
            " save it as PNG, without smooth edges"
        )
    return np.where(packed > 0, np.searchsorted(colours, packed) + 1, 0).astype(np.uint8)


def read_indexed_png(path: Path) -> np.ndarray:
    """The stored values of a mask, palette indices included: [H, W] uint8; raises InputError for anything else."""
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            values = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"expected a PNG, found a file that cannot be decoded: {path}; replace the file") from error
    # Some grey masks are stored as colours or with an alpha channel, in DAVIS itself too.
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


class MaskFolderSink(Sink):
    """One palette PNG of object ids per frame, named `{result.frame.name}.png`, as DAVIS stores its masks."""

    def __init__(self, folder: str | Path) -> None:
        """Make the folder where it is missing. Raises InputError where nothing can be written into it."""
        self._folder = Path(folder)
        prepare_place(self._folder / "mask.png")
        self._palette = davis_palette().tobytes()

    def write(self, result: FrameResult) -> None:
        image = Image.fromarray(np.ascontiguousarray(result.mask))
        image.putpalette(self._palette)
        encoded = io.BytesIO()
        image.save(encoded, format="PNG")
        save_whole(os.path.join(self._folder, f"{result.frame.name}.png"), encoded.getvalue())

    def close(self) -> None:
        pass
