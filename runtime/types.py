"""What goes into a tracker and what comes out of it: plain data, no behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from corrflow.errors import InputError

# The height of a point's soft label up to which it is lost.
LOST_POINT = 0.05


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    image: [H, W, 3] uint8, BGR
    index: position in the source, from 0
    time:  seconds from the start of the source
    name:  file stem for a picture from a folder ("00042"), the zero-padded index otherwise
    """

    image: np.ndarray
    index: int
    time: float
    name: str


@dataclass(frozen=True)
class MaskObject:
    """An object given by its pixels.

    id:   1..255, the value it has in the indexed mask
    mask: [H, W] bool, at the size of the frame it is given for
    """

    id: int
    mask: np.ndarray
    name: str = ""


@dataclass(frozen=True)
class KeypointsObject:
    """An object given by points, each tracked on its own.

    id:          1..255, unique among all objects
    points:      [P, 2] float32, (x, y) in pixels; (0, 0) is the centre of the top-left pixel
    point_names: P names, unique within the object
    """

    id: int
    points: np.ndarray
    point_names: tuple[str, ...]
    name: str = ""


TrackedObject = MaskObject | KeypointsObject


@dataclass(frozen=True)
class ObjectResult:
    """One object in one frame.

    confidence: 0..1, how decided the labels are (mean soft label over a mask's pixels, mean peak mass of keypoints)
    visible:    False when no pixel (or no point) of the object is found
    box:        (x0, y0, x1, y1) in pixels, the last row and column outside, of a mask's pixels; None where empty
    points:     [P, 2] float32 (x, y) in pixels for keypoints, None for masks
    point_confidence: [P] float32, 0..1, for keypoints
    """

    id: int
    name: str
    confidence: float
    visible: bool
    box: tuple[int, int, int, int] | None = None
    points: np.ndarray | None = None
    point_names: tuple[str, ...] = ()
    point_confidence: np.ndarray | None = None


@dataclass(frozen=True)
class Tracks:
    """The result for one frame.

    mask:    [H, W] uint8 at the frame's own size: 0 for background, else the object's id
    objects: one entry per object, in ascending id
    """

    mask: np.ndarray
    objects: tuple[ObjectResult, ...] = field(default=())


def check_objects(objects: Sequence[TrackedObject], frame: tuple[int, int], taken: tuple[int, ...]) -> None:
    """Raise InputError for the first object that cannot be tracked on a frame of this (height, width)."""
    seen = set(taken)
    for given in objects:
        if not 1 <= given.id <= 255:
            raise InputError(f"expected object ids from 1 to 255, got {given.id}")
        if given.id in seen:
            raise InputError(f"expected every object to have an id of its own, got {given.id} twice")
        seen.add(given.id)
        if isinstance(given, MaskObject):
            if given.mask.shape != frame:
                raise InputError(
                    f"expected a mask of the frame's size {_size(frame)}, got {_size(given.mask.shape)};"
                    " draw it on the first frame at its full size"
                )
            if not given.mask.any():
                raise InputError(f"expected pixels in the mask of object {given.id}, got an empty mask")
            continue
        points = np.asarray(given.points)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) != len(given.point_names) or not len(points):
            raise InputError(
                f"expected points [P, 2] with P names, got {list(points.shape)} and {len(given.point_names)} names"
            )
        height, width = frame
        for name, (x, y) in zip(given.point_names, points, strict=True):
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                raise InputError(
                    f"expected point {name!r} inside the frame, x from 0 to {width - 1} and y from 0 to {height - 1},"
                    f" got ({x:g}, {y:g}); give pixels of the first frame"
                )


def _size(shape: Sequence[int]) -> str:
    """854x480: width first as people say it."""
    return f"{shape[1]}x{shape[0]}" if len(shape) >= 2 else str(list(shape))
