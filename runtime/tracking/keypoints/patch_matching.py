"""Sub-pixel matching of small patches: pyramidal Lucas-Kanade from a guess, checked forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

WINDOW = 11
"""Side of the compared window in pixels."""
LEVELS = 1
"""Levels of the pyramid above the picture itself."""
MAX_ROUND_TRIP = 1.0
"""Pixels between a point and where it returns to."""
PATCH_RADIUS = 7
"""Radius in pixels of the patches whose appearance is compared."""
FINE_RADIUS = 15
"""Radius in pixels of the patches that are matched at the resolution of the video."""
_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.03)


@dataclass(frozen=True)
class Matches:
    """Matched points.

    points:     [P, 2] float64, (x, y) in pixels
    consistent: [P] bool, True where the way back leads to the start
    """

    points: np.ndarray
    consistent: np.ndarray


def match_points(first: np.ndarray, second: np.ndarray, points: np.ndarray, guesses: np.ndarray) -> Matches:
    """Match points of one picture in another (Bouguet, 2001).

    first, second: [H, W] uint8
    points:        [P, 2] in `first`
    guesses:       [P, 2] in `second`
    """
    start, guess = points.astype(np.float32), guesses.astype(np.float32)
    found, ahead = _track(first, second, start, guess)
    back, behind = _track(second, first, found, found - (guess - start))
    distance = np.linalg.norm(back - start, axis=1)
    return Matches(found.astype(np.float64), ahead & behind & (distance < MAX_ROUND_TRIP))


def _track(
    first: np.ndarray, second: np.ndarray, points: np.ndarray, guesses: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        first,
        second,
        points[:, None],
        guesses[:, None].copy(),
        winSize=(WINDOW, WINDOW),
        maxLevel=LEVELS,
        criteria=_CRITERIA,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return found[:, 0], status[:, 0] > 0


def sample_patches(picture: np.ndarray, points: np.ndarray, radius: int = PATCH_RADIUS) -> np.ndarray:
    """Sample a patch around each point [P, 2] of a picture [H, W] uint8: [P, side, side] uint8."""
    return sample_turned_patches(picture, points, np.eye(2), radius)


def sample_turned_patches(picture: np.ndarray, points: np.ndarray, linear: np.ndarray, radius: int) -> np.ndarray:
    """Sample a patch around each point [P, 2] whose axes are those of a linear map [2, 2]: [P, side, side] uint8."""
    steps = np.arange(-radius, radius + 1)
    across, down = np.meshgrid(steps, steps)
    offsets = np.stack([across, down], -1) @ linear.T
    # What has no place is sampled anywhere: the result counts for nothing.
    places = (np.nan_to_num(points)[:, None, None] + offsets).astype(np.float32)
    side = len(steps)
    x, y = places.reshape(len(points) * side, side, 2).transpose(2, 0, 1)
    sampled = cv2.remap(
        picture, np.ascontiguousarray(x), np.ascontiguousarray(y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return sampled.reshape(len(points), side, side)


def correlate_patches(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the normalized cross-correlation [P], -1..1, of patches [P, side, side]."""
    flat = [patches.reshape(len(patches), -1).astype(np.float32) for patches in (first, second)]
    one, other = (values - values.mean(1, keepdims=True) for values in flat)
    energy = (one * one).sum(1) * (other * other).sum(1)
    return (one * other).sum(1) / np.sqrt(energy + 1e-3)


def match_patches(first: np.ndarray, second: np.ndarray) -> Matches:
    """Match the centres of patches [P, side, side] in other patches, pairwise; points are relative to the centres.

    All patches lie side by side in two pictures, so one call matches them at a cost that no frame size changes.
    """
    count, side, _ = first.shape
    radius = side // 2
    pictures = [patches.transpose(1, 0, 2).reshape(side, count * side) for patches in (first, second)]
    centres = np.column_stack([np.arange(count) * side + radius, np.full(count, radius)]).astype(np.float64)
    matches = match_points(pictures[0], pictures[1], centres, centres)
    return Matches(matches.points - centres, matches.consistent)
