"""Similarity transforms between the points of two frames: fitted against outliers, no freer than the points justify.

A transform is a matrix [2, 3] float64 that maps (x, y, 1) to (x, y).
"""

from __future__ import annotations

import numpy as np

ITERATIONS = 8
MIN_RESIDUAL = 0.5
"""Pixels; smaller residuals are noise of the labels."""
_LARGEST_SCALE = 4.0


def apply(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Transform points [P, 2]."""
    return points @ transform[:, :2].T + transform[:, 2]


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return the transform that applies `inner`, then `outer`."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.column_stack([linear, outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def invert(transform: np.ndarray) -> np.ndarray:
    """Return the inverse transform."""
    linear = np.linalg.inv(transform[:, :2])
    return np.column_stack([linear, -linear @ transform[:, 2]])


def scale_of(transform: np.ndarray) -> float:
    """Return the factor by which a transform enlarges lengths."""
    return float(np.sqrt(abs(np.linalg.det(transform[:, :2]))))


def fit_similarity(source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fit a similarity transform from points [P, 2] to points [P, 2], robust against outliers.

    weights: [P], 0 or more, of the points

    Limbs that swing look like a small rotation of everything. So rotation and scale are taken over only as far as they
    explain the points better than a translation does: wholly where they halve the residual.
    """
    moved, moved_residual = _fit_robustly(source, target, weights, is_rigid=False)
    turned, turned_residual = _fit_robustly(source, target, weights, is_rigid=True)
    share = float(np.clip(moved_residual / max(turned_residual, MIN_RESIDUAL) - 1, 0, 1))
    angle = share * np.arctan2(turned[1, 0], turned[0, 0])
    scale = float(np.clip(scale_of(turned), 1 / _LARGEST_SCALE, _LARGEST_SCALE)) ** share
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.median(source, axis=0)
    image = share * apply(turned, centre[None])[0] + (1 - share) * apply(moved, centre[None])[0]
    return np.column_stack([linear, image - linear @ centre])


def _fit_robustly(
    source: np.ndarray, target: np.ndarray, weights: np.ndarray, is_rigid: bool
) -> tuple[np.ndarray, float]:
    """Return a transform and its median residual in pixels, by reweighted least squares; is_rigid: it may turn."""
    current, residual = weights + 1e-6, np.zeros(len(source))
    transform = np.eye(2, 3)
    for _ in range(ITERATIONS):
        transform = _fit(source, target, current, is_rigid)
        residual = np.linalg.norm(apply(transform, source) - target, axis=1)
        width = max(1.0, 1.5 * float(np.median(residual)))
        current = (weights + 1e-6) / (1 + (residual / width) ** 2)
    return transform, float(np.median(residual))


def _fit(source: np.ndarray, target: np.ndarray, weights: np.ndarray, is_rigid: bool) -> np.ndarray:
    """Fit a similarity transform (Umeyama, 1991) or a translation by weighted least squares."""
    share = weights / weights.sum()
    centre, image = share @ source, share @ target
    linear = np.eye(2)
    if is_rigid:
        before, after = source - centre, target - image
        covariance = (before * share[:, None]).T @ after
        real, imaginary = covariance[0, 0] + covariance[1, 1], covariance[0, 1] - covariance[1, 0]
        spread = float(share @ (before**2).sum(1))
        if spread > MIN_RESIDUAL**2:
            linear = np.array([[real, -imaginary], [imaginary, real]]) / spread
    return np.column_stack([linear, image - linear @ centre])
