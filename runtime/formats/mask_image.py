"""Images of masks: which of their values are objects, and which are soft edges of objects.

Values of an indexed or grey image are identities; one value alone, such as 255, is one object. In a colour image each
colour but black is an object. Where a part of an image is transparent, the opaque part has the objects. Values at soft
edges, as smoothing, scaling and JPEG make them, become those of the nearest object.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

# OpenCV converts the palette of an indexed PNG to colours, which loses the object ids; Pillow keeps them.
from PIL import Image, ImageOps

from corrflow.errors import InputError
from corrflow.file_budget import open_regular
from corrflow.runtime.types import MaskObject, TrackId

MAX_PIXELS = 1 << 25
"""Pixels of the largest mask, against memory exhaustion; those of 8K are fewer."""
MAX_OBJECTS = 255

_MAX_DRAWN = 16  # objects of a drawing with soft edges; a photograph has more areas of one colour
_FLAT, _NEAR, _APART = 16, 8, 24  # of 255: range in a flat area, noise of JPEG in it, and least distance of two colours
_MAX_SAMPLES = 1 << 23  # pixels from which the colours of a drawing are counted
_REACH = 24.0  # pixels from an object to the end of its soft edge
_DARK = 48  # of 255: darkest colour of a background that JPEG has changed
_WHITE = frozenset({255, 65535})  # what tools write for one object, with no meaning as an identity
_NUMBERED = ("1", "L", "I", "I;16", "I;16L", "I;16B", "F")


@dataclass(frozen=True)
class MaskImage(Sequence[MaskObject]):
    """Objects of an image, each unpacked where it is used; id 0.

    labels:     [H, W] uint8: 0 for background, k for the object k - 1
    identities: of each object; None where the image has none that other images share
    remark:     what was made of soft edges; "" without them
    """

    labels: np.ndarray
    identities: tuple[TrackId, ...]
    remark: str = ""

    def __len__(self) -> int:
        return len(self.identities)

    def __getitem__(self, index):  # type: ignore[override]  # a slice is not used
        return MaskObject(0, self.labels == range(1, len(self) + 1)[index], "", self.identities[index])

    def __iter__(self) -> Iterator[MaskObject]:
        return (self[index] for index in range(len(self)))


def read_mask_image(path: Path) -> MaskImage:
    """Read the objects of an image, none where it is all background. Raises InputError."""
    if not path.exists():
        raise InputError(f"expected a mask at {path}, found no file; check the path")
    try:
        with open_regular(path) as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"expected a mask of at most {MAX_PIXELS // 10**6} million pixels, got {image.width}x{image.height}"
                    f" in {path}; draw it at the frame's size"
                )
            is_lossy = image.format in ("JPEG", "MPO")
            if getattr(image, "n_frames", 1) > 1 and not is_lossy:
                raise InputError(f"expected one mask in {path}, got several images; save each as a file of its own")
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "P":
                return _indexed(image, path)
            if image.mode in _NUMBERED and "transparency" not in image.info:
                return _grey(np.asarray(image), path, is_lossy)
            has_alpha = image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info
            pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"))
    except InputError:
        raise
    # Pillow raises any of these, and more, for damaged files.
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, MemoryError) as error:
        raise InputError(f"expected a mask, found a file that cannot be decoded: {path}; replace the file") from error
    except (Image.DecompressionBombError, OverflowError, ArithmeticError) as error:
        raise InputError(f"expected a mask, found a file that cannot be decoded: {path}; replace the file") from error
    return _coloured(pixels, path, is_lossy)


def image_size(content: bytes) -> tuple[int, int] | None:
    """Return the height and width that the header of an image states; None for bytes that are no image."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.height, image.width
    except Exception:  # Pillow raises many types of exceptions for damaged images
        return None


