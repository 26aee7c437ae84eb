"""A textured body that moves, turns and scales over a textured background, with the true places of its points."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

SIZE = 240, 320
POINTS = np.array([[-34, -22], [32, -24], [0, 2], [-30, 26], [34, 22]], np.float64)
"""Points of the body from its centre, in pixels at scale 1."""
_REACH = 56, 42  # half the body's axes


def smooth_texture(seed: int, size: tuple[int, int], grain: float) -> np.ndarray:
    """Return a random picture [H, W] float32, 0..1, whose details have about `grain` pixels."""
    picture = cv2.GaussianBlur(np.random.default_rng(seed).random(size).astype(np.float32), (0, 0), grain)
    return (picture - picture.min()) / np.ptp(picture)


def motion(angle: float = 0, scale: float = 1, centre: tuple[float, float] = (160, 120)) -> np.ndarray:
    """Return the transform [2, 3] from the body to the frame; angle in degrees."""
    turn = np.deg2rad(angle)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.column_stack([linear, centre])


def frame_and_points(transform: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a frame [240, 320, 3] uint8 with the body where a transform puts it, and its points [5, 2]."""
    body, shape, background = _layers(seed)
    height, width = body.shape[:2]
    placed = transform.copy()
    placed[:, 2] -= transform[:, :2] @ np.array([(width - 1) / 2, (height - 1) / 2])
    flags = {"dsize": SIZE[::-1], "flags": cv2.INTER_LINEAR}
    cover = cv2.warpAffine(shape, placed, **flags)[..., None]
    shown = cv2.warpAffine(body, placed, **flags) * cover + background * (1 - cover)
    noise = np.random.default_rng(list(transform.tobytes())).normal(0, 2, shown.shape)
    return (shown + noise).clip(0, 255).astype(np.uint8), POINTS @ transform[:, :2].T + transform[:, 2]


@cache
def _layers(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    side = 121, 141
    body = np.stack([40 + 200 * smooth_texture(seed + colour, side, 2.5) for colour in range(3)], -1)
    shape = np.zeros(side, np.float32)
    cv2.ellipse(shape, (side[1] // 2, side[0] // 2), _REACH, 0, 0, 360, 1.0, -1)
    ground = 90 + 60 * smooth_texture(seed + 9, SIZE, 6)
    return body.astype(np.float32), shape, np.repeat(ground[..., None], 3, -1)
