"""The crop in which an object's points are tracked: its place on the frame of the first labels, and its scale."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from corrflow.runtime.tracking.keypoints.similarity import scale_of

MARGIN = 0.5
"""Room on each side of the points' box, in its longest sides."""
MIN_HALF_SIDE, MIN_HALF_PIXELS = 0.1, 48
"""Half the crop's shortest side at least, in short sides of the frame and in pixels: room for a single point."""
MAX_AREA = 384 * 384
"""Pixels of the crop: the bound of the cost of an object."""
MAX_SCALE = 1.3
"""Enlargement of small objects; more costs time and shows nothing new."""
_SHRINK_BELOW = 0.75  # scale from which frames are averaged before they are sampled


@dataclass(frozen=True)
class Crop:
    """Part of the picture, as it lies on the frame of the first labels.

    transform: [2, 3] float64, from pixels of that frame to pixels of the crop
    size:      (height, width) of the crop
    scale:     pixels of the crop in a pixel of the frame
    """

    transform: np.ndarray
    size: tuple[int, int]
    scale: float

    @classmethod
    def around(cls, points: np.ndarray, frame: tuple[int, int]) -> Crop:
        """Return the crop for points [P, 2] on a frame of (height, width)."""
        low, high = points.min(0), points.max(0)
        half = max(float((high - low).max()) * (0.5 + MARGIN), MIN_HALF_SIDE * min(frame), MIN_HALF_PIXELS)
        centre, sides = (low + high) / 2, np.array(frame[::-1], np.float64)
        start = np.maximum(centre - half, -0.5)
        stop = np.minimum(centre + half, sides - 0.5)
        width, height = np.maximum(stop - start, 1)
        scale = min(MAX_SCALE, float(np.sqrt(MAX_AREA / (width * height))))
        size = max(8, round(height * scale)), max(8, round(width * scale))
        # Pixel centres are at integers, so the corner of the crop's first pixel is at -0.5.
        shift = -scale * start - 0.5
        return cls(np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), size, scale)

    def cut(self, image: np.ndarray, to_crop: np.ndarray) -> np.ndarray:
        """Sample the crop from a frame [H, W] or [H, W, 3] uint8; to_crop: transform from the frame's pixels."""
        scale = scale_of(to_crop)
        if scale < _SHRINK_BELOW:
            height, width = (max(1, round(side * scale)) for side in image.shape[:2])
            shrunk = np.array([image.shape[1] / width, image.shape[0] / height])
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            # x = (x_shrunk + 0.5) * shrunk - 0.5
            linear = to_crop[:, :2] * shrunk
            to_crop = np.column_stack([linear, to_crop[:, 2] + to_crop[:, :2] @ (0.5 * shrunk - 0.5)])
        height, width = self.size
        return cv2.warpAffine(image, to_crop, (width, height), borderMode=cv2.BORDER_REPLICATE)