def _indexed(image: Image.Image, path: Path) -> MaskImage:
    """Read an image with a palette, whose indices are identities unless they are only names of colours."""
    image.apply_transparency()  # to the palette
    indices = np.asarray(image)
    table = np.array(image.getpalette("RGBA") or [], np.uint8).reshape(-1, 4)
    table = np.concatenate([table, np.tile(np.array([[0, 0, 0, 255]], np.uint8), (256 - len(table), 1))])
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    is_clear, is_black = table[used, 3] < 128, (table[used, :3] == 0).all(1)
    if is_clear.any() and not is_clear.all():
        if not used[0] and not is_clear[0]:
            return _coloured(table[indices], path, False)
        return _numbered(np.where(np.isin(indices, used[is_clear]), 0, indices), path)
    # A converter may have given index 0 to the object, and another one to the black background.
    background_is_elsewhere = not used[0] and not is_black[0] and is_black.any()
    if background_is_elsewhere or (len(used) > 2 and _has_soft_edges(indices, table[indices, :3])):
        return _coloured(np.ascontiguousarray(table[indices, :3]), path, False)
    return _numbered(indices, path)


def _grey(values: np.ndarray, path: Path, is_lossy: bool) -> MaskImage:
    if values.dtype.kind == "f":
        values, is_lossy = _whole(values, path)
    values = values.astype(np.uint8) if values.dtype == np.bool_ else values
    if values.min() < 0:
        raise InputError(f"expected object ids from 0 in {path}, got {values.min()}; number the objects from 1")
    levels = np.unique(values)
    numbers = values if values.dtype == np.uint8 else _positions(levels, values)
    if np.count_nonzero(levels) > 1 and (is_lossy or _has_soft_edges(numbers, values[..., None])):
        top = max(int(levels[-1]), 255)
        scaled = values if values.dtype == np.uint8 else np.round(values * (255 / top)).astype(np.uint8)
        return _separated(scaled[..., None], path, f"{len(levels)} grey levels", is_lossy or top > 255)
    return _numbered(values, path)


def _whole(values: np.ndarray, path: Path) -> tuple[np.ndarray, bool]:
    """Return numbers as integers, and True for probabilities, as levels from 0 to 255."""
    if np.isfinite(values).all() and (values == np.round(values)).all() and np.abs(values).max() < 1 << 31:
        return values.astype(np.int64), False
    if np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1:
        return np.round(values * 255).astype(np.uint8), True
    raise InputError(
        f"expected object ids, or probabilities from 0 to 1, in {path}, got other numbers with fractions; save object"
        " ids as whole numbers"
    )


def _coloured(pixels: np.ndarray, path: Path, is_lossy: bool) -> MaskImage:
    """Read colours [H, W, 3] or, with alpha, [H, W, 4] uint8."""
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3]
        is_opaque = alpha > alpha.max() / 2
        if not alpha.max():
            raise InputError(f"expected an opaque object in {path}, got an image that is all transparent; draw one")
        if is_opaque.all():
            pixels = np.ascontiguousarray(pixels[..., :3])
        else:
            # All that is clear has one colour, and black that is opaque is another one.
            pixels = np.where(is_opaque[..., None], pixels, 0)
            pixels[..., 3] = is_opaque * 255
    if pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        return _grey(np.ascontiguousarray(pixels[..., 0]), path, is_lossy)
    packed = _packed(pixels)
    colours = np.unique(packed)
    background = 1 << 24 if pixels.shape[2] == 3 else 0  # black has its bit of alpha where there is no alpha
    drawn = colours[(colours != background) & (colours != 0)]
    if len(drawn) > 1 and (is_lossy or _has_soft_edges(_positions(colours, packed), pixels)):
        del packed  # a large image needs the memory
        return _separated(pixels, path, f"{len(colours)} colours", is_lossy)
    if len(drawn) > MAX_OBJECTS:
        raise _no_mask(f"{len(drawn)} colours", path)
    labels = np.zeros(packed.shape, np.uint8)
    for number, colour in enumerate(drawn.tolist(), 1):
        labels[packed == colour] = number
    return MaskImage(labels, _colour_names([[colour >> 16 & 255, colour >> 8 & 255, colour & 255] for colour in drawn]))


