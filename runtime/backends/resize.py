"""Resizing of frames on the CPU, and linear interpolation along an axis."""

from __future__ import annotations

import cv2
import numpy as np


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a frame [H, W, 3] uint8 by area to (height, width), no side longer; return the same array if equal."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def linear_weights(positions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the linear interpolation of `count` samples at positions [n]; beyond the samples, the outer ones continue.

    Returns the first of the two samples around each position, [n] int, and the weights of all, [n, count] float32.
    """
    positions = positions.clip(0, count - 1)
    lower = np.minimum(positions.astype(int), max(count - 2, 0))
    weights = np.zeros((len(positions), count), np.float32)
    row = np.arange(len(positions))
    weights[row, lower] = 1 - (positions - lower)
    if count > 1:
        weights[row, lower + 1] = positions - lower
    return lower, weights
