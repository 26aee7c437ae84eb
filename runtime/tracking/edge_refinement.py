"""Mask refinement: a guided filter aligns soft masks, which have cells of 4x4 pixels, with the edges of the frame.

The guided filter is that of He, Sun and Tang (2013), with a colour image as guide. Only the output is refined. The
memory keeps the soft masks as they were propagated, so that errors of the filter do not accumulate.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

EPSILON = 1e-5
"""Regularisation of the filter for colours of 0..1: variances below are treated as noise."""

FIT_SCALE = 0.5
"""Scale at which the filter is fitted, relative to the resized frame; a quarter of the work (He and Sun, 2015)."""


def refine_edges(soft_mask: np.ndarray, frame: np.ndarray, radius: int, scale: float) -> np.ndarray:
    """Refine a soft mask [H, W] float32, 0..1, in place, and return it.

    frame:  [H, W, 3] uint8, in any order of colours
    radius: radius of the filter in pixels of the resized frame; 0 does not refine
    scale:  size of the resized frame, relative to the frame
    """
    if not radius:
        return soft_mask
    left, top, width, height = cv2.boundingRect(cv2.inRange(soft_mask, 1e-6, 1 - 1e-6))  # pyright: ignore[reportArgumentType, reportCallIssue]
    if not width:
        return soft_mask
    reach = 2 * round(radius / scale)
    box = np.s_[max(0, top - reach) : top + height + reach, max(0, left - reach) : left + width + reach]
    region, guide = soft_mask[box], frame[box]
    height, width = region.shape
    size = max(1, round(width * scale * FIT_SCALE)), max(1, round(height * scale * FIT_SCALE))
    small = cv2.resize(region, size, interpolation=cv2.INTER_AREA)
    colours = cv2.split(cv2.resize(guide, size, interpolation=cv2.INTER_AREA))
    coefficients = _fit(colours, small, max(1, round(radius * FIT_SCALE)))
    *slopes, filtered = (cv2.resize(plane, (width, height)) for plane in coefficients)
    for slope, colour in zip(slopes, cv2.split(guide), strict=True):
        filtered += cv2.multiply(slope, colour, dtype=cv2.CV_32F)
    np.clip(filtered, 0, 1, out=region)
    return soft_mask


def _fit(colours: Sequence[np.ndarray], soft_mask: np.ndarray, radius: int) -> list[np.ndarray]:
    """Fit the soft mask around each pixel as a linear function of the colours.

    colours:   three planes [h, w] uint8
    soft_mask: [h, w] float32

    Returns three slopes and an offset, each [h, w] float32.
    """
    side = (2 * radius + 1,) * 2

    def mean(plane: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(plane, -1, side, borderType=cv2.BORDER_REFLECT)

    x, y, z = planes = [colour.astype(np.float32) for colour in colours]
    means, mask_mean = [mean(plane) for plane in planes], mean(soft_mask)

    def covariance(one: np.ndarray, other: np.ndarray, means: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        # float64, because for correlated colours the determinant is a small difference of large numbers.
        return (mean(one * other) - means[0] * means[1]).astype(np.float64)

    p, q, r = (covariance(plane, soft_mask, (average, mask_mean)) for plane, average in zip(planes, means, strict=True))
    epsilon = EPSILON * 255**2
    a, d, f = (
        covariance(plane, plane, (average, average)) + epsilon for plane, average in zip(planes, means, strict=True)
    )
    b = covariance(x, y, (means[0], means[1]))
    c = covariance(x, z, (means[0], means[2]))
    e = covariance(y, z, (means[1], means[2]))
    # The inverse of the symmetric [[a, b, c], [b, d, e], [c, e, f]] by its cofactors.
    xx, xy, xz = d * f - e * e, c * e - b * f, b * e - c * d
    yy, yz, zz = a * f - c * c, b * c - a * e, a * d - b * b
    inverse = 1 / (a * xx + b * xy + c * xz)
    slopes = [
        ((xx * p + xy * q + xz * r) * inverse).astype(np.float32),
        ((xy * p + yy * q + yz * r) * inverse).astype(np.float32),
        ((xz * p + yz * q + zz * r) * inverse).astype(np.float32),
    ]
    offset = mask_mean - sum((slope * average for slope, average in zip(slopes, means, strict=True)), np.float32(0))
    return [mean(plane) for plane in (*slopes, offset)]