def _numbered(values: np.ndarray, path: Path) -> MaskImage:
    """Return the objects of values that are identities."""
    found = np.unique(values)
    found = found[found > 0].tolist()
    if len(found) > MAX_OBJECTS:
        raise InputError(
            f"expected at most {MAX_OBJECTS} objects, got {len(found)} values in {path}; track them in several runs"
        )
    if len(found) > _MAX_DRAWN and (values[1:] != values[:-1]).mean() > 0.5:
        raise _no_mask(f"{len(found)} values", path)
    labels = np.zeros(values.shape, np.uint8)
    for number, value in enumerate(found, 1):
        labels[values == value] = number
    return MaskImage(labels, (1,) if len(found) == 1 and found[0] in _WHITE else tuple(found))


def _has_soft_edges(values: np.ndarray, channels: np.ndarray) -> bool:
    """Return True if most values are between those of their neighbours.

    values:   [H, W] small numbers from 0, one for each colour
    channels: [H, W, C] brightness

    A value is at soft edges where half of its pixels or more are brighter than one neighbour and darker than the
    opposite one.
    """
    is_between = np.zeros(values.shape, bool)
    for channel in range(channels.shape[2]):
        plane = np.ascontiguousarray(channels[..., channel])
        for axis in (0, 1):
            if plane.shape[axis] < 3:
                continue
            low, mid, high = (np.moveaxis(plane, axis, 0)[start : start - 2 or None] for start in range(3))
            found = ((low < mid) & (mid < high)) | ((low > mid) & (mid > high))
            np.moveaxis(is_between, axis, 0)[1:-1] |= found
    total = between = np.zeros(int(values.max()) + 1, np.int64)
    for rows in _strips(values):
        total = total + np.bincount(values[rows].ravel(), minlength=len(total))
        between = between + np.bincount(values[rows][is_between[rows]], minlength=len(total))
    at_edges = np.count_nonzero((2 * between >= total) & (total > 0))
    return bool(at_edges > 0 and 2 * at_edges >= np.count_nonzero(total) - 1)


def _separated(pixels: np.ndarray, path: Path, seen: str, is_lossy: bool) -> MaskImage:
    """Find the colours of flat areas, and give every pixel the nearest of those that are close to it.

    pixels: [H, W, C] uint8, with C = 4 for alpha
    seen:   what the image has, for messages

    Raises InputError for a photograph.
    """
    square = np.ones((5, 5), np.uint8)
    is_flat = np.ones(pixels.shape[:2], bool)
    for channel in range(pixels.shape[2]):
        plane = np.ascontiguousarray(pixels[..., channel])
        is_flat &= np.asarray(cv2.subtract(cv2.dilate(plane, square), cv2.erode(plane, square))) <= _FLAT
    if 2 * np.count_nonzero(is_flat) < is_flat.size:
        raise _no_mask(seen, path)
    colours = _dominant(pixels, is_flat, seen, path)
    if len(colours) == 1:
        # No object is wide enough to have a flat area: there is one, and its brightest pixel has its colour.
        brightness = pixels.max(2)
        if brightness.max() <= _DARK or colours[0].max() > _DARK:
            raise _no_mask(seen, path)
        colours = np.stack([colours[0], pixels.reshape(-1, pixels.shape[2])[brightness.argmax()]])
    labels = _nearest(pixels, is_flat, colours)
    is_background = colours.max(1) <= _DARK if pixels.shape[2] < 4 else colours[:, 3] == 0
    order = np.zeros(len(colours), np.uint8)
    objects = np.flatnonzero(~is_background)
    order[objects] = np.arange(1, len(objects) + 1)
    identities = tuple(None for _ in objects)
    if len(objects) == 1:
        identities = (1,)
    elif not is_lossy:
        levels = tuple(int(colours[index][0]) for index in objects)
        identities = levels if pixels.shape[2] == 1 else _colour_names(colours[objects].tolist())
    count = f"{len(objects)} object" + ("s" if len(objects) != 1 else "")
    return MaskImage(
        order[labels], identities, f"{seen} are {count} with soft edges, cut where they are half as strong"
    )


