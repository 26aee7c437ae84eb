"""Videos of points whose truth is known, from data sets of masks.

Synthetic: the first frame of a sequence, moved by a smooth random motion. Brightness changes, frames have noise, and a
disc hides points for a while. The truth is exact.

Real: frames of the sequence, and points whose dense optical flow is consistent forward and backward. This truth favours
methods that use the same flow, and has neither occlusion nor fast motion.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.datasets.points import PointVideo
from corrflow.evaluate.methods.point_trackers import dense_flow, inside, sampled

REAL_FRAMES = 9
MAX_ROUND_TRIP = 0.5
"""Largest error in pixels of a real point's way forward and back, at each step and over all frames."""

_NODES = (5, 4)  # of the elastic field, across and down
_ROTATION, _SCALE, _SHIFT, _ELASTIC = 10.0, 0.1, 25.0, 10.0  # degrees, share, pixels and pixels at 480 rows
_WOBBLE = 0.3  # elastic motion that comes and goes, so that no point moves on a line
_GAIN, _OFFSET, _NOISE = 0.25, 12.0, 2.0  # changes at the last frame, and standard deviation, of 255
_PATCH = 0.16  # half axis of the patch, relative to the frame's height
_PATCH_REACH, _PATCH_TIMES = 2.5, (0.3, 0.8)  # half of its way in half axes, and the time that it is there
_ROWS = 480.0
_SOLVER_STEPS, _SOLVED = 80, 1e-3  # steps, and error in pixels of a solved place


@dataclass(frozen=True)
class WarpSettings:
    """Synthetic motion.

    frames: number of frames
    motion: mean motion of the points at the last frame, in pixels at 480 rows
    points: largest number of points, half of them on the object
    seed:   seed of all that is random
    """

    frames: int = 24
    motion: float = 40.0
    points: int = 64
    seed: int = 0


def warped_video(sequence: MaskSequence, settings: WarpSettings) -> PointVideo:
    """Return the synthetic video of a sequence. Raises InputError for a frame without trackable places."""
    image, mask = sequence.image(0), sequence.annotation(0) > 0
    generator = _generator(sequence, settings)
    start = _trackable_points(sequence, 0, settings.points, generator)
    height, width = image.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    motion = _Motion.random(generator, (height, width), start, settings.motion * height / _ROWS)
    patch = _Patch.random(generator, image, mask)
    gain, offset = generator.uniform(-_GAIN, _GAIN), generator.uniform(-_OFFSET, _OFFSET)
    frames, places, solved = [], [], np.ones(len(start), bool)
    hidden = np.zeros((settings.frames, len(start)), bool)
    for t, time in enumerate(np.linspace(0, 1, settings.frames)):
        field = motion.field(time)
        source = grid - field
        frame = _moved(image, source, cv2.INTER_CUBIC)
        place, is_solved = _forward(field, start)
        solved &= is_solved
        frame, covered = patch.draw(frame, grid, place, time)
        changed = frame * (1 + gain * time) + offset * time + generator.normal(0, _NOISE, frame.shape)
        frames.append(changed.clip(0, 255).round().astype(np.uint8)[..., ::-1])
        places.append(place)
        hidden[t] = covered | ~inside(place, (height, width))
    points = (np.stack(places, 1)[solved] + 0.5) / (width, height)
    return PointVideo(sequence.name, np.stack(frames), points, hidden.T[solved])


def real_video(sequence: MaskSequence, settings: WarpSettings) -> PointVideo:
    """Return the first frames of a sequence, with points of consistent flow; none where no flow is consistent.

    Raises InputError for a sequence of one frame, or a frame without trackable places.
    """
    count = min(REAL_FRAMES, len(sequence))
    if count < 2:
        raise InputError(f"expected two frames or more of {sequence.name}, got one; leave the sequence out")
    images = [sequence.image(t) for t in range(count)]
    generator = _generator(sequence, settings)
    start = _trackable_points(sequence, 0, 4 * settings.points, generator)
    grey = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in images]
    flow = dense_flow()
    forward = [flow(one, other) for one, other in pairwise(grey)]
    backward = [flow(other, one) for one, other in pairwise(grey)]
    places, kept = [start], np.ones(len(start), bool)
    for ahead, back in zip(forward, backward, strict=True):
        place = places[-1] + sampled(ahead, places[-1])
        kept &= inside(place, grey[0].shape)
        kept &= np.linalg.norm(place + sampled(back, place) - places[-1], axis=1) < MAX_ROUND_TRIP
        places.append(place)
    returned = places[-1]
    for back in reversed(backward):
        returned = returned + sampled(back, returned)
    kept &= np.linalg.norm(returned - start, axis=1) < MAX_ROUND_TRIP
    chosen = np.flatnonzero(kept)
    if len(chosen) > settings.points:
        chosen = np.sort(generator.choice(chosen, settings.points, replace=False))
    height, width = grey[0].shape
    points = (np.stack(places, 1)[chosen] + 0.5) / (width, height)
    video = np.stack([image[..., ::-1] for image in images])
    return PointVideo(sequence.name, video, points, np.zeros((len(chosen), count), bool))


def _generator(sequence: MaskSequence, settings: WarpSettings) -> np.random.Generator:
    """Return a generator of the sequence's own, so that a sequence is the same beside any others."""
    return np.random.default_rng([settings.seed, zlib.crc32(sequence.name.encode())])


