"""Types of a tracker's inputs and outputs: plain data without behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corrflow.errors import InputError

# Confidence of a point up to which it counts as not visible.
MIN_POINT_CONFIDENCE = 0.5


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    image: [H, W, 3] uint8, BGR
    index: position in the source, from 0
    time:  seconds from the start of the source, or from the first tracked frame of a live session
    name:  file stem of an image from a folder ("00042"), otherwise the zero-padded index
    file_name: name of the image's file with its suffix; "" for a frame of a video
    """

    image: np.ndarray
    index: int
    time: float
    name: str
    file_name: str = ""


TrackId = int | str | None
"""Identity of an object in the file that it was read from: a number, a text, or None where the file has none."""


@dataclass(frozen=True)
class MaskObject:
    """Object prompted by its mask.

    id:       1..255, the value of the object in the indexed mask
    mask:     [H, W] bool, at the size of the prompted frame
    name:     name that is shown
    category: name of its class; "" for none
    polygons: contours [P, 2] float64 in pixels as a file gave them, for writers; empty for a mask of pixels
    """

    id: int
    mask: np.ndarray
    name: str = ""
    track_id: TrackId = None
    category: str = ""
    polygons: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class KeypointsObject:
    """Object prompted by points, which are tracked together in a crop around them.

    id:          1..255, unique among all objects
    points:      [P, 2] float32, (x, y) in pixels; (0, 0) is the centre of the top-left pixel
    point_names: P names, unique within the object
    name:        name that is shown
    category:    name of its class or skeleton; "" for none
    is_prediction: True for points that another tool has predicted and no user has corrected
    body:        0, or a number that objects share whose points belong to one body, for they are tracked together
    """

    id: int
    points: np.ndarray
    point_names: tuple[str, ...]
    name: str = ""
    track_id: TrackId = None
    category: str = ""
    is_prediction: bool = False
    body: int = 0


TrackedObject = MaskObject | KeypointsObject


@dataclass(frozen=True)
class AbsentObject:
    """Statement of an annotator that an object is out of the picture, from a frame until its next annotation.

    is_mask: True for an object with masks, False for one with points
    """

    id: int
    name: str = ""
    track_id: TrackId = None
    category: str = ""
    is_mask: bool = True


Annotation = TrackedObject | AbsentObject


@dataclass(frozen=True)
class ObjectResult:
    """One object in one frame.

    confidence: 0..1: mean soft mask over the mask's pixels, or mean confidence of the points
    visible:    False where the object has no pixel, or no point of it is visible
    box:        (x0, y0, x1, y1) of the mask in pixels, x1 and y1 exclusive; None for points and for an empty mask
    points:     [P, 2] float32, (x, y) in pixels; None for masks
    point_confidence: [P] float32, 0..1, probability that each point is right, 0 outside the picture; None for masks
    track_id:   identity in the file of labels
    category:   name of its class; "" for none
    is_annotation: True where the result is the user's own label on this frame
    annotated_points: names of the points that are the user's own label on this frame
    polygons:   contours of that label as a file gave them; empty elsewhere
    """

    id: int
    name: str
    confidence: float
    visible: bool
    box: tuple[int, int, int, int] | None = None
    points: np.ndarray | None = None
    point_names: tuple[str, ...] = ()
    point_confidence: np.ndarray | None = None
    track_id: TrackId = None
    category: str = ""
    is_annotation: bool = False
    annotated_points: tuple[str, ...] = ()
    polygons: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class LiveTiming:
    """Times of a frame of a live session.

    number:   position among the tracked frames, from 0; Frame.index counts the dropped frames as well
    captured: seconds since 1970 at capture
    latency:  seconds from capture to result
    """

    number: int
    captured: float
    latency: float


@dataclass(frozen=True)
class FrameResult:
    """All objects of one frame.

    mask:    [H, W] uint8 at the frame's own size: 0 for background, otherwise the object's id
    objects: one entry for each object, by ascending id
    frame:   the frame itself
    live:    times of a frame of a live session; None for files
    """

    mask: np.ndarray
    objects: tuple[ObjectResult, ...]
    frame: Frame
    live: LiveTiming | None = None


def size_text(shape: Sequence[int]) -> str:
    """Return the size of an array [H, W, ...] as text, width first: 854x480."""
    return f"{shape[1]}x{shape[0]}" if len(shape) >= 2 else str(list(shape))


def check_objects(objects: Sequence[TrackedObject], frame: tuple[int, int], taken: tuple[int, ...]) -> None:
    """Raise InputError for the first object that cannot be tracked on a frame of this (height, width).

    taken: ids of objects that are tracked already
    """
    ids = set(taken)
    for prompt in objects:
        if not 1 <= prompt.id <= 255:
            raise InputError(f"expected object ids from 1 to 255, got {prompt.id}")
        if prompt.id in ids:
            raise InputError(f"expected every object to have an id of its own, got {prompt.id} twice")
        ids.add(prompt.id)
        if isinstance(prompt, MaskObject):
            if prompt.mask.shape != frame:
                raise InputError(
                    f"expected a mask of the frame's size {size_text(frame)}, got {size_text(prompt.mask.shape)};"
                    " draw it on the first frame at its full size"
                )
            if not prompt.mask.any():
                raise InputError(f"expected pixels in the mask of object {prompt.id}, got an empty mask")
            continue
        points = np.asarray(prompt.points)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) != len(prompt.point_names) or not len(points):
            raise InputError(
                f"expected points [P, 2] with P names, got {list(points.shape)} and {len(prompt.point_names)} names"
            )
        height, width = frame
        for name, (x, y) in zip(prompt.point_names, points, strict=True):
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                raise InputError(
                    f"expected point {name!r} inside the frame, x from 0 to {width - 1} and y from 0 to {height - 1},"
                    f" got ({x:g}, {y:g}); give pixels of the first frame"
                )
