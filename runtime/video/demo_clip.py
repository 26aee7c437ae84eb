"""Demo clip: a rendered video of a saucer that flies past a cat, with the exact mask of every frame.

The clip is made of two photographs in photographs/, both CC0: "chelsea" (Stefan van der Walt) and "coffee" (Rachel
Michetti). The object rotates, grows and deforms. The camera pans, the light changes, and a blurred occluder passes in
front.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from importlib import resources

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.types import Frame
from corrflow.runtime.video.open_source import FrameSource

DEMO_FRAMES_PER_SECOND = Fraction(25)

_PHOTOGRAPHS = resources.files("corrflow.runtime.video") / "photographs"

# Contours of the saucer, the cup and the spoon's handle, in pixels of the coffee photograph.
_SAUCER = ((278.2, 221.6), (403.0, 337.5), 2.2)  # centre, axes, degrees
_CUP = ((290.5, 113.0), (238.0, 190.0), 6.0)
_SPOON = (
    (395, 75),
    (399, 70),
    (407, 67),
    (416, 68),
    (422, 73),
    (424, 79),
    (421, 92),
    (415, 110),
    (400, 130),
    (392, 100),
)
_OBJECT_CENTRE = (278.0, 206.0)
_OBJECT_WIDTH = 403.0

# Box of the table in the same photograph, the texture of the occluder: x0, y0, x1, y1.
_OCCLUDER = (440, 0, 600, 130)


def render_demo_clip(
    frame_count: int = 60, size: tuple[int, int] = (360, 640), seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the frames [H, W, 3] uint8, BGR, and masks [H, W] bool of the demo clip, the same for the same arguments.

    frame_count: number of frames; a longer clip starts like a shorter one
    size:        (height, width) in pixels
    seed:        varies path, rotation and noise

    A pixel belongs to the mask if more than half of its colour is the object's. Between frames the object moves by at
    most 12 pixels at a width of 640. Raises InputError where the photographs are missing.
    """
    scene = _Scene(size, seed)
    for index in range(frame_count):
        yield scene.render(index)


class DemoSource(FrameSource):
    """Demo clip as a source, with its true masks."""

    def __init__(self, frame_count: int = 60, size: tuple[int, int] = (360, 640), seed: int = 0) -> None:
        """Prepare the clip; see `render_demo_clip` for arguments and errors."""
        self.name = "demo"
        self.frame_count: int | None = frame_count
        self.frames_per_second: Fraction | None = DEMO_FRAMES_PER_SECOND
        self._scene = _Scene(size, seed)
        self._frames = self._render(frame_count)

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def close(self) -> None:
        self._frames = iter(())

    def true_mask(self, index: int) -> np.ndarray:
        """Return the mask [H, W] bool of the object's visible pixels on a frame."""
        return self._scene.visible_mask(index)

    def _render(self, frame_count: int) -> Iterator[Frame]:
        for index in range(frame_count):
            yield Frame(self._scene.render(index)[0], index, float(index / DEMO_FRAMES_PER_SECOND), f"{index:05d}")