def _trackable_points(sequence: MaskSequence, index: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return corners of a frame, [P, 2] float64: half on the object and half off it, where there are as many.

    Raises InputError where there are none.
    """
    grey = cv2.cvtColor(sequence.image(index), cv2.COLOR_BGR2GRAY)
    mask = (sequence.annotation(index) > 0).astype(np.uint8)
    apart = max(2.0, 8 * grey.shape[0] / _ROWS)
    found: list[np.ndarray] = []
    # Border pixels belong to neither side.
    kernel = np.ones((5, 5), np.uint8)
    sides = (cv2.erode(mask, kernel), 1 - cv2.dilate(mask, kernel))
    for number, side in enumerate(sides):
        wanted = count // 2 if number == 0 else count - sum(map(len, found))
        corners = cv2.goodFeaturesToTrack(grey, wanted, 0.01, apart, mask=side) if wanted else None
        if corners is not None:
            found.append(corners[:, 0].astype(np.float64))
    if not found:
        raise InputError(f"expected trackable corners in frame 0 of {sequence.name}, got none; leave the sequence out")
    points = np.concatenate(found)
    return points[generator.permutation(len(points))]


@dataclass(frozen=True)
class _Motion:
    """Displacement of every pixel: a similarity and two elastic fields, [H, W, 2] pixels each."""

    similarity: np.ndarray
    elastic: np.ndarray
    wobble: np.ndarray

    @classmethod
    def random(
        cls, generator: np.random.Generator, size: tuple[int, int], points: np.ndarray, length: float
    ) -> _Motion:
        """Draw a motion whose mean over the points is `length` pixels at time 1."""
        height, width = size
        rows = height / _ROWS
        angle = np.deg2rad(generator.uniform(-_ROTATION, _ROTATION))
        factor = np.exp(generator.uniform(-_SCALE, _SCALE)) * np.exp(1j * angle) - 1
        x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
        direction = generator.uniform(0, 2 * np.pi)
        moved = (x + 1j * y) * factor + _SHIFT * rows * np.exp(1j * direction)
        similarity = np.stack([moved.real, moved.imag], -1).astype(np.float32)
        elastic, wobble = (
            cv2.resize(
                generator.normal(0, _ELASTIC * rows, (_NODES[1], _NODES[0], 2)).astype(np.float32),
                (width, height),
                interpolation=cv2.INTER_CUBIC,
            )
            for _ in range(2)
        )
        scale = length / max(float(np.linalg.norm(sampled(similarity + elastic, points), axis=1).mean()), 1e-6)
        return cls(scale * similarity, scale * elastic, scale * _WOBBLE * wobble)

    def field(self, time: float) -> np.ndarray:
        """Return the displacement [H, W, 2] float32 at a time from 0 to 1, by the place where a pixel arrives."""
        return np.float32(time) * (self.similarity + self.elastic) + np.float32(np.sin(2 * np.pi * time)) * self.wobble


def _moved(image: np.ndarray, source: np.ndarray, interpolation: int) -> np.ndarray:
    """Return the image at places [H, W, 2] float32, mirrored at its borders."""
    # OpenCV 5.0 takes minutes with both coordinates in one map and bilinear interpolation.
    x, y = np.ascontiguousarray(source[..., 0]), np.ascontiguousarray(source[..., 1])
    return cv2.remap(image, x, y, interpolation, borderMode=cv2.BORDER_REFLECT_101)


def _forward(field: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where points [P, 2] of the original arrive, and [P] bool: True where that place is found.

    The field is known by the place of arrival, so this solves place = start + field(place).
    """
    place = start.copy()
    for _ in range(_SOLVER_STEPS):
        place = start + _smooth(field, place)
    return place, np.linalg.norm(place - start - _smooth(field, place), axis=1) < _SOLVED


def _smooth(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a field at points in double precision, because OpenCV's weights have 1/32 of a pixel."""
    height, width = field.shape[:2]
    x, y = points[:, 0].clip(0, width - 1), points[:, 1].clip(0, height - 1)
    left, top = x.astype(int).clip(0, width - 2), y.astype(int).clip(0, height - 2)
    across, down = (x - left)[:, None], (y - top)[:, None]
    upper = field[top, left] * (1 - across) + field[top, left + 1] * across
    lower = field[top + 1, left] * (1 - across) + field[top + 1, left + 1] * across
    return upper * (1 - down) + lower * down


@dataclass(frozen=True)
class _Patch:
    """Disc with the texture of the turned image, which moves across the object.

    step: from the middle of the disc's way to its end, in pixels
    """

    texture: np.ndarray
    middle: np.ndarray
    step: np.ndarray
    radius: float

    @classmethod
    def random(cls, generator: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> _Patch:
        """Draw a patch that crosses the mask [H, W] bool, or the middle of the image without a mask."""
        height, width = image.shape[:2]
        rows, columns = np.nonzero(mask)
        middle = np.array([columns.mean(), rows.mean()]) if len(rows) else np.array([width, height]) / 2
        angle = generator.uniform(0, 2 * np.pi)
        radius = _PATCH * height
        step = _PATCH_REACH * radius * np.array([np.cos(angle), np.sin(angle)])
        return cls(np.ascontiguousarray(image[::-1, ::-1]), middle, step, radius)

    def draw(
        self, frame: np.ndarray, grid: np.ndarray, points: np.ndarray, time: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the patch over a frame, and return [P] bool: True for covered points."""
        begin, end = _PATCH_TIMES
        if not begin <= time <= end:
            return frame, np.zeros(len(points), bool)
        centre = self.middle + (2 * (time - begin) / (end - begin) - 1) * self.step
        offset = grid - centre.astype(np.float32)
        covered = np.hypot(offset[..., 0], offset[..., 1]) <= self.radius
        height, width = frame.shape[:2]
        source = offset + np.array([width, height], np.float32) / 2
        texture = _moved(self.texture, source, cv2.INTER_LINEAR)
        drawn = np.where(covered[..., None], texture, frame)
        return drawn, np.linalg.norm(points - centre, axis=1) <= self.radius
