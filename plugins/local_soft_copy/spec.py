"""LocalSoftCopy, a top-k local (neighbourhood) cross-attention or label propagation: name, attributes and shapes.

All forms of the op share this module, which needs neither torch nor ONNX.

    LocalSoftCopy(query [B, C, H, W], keys [B, K, C, H, W], values [B, K, N, H, W], references [M, 4]) -> [B, N, H, W]

Each query position attends to search windows in K reference frames (paper, section 3.3):

1. Compute the score <query, key> / temperature at every position of the windows that lies inside the frame.
2. Keep the `top_k` highest scores of all windows together; top_k = 0 keeps all scores.
3. Sum the values at these positions, weighted by the softmax of the scores.

A window holds the offsets dilation * (-radius .. radius) in y and in x. Positions outside the frame are excluded by
position, never by score. A query without any position gets zeros. Ties at the top_k boundary go to the earlier window,
then to the earlier row, then to the earlier column. So the result is defined for every input.

`references` is int32 and has one row (frame, window, dy, dx) for each search window, in the order of the tie rule:

    frame    reference frame to search, below K; a frame may have several rows or none; below 0: the row is unused
    window   index of the radius and dilation in the attributes; the last value repeats for all further windows
    dy, dx   offset in cells from the query position to the centre of the window, at most MAX_OFFSET each

Unused rows allow a fixed M; at least one row has a frame. Frames without a row are not read. Python refuses a frame
index of K or more; graphs and kernels cannot raise errors, so they treat the row as unused.

Without `references`, the op searches frame k once, through window k, without an offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from corrflow.errors import InputError

DOMAIN = "corrflow"
NAME = "LocalSoftCopy"
VERSION = 1
MAX_OFFSET = 65536
MAX_RADIUS = MAX_DILATION = 65536
"""In cells, beyond any frame; kernels compute positions with 32 bits."""
MAX_TOP_K = 4096


class SearchWindow(NamedTuple):
    """Row of `references`: reference frame, index of radius and dilation, offset of the centre in cells."""

    frame: int
    window: int = 0
    dy: int = 0
    dx: int = 0


UNUSED = SearchWindow(-1)


@dataclass(frozen=True)
class Attributes:
    """Search parameters. Raises InputError for a value out of range.

    radius:      radius of each window in cells; the last value repeats for all further windows
    dilation:    distance of neighbouring window positions in cells, likewise
    top_k:       scores to keep for each query position over all windows together; 0 keeps all
    temperature: divisor of the scores before the softmax, > 0
    """

    radius: tuple[int, ...] = (6,)
    dilation: tuple[int, ...] = (1,)
    top_k: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.radius or not all(0 <= radius <= MAX_RADIUS for radius in self.radius):
            raise InputError(
                f"LocalSoftCopy: expected radii >= 0 and up to {MAX_RADIUS}, got {self.radius}; give one for all, or"
                " one for each"
            )
        if not self.dilation or not all(1 <= dilation <= MAX_DILATION for dilation in self.dilation):
            raise InputError(
                f"LocalSoftCopy: expected dilations >= 1 and up to {MAX_DILATION}, got {self.dilation}; give one for"
                " all, or one for each"
            )
        lengths = {len(self.radius), len(self.dilation)} - {1}
        if len(lengths) > 1:
            raise InputError(
                f"LocalSoftCopy: expected as many radii as dilations, got {len(self.radius)} and {len(self.dilation)};"
                " give one for all, or one per reference of both"
            )
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise InputError(
                f"LocalSoftCopy: expected top_k >= 0 and up to {MAX_TOP_K}, got {self.top_k}; 0 keeps every score"
            )
        if not 0.0 < self.temperature < float("inf"):
            raise InputError(f"LocalSoftCopy: expected a temperature > 0, got {self.temperature}")

    @property
    def uniform(self) -> bool:
        """True if all windows share one radius and one dilation."""
        return len(set(self.radius)) == 1 and len(set(self.dilation)) == 1

    @property
    def distinct_windows(self) -> tuple[tuple[int, int], ...]:
        """(radius, dilation) of each window in the attributes; a single pair if all windows share it."""
        if self.uniform:
            return ((self.radius[0], self.dilation[0]),)
        return self.windows(max(len(self.radius), len(self.dilation)))

    def window(self, index: int) -> tuple[int, int]:
        """Return (radius, dilation) of a window."""
        return self.radius[min(index, len(self.radius) - 1)], self.dilation[min(index, len(self.dilation) - 1)]

    def windows(self, count: int) -> tuple[tuple[int, int], ...]:
        """Return (radius, dilation) of the first `count` windows."""
        return tuple(self.window(index) for index in range(count))


def used_references(references: Sequence[SearchWindow] | None, num_frames: int) -> tuple[SearchWindow, ...]:
    """Return `references` without unused rows; for None, one row for each of `num_frames` reference frames.

    Raises InputError for a row out of range, or if no row is used.
    """
    if references is None:
        return tuple(SearchWindow(k, k) for k in range(num_frames))
    for frame, window, dy, dx in references:
        if frame >= num_frames or window < 0 or max(abs(dy), abs(dx)) > MAX_OFFSET:
            raise InputError(
                f"LocalSoftCopy: expected frames up to {num_frames - 1}, windows from 0 on and offsets of at most"
                f" {MAX_OFFSET} cells, got frame {frame}, window {window} and offset ({dy}, {dx}); correct the row"
            )
    used = tuple(reference for reference in references if reference.frame >= 0)
    if not used:
        raise InputError("LocalSoftCopy: expected at least one used row of references, got none; add a frame")
    return used


def padded_references(references: Sequence[SearchWindow], num_windows: int) -> list[SearchWindow]:
    """Return `references` with unused rows appended up to `num_windows` rows. Raises InputError for too many rows."""
    if len(references) > num_windows:
        raise InputError(f"LocalSoftCopy: expected at most {num_windows} references, got {len(references)}; use fewer")
    return [*references, *[UNUSED] * (num_windows - len(references))]


def output_shape(query: Sequence[int], keys: Sequence[int], values: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the shape [B, N, H, W] of the result. Raises InputError if the shapes of the inputs do not agree."""
    agree = (
        len(query) == 4
        and len(keys) == 5
        and len(values) == 5
        and (keys[0], *keys[2:]) == tuple(query)
        and tuple(values[:2]) == tuple(keys[:2])
        and tuple(values[3:]) == tuple(query[2:])
        and min(*query, *keys, *values) >= 1
    )
    if not agree:
        raise InputError(
            "LocalSoftCopy: expected query [B, C, H, W], keys [B, K, C, H, W] and values [B, K, N, H, W] that agree,"
            f" got {list(query)}, {list(keys)} and {list(values)}"
        )
    B, _, H, W = query
    return B, values[2], H, W