def _dominant(pixels: np.ndarray, is_flat: np.ndarray, seen: str, path: Path) -> np.ndarray:
    """Return the colours of the flat areas, [N, C] int; raises InputError for too many, or colours that run."""
    step = 1 + is_flat.size // _MAX_SAMPLES
    flat = _packed(pixels[::step, ::step])[is_flat[::step, ::step]]
    packed, counts = np.unique(flat, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shifts = np.array([0]) if pixels.shape[2] == 1 else np.array([16, 8, 0, 24])[: pixels.shape[2]]
    found = (packed[order, None] >> shifts & 255).astype(int)
    counts, colours, near = counts[order], found[:1], 0
    for colour, count in zip(found, counts.tolist(), strict=True):
        distance = int(np.abs(colours - colour).max(1).min())
        near += count * (distance <= _NEAR)
        if distance > _APART:
            colours = np.concatenate([colours, colour[None]])
            near += count
        if len(colours) > _MAX_DRAWN + 1:
            raise _no_mask(seen, path)
    if near < 0.9 * len(flat):
        raise _no_mask(seen, path)
    return colours


def _nearest(pixels: np.ndarray, is_flat: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return for each pixel the number of the colour that is most like it, among those of the flat areas around it.

    A thin rim of an edge may have the colour of an object elsewhere.
    """
    labels = np.zeros(is_flat.shape, np.uint8)
    least = np.full(is_flat.shape, np.inf, np.float32)
    for number, colour in enumerate(colours):
        distance = np.zeros(is_flat.shape, np.float32)
        for channel, value in enumerate(colour.tolist()):
            difference = pixels[..., channel].astype(np.float32)
            difference -= value
            distance += np.square(difference, out=difference)
            del difference  # a large image needs the memory
        own = is_flat & (distance <= _APART**2 * len(colour))
        if own.any():
            # What is far from the areas of this colour is far from it, but still nearest where no area is close.
            is_away = cv2.distanceTransform((~own).view(np.uint8), cv2.DIST_L2, 3) > _REACH
            np.add(distance, 1e6, out=distance, where=is_away)
        is_nearer = distance < least
        labels[is_nearer] = number
        np.copyto(least, distance, where=is_nearer)
    return labels


def _strips(values: np.ndarray) -> Iterator[slice]:
    """Yield rows of an image; NumPy's temporary copies of a large one as a whole need a gigabyte."""
    for start in range(0, len(values), 256):
        yield slice(start, start + 256)


def _positions(found: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the position of each value [H, W] in the sorted values that were found."""
    positions = np.empty(values.shape, np.uint32)
    for rows in _strips(values):
        positions[rows] = np.searchsorted(found, values[rows])
    return positions


def _packed(pixels: np.ndarray) -> np.ndarray:
    """Return a number for each pixel [H, W] uint32: red, green and blue, with 255 or alpha above them; or the grey."""
    if pixels.shape[2] == 1:
        return pixels[..., 0].astype(np.uint32)
    packed = np.full(pixels.shape[:2], 1, np.uint32) if pixels.shape[2] == 3 else pixels[..., 3].astype(np.uint32)
    for channel in range(3):
        packed = packed << 8 | pixels[..., channel]
    return packed


def _colour_names(colours: Sequence[Sequence[int]]) -> tuple[TrackId, ...]:
    """Return identities of colours: "#ff8000"; 1 for a colour alone, which is not the same in every tool."""
    names = tuple("#" + "".join(f"{int(channel):02x}" for channel in colour[:3]) for colour in colours)
    return names if len(names) > 1 else (1,) * len(names)


def _no_mask(seen: str, path: Path) -> InputError:
    return InputError(
        f"expected a mask with one value for each object in {path}, got {seen}: soft edges of one object, or a"
        " photograph? save it as PNG without soft edges"
    )