class _Scene:
    """Layers of the clip, from back to front: cat, saucer, occluder. Every frame depends only on its index."""

    def __init__(self, size: tuple[int, int], seed: int) -> None:
        self._height, self._width = size
        self._unit = min(self._height / 360, self._width / 640)
        self._seed = seed
        self._phases = np.random.default_rng(seed).uniform(-0.35, 0.35, 8).tolist()
        coffee = _photograph("coffee.png")
        self._background = self._enlarged_background(_photograph("chelsea.png"))
        self._object, self._object_scale = self._cut_out_object(coffee)
        self._occluder = self._occluder_texture(coffee)
        self._columns = np.arange(self._width, dtype=np.float32)[None, :]
        self._rows = np.arange(self._height, dtype=np.float32)[:, None]

    def render(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Render a frame [H, W, 3] uint8 BGR and its mask [H, W] bool."""
        image = self._background_at(index)
        saucer = self._object_at(index)
        opacity = saucer[..., 3:]
        image *= 1 - self._shadow(opacity[..., 0])[..., None]
        image = image * (1 - opacity) + saucer[..., :3]
        occluder, occluder_opacity = self._occluder_at(index)
        image = image * (1 - occluder_opacity) + occluder * occluder_opacity
        image = cv2.GaussianBlur(image * self._light_at(index), (0, 0), 0.55 * max(self._unit, 0.5))
        noise = np.random.default_rng((self._seed, index)).standard_normal(image.shape, np.float32)
        return np.clip(image + 2.2 * noise, 0, 255).round().astype(np.uint8), _visible(opacity, occluder_opacity)

    def visible_mask(self, index: int) -> np.ndarray:
        """Return the mask of `render`, [H, W] bool, without the cost of the frame."""
        return _visible(self._object_at(index)[..., 3:], self._occluder_at(index)[1])

    def _enlarged_background(self, photograph: np.ndarray) -> np.ndarray:
        scale = 1.3 * max(self._width / photograph.shape[1], self._height / photograph.shape[0])
        return cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)

    def _background_at(self, index: int) -> np.ndarray:
        """Render the background [H, W, 3] float32, BGR 0..255; the camera pans and rotates slowly."""
        height, width = self._background.shape[:2]
        x = width / 2 + 0.10 * self._width * _swing(index, 190, 0.1 + self._phases[0])
        y = height / 2 + 0.07 * self._height * _swing(index, 140, 0.3 + self._phases[1])
        matrix = cv2.getRotationMatrix2D((x, y), 1.2 * _swing(index, 120, self._phases[2]), 1.0)
        matrix[:, 2] += (self._width / 2 - x, self._height / 2 - y)
        frame = cv2.warpAffine(
            self._background, matrix, (self._width, self._height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        return frame.astype(np.float32)

    def _cut_out_object(self, photograph: np.ndarray) -> tuple[np.ndarray, float]:
        """Return [h, w, 4] float32, BGR times opacity, then opacity 0..1, near its displayed size; and the scale."""
        oversampling = 4
        contour = np.zeros([side * oversampling for side in photograph.shape[:2]], np.uint8)
        for centre, axes, degrees in (_SAUCER, _CUP):
            scaled = tuple(oversampling * x for x in centre), tuple(oversampling * x for x in axes), degrees
            cv2.ellipse(contour, scaled, 255, cv2.FILLED)
        cv2.fillPoly(contour, [np.array(_SPOON, np.int32) * oversampling], 255)
        scale = 1.1 * 0.36 * 640 * self._unit / _OBJECT_WIDTH
        height, width = (max(8, round(side * scale)) for side in photograph.shape[:2])
        # Area resampling, because sampling of a much larger image would make the texture flicker.
        opacity = cv2.resize(contour, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
        colours = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        return np.concatenate([colours * opacity, opacity], axis=-1), scale

    def _object_at(self, index: int) -> np.ndarray:
        """Render the object [H, W, 4] float32, BGR times opacity, then opacity 0..1, by an inverse warp."""
        phases = self._phases
        x = self._width * (0.5 + 0.24 * _swing(index, 150, -0.22 + 0.2 * phases[3]))
        y = self._height * (0.52 + 0.13 * _swing(index, 95, 0.1 + phases[4]))
        angle = math.radians(24) * _swing(index, 110, 0.05 + 0.3 * phases[5])
        scale = (0.95 + 0.13 * _swing(index, 130, 0.6 + phases[6])) / 1.1
        # Deformation: smooth waves across the object, with a few percent of its width.
        width = _OBJECT_WIDTH * self._object_scale
        time = 2 * math.pi * (index / 48 + phases[7])
        right, down = self._columns - x, self._rows - y
        across = (right * math.cos(angle) + down * math.sin(angle)) / scale
        along = (down * math.cos(angle) - right * math.sin(angle)) / scale
        column = across + 0.030 * width * np.sin(along * (2 * math.pi / (0.9 * width)) + time)
        row = along + 0.026 * width * np.sin(across * (2 * math.pi / (0.75 * width)) - 0.8 * time)
        column += _OBJECT_CENTRE[0] * self._object_scale
        row += _OBJECT_CENTRE[1] * self._object_scale
        return cv2.remap(
            self._object, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR, borderValue=(0, 0, 0, 0)
        )

    def _shadow(self, opacity: np.ndarray) -> np.ndarray:
        """Return the shadow of the object, [H, W] float32, 0..1."""
        shift = np.array([[1, 0, 14 * self._unit], [0, 1, 20 * self._unit]], np.float32)
        moved = cv2.warpAffine(opacity, shift, (self._width, self._height))
        return 0.35 * cv2.GaussianBlur(moved, (0, 0), 11 * self._unit)

    def _occluder_texture(self, photograph: np.ndarray) -> np.ndarray:
        x0, y0, x1, y1 = _OCCLUDER
        wood = cv2.rotate(photograph[y0:y1, x0:x1], cv2.ROTATE_90_CLOCKWISE)
        size = (max(4, round(62 * self._unit)), round(1.3 * self._height))
        return 0.62 * cv2.resize(wood, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)

    def _occluder_at(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Render the occluder, which passes from right to left: [H, W, 3] float32, BGR, and its opacity [H, W, 1]."""
        height, width = self._occluder.shape[:2]
        round_trip = 1.6 * self._width
        x = 1.22 * self._width - (10.5 / 640 * self._width * index) % round_trip
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -5, 1.0)
        matrix[:, 2] += (x - width / 2, self._height / 2 - height / 2)
        frame_size = (self._width, self._height)
        occluder = cv2.warpAffine(
            self._occluder, matrix, frame_size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        opacity = cv2.warpAffine(np.ones((height, width), np.float32), matrix, frame_size)
        return occluder, cv2.GaussianBlur(opacity, (0, 0), 2.2 * self._unit)[..., None]

    def _light_at(self, index: int) -> np.ndarray:
        """Return the gains of blue, green and red, [3] float32, as when a cloud passes."""
        brightness = 1 + 0.13 * _swing(index, 105, 0.15)
        warmth = 0.05 * _swing(index, 80, 0.4)
        return np.array([brightness - warmth, brightness, brightness + warmth], np.float32)


def _swing(index: int, period: float, phase: float) -> float:
    """Return a sine of the frame index, -1..1; period: frames; phase: fraction of a period."""
    return math.sin(2 * math.pi * (index / period + phase))


def _visible(opacity: np.ndarray, opacity_in_front: np.ndarray) -> np.ndarray:
    """Return the pixels of which an object is more than half: [H, W] bool from opacities [H, W, 1], 0..1."""
    return (opacity * (1 - opacity_in_front))[..., 0] > 0.5


def _photograph(name: str) -> np.ndarray:
    """Read a photograph of the package: [H, W, 3] uint8, BGR."""
    file = _PHOTOGRAPHS / name
    image = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR) if file.is_file() else None
    if image is None:
        raise InputError(
            f"expected the photograph {name} of the demo clip in {str(_PHOTOGRAPHS)!r}, found none that can be read; "
            "install corrflow again with 'pip install --force-reinstall --no-deps corrflow'"
        )
    return image
