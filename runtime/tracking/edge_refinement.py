"""Outlines that follow the picture: soft labels, which come from cells of 4x4 pixels, filtered under its guidance.

The guided filter (He, Sun and Tang, 2013) with a picture in colour, which is not in the paper. What comes out is for
whoever looks at the mask; the memory gets the labels as they were copied, so that the filter's mistakes do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

# Squares of differences that count as an edge, for colours of 0..1: smaller ones are noise to the filter.
EDGE = 1e-5
# The filter is fitted to pictures so much smaller than the working frame, and applied to the frame's own pixels (He and
# Sun, 2015): a quarter of the work, and the same outlines.
FITTED_AT = 0.5


def refine_edges(label: np.ndarray, frame: np.ndarray, radius: int, scale: float) -> np.ndarray:
    """Bring a label [H, W] float32, 0..1, to the edges of the frame, except where it is 0 or 1 all around; in place.

    frame:  [H, W, 3] uint8, of whatever order of colours
    radius: of the filter's windows, in pixels of the working frame; 0 leaves the label as it is
    scale:  the working frame's size over the frame's
    """
    if not radius:
        return label
    left, top, width, height = cv2.boundingRect(cv2.inRange(label, 1e-6, 1 - 1e-6))  # pyright: ignore[reportArgumentType, reportCallIssue]
    if not width:
        return label
    reach = 2 * round(radius / scale)
    box = np.s_[max(0, top - reach) : top + height + reach, max(0, left - reach) : left + width + reach]
    own, guide = label[box], frame[box]
    height, width = own.shape
    size = max(1, round(width * scale * FITTED_AT)), max(1, round(height * scale * FITTED_AT))
    small = cv2.resize(own, size, interpolation=cv2.INTER_AREA)
    slopes_and_offset = _fitted(
        cv2.split(cv2.resize(guide, size, interpolation=cv2.INTER_AREA)), small, max(1, round(radius * FITTED_AT))
    )
    *slopes, filtered = (cv2.resize(part, (width, height)) for part in slopes_and_offset)
    for slope, colour in zip(slopes, cv2.split(guide), strict=True):
        filtered += cv2.multiply(slope, colour, dtype=cv2.CV_32F)
    np.clip(filtered, 0, 1, out=own)
    return label


def _fitted(colours: Sequence[np.ndarray], label: np.ndarray, radius: int) -> list[np.ndarray]:
    """The label as a linear function of the colours around each pixel: a slope for each colour and an offset.

    colours: three planes [h, w] uint8; label [h, w] float32 -> four planes [h, w] float32
    """
    side = (2 * radius + 1,) * 2

    def mean(plane: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(plane, -1, side, borderType=cv2.BORDER_REFLECT)

    x, y, z = planes = [colour.astype(np.float32) for colour in colours]
    means, share = [mean(plane) for plane in planes], mean(label)

    def covariance(one: np.ndarray, other: np.ndarray, means: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        # In float64 from here on: where colours go together the determinant is a small difference of large numbers.
        return (mean(one * other) - means[0] * means[1]).astype(np.float64)

    p, q, r = (covariance(plane, label, (own, share)) for plane, own in zip(planes, means, strict=True))
    floor = EDGE * 255**2
    a, d, f = (covariance(plane, plane, (own, own)) + floor for plane, own in zip(planes, means, strict=True))
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
    offset = share - sum((slope * own for slope, own in zip(slopes, means, strict=True)), np.float32(0))
    return [mean(plane) for plane in (*slopes, offset)]
