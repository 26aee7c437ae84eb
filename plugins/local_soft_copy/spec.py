"""The op's name, attributes and shape rule, shared by every form. No torch, no ONNX: plain Python.

    LocalSoftCopy(query [B, C, H, W], keys [B, K, C, H, W], values [B, K, N, H, W], references [M, 4]) -> [B, N, H, W]

Without `references` each of the K pictures is searched once, the first through the first window of the attributes, the
second through the second, and so on.

For each query position the scores <query, key> / temperature are taken at every position of the window of each of
the references that lies inside the frame; the `top_k` highest of them over all references together are kept (all
of them for top_k = 0); softmax over those; the values are summed with these weights (paper, section 3.3).

The window of a reference holds the offsets dilation * (-radius .. radius) in y and in x. Positions outside the frame
are left out by position, never by looking at a score; where that leaves none, zeros are copied. Ties at the top_k
boundary go to the earlier reference, then to the earlier row, then to the earlier column, so that the result is defined
for every input.

`references` names what is searched instead, int32, a row each: (picture, window, down, right). Picture is which of the
K is searched, one or several times or never; window is which of the attributes' windows it is searched through, the
last one given being that of all further ones; and the middle of that window is (down, right) cells away from the
query's position, at most MOST_MOVED each. The order of the rows is that of the tie rule. A row whose picture is below 0
is left out, so that M may be a fixed number; at least one row has a picture. What no row names is not looked at. A
picture beyond the last is a mistake: Python refuses it, and graphs and kernels, which cannot, leave the row out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from corrflow.errors import InputError

DOMAIN = "corrflow"
NAME = "LocalSoftCopy"
VERSION = 1
MOST_MOVED = 65536


class SearchWindow(NamedTuple):
    """A row of `references`: the picture to search, which window, and how far that is moved in cells."""

    picture: int
    window: int = 0
    down: int = 0
    right: int = 0


UNUSED = SearchWindow(-1)


@dataclass(frozen=True)
class Attributes:
    """How to search and how to weigh.

    radius:      radius in cells of the first window, the second, and so on; the last one given is that of all further
                 windows, so that one value is for all
    dilation:    distance between neighbouring window positions in cells, likewise
    top_k:       scores kept per query position over all references together; 0 keeps all
    temperature: the scores' divisor before the softmax, > 0

    Raises InputError where a value is out of range.
    """

    radius: tuple[int, ...] = (6,)
    dilation: tuple[int, ...] = (1,)
    top_k: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.radius or any(radius < 0 for radius in self.radius):
            raise InputError(
                f"LocalSoftCopy: expected radii >= 0, got {self.radius}; give one for all, or one for each"
            )
        if not self.dilation or any(dilation < 1 for dilation in self.dilation):
            raise InputError(
                f"LocalSoftCopy: expected dilations >= 1, got {self.dilation}; give one for all, or one for each"
            )
        lengths = {len(self.radius), len(self.dilation)} - {1}
        if len(lengths) > 1:
            raise InputError(
                f"LocalSoftCopy: expected as many radii as dilations, got {len(self.radius)} and {len(self.dilation)};"
                " give one for all, or one per reference of both"
            )
        if self.top_k < 0:
            raise InputError(f"LocalSoftCopy: expected top_k >= 0, got {self.top_k}; 0 keeps every score")
        if not 0.0 < self.temperature < float("inf"):
            raise InputError(f"LocalSoftCopy: expected a temperature > 0, got {self.temperature}")

    @property
    def uniform(self) -> bool:
        """True where all references share one radius and one dilation, so that any K will do."""
        return len(set(self.radius)) == 1 and len(set(self.dilation)) == 1

    @property
    def distinct_windows(self) -> tuple[tuple[int, int], ...]:
        """(radius, dilation) once where all references share it, otherwise as many as are given."""
        if self.uniform:
            return ((self.radius[0], self.dilation[0]),)
        return self.windows(max(len(self.radius), len(self.dilation)))

    def window(self, index: int) -> tuple[int, int]:
        """(radius, dilation) of the window of that number."""
        return self.radius[min(index, len(self.radius) - 1)], self.dilation[min(index, len(self.dilation) - 1)]

    def windows(self, count: int) -> tuple[tuple[int, int], ...]:
        """(radius, dilation) of each of the first `count` windows."""
        return tuple(self.window(index) for index in range(count))


def named_references(references: Sequence[SearchWindow] | None, pictures: int) -> tuple[SearchWindow, ...]:
    """The references of a call on `pictures` pictures, without those that are left out; None: each picture once.

    Raises InputError for those that cannot be.
    """
    if references is None:
        return tuple(SearchWindow(k, k) for k in range(pictures))
    for picture, window, down, right in references:
        if picture >= pictures or window < 0 or max(abs(down), abs(right)) > MOST_MOVED:
            raise InputError(
                f"LocalSoftCopy: expected pictures up to {pictures - 1}, windows from 0 on and moves of at most"
                f" {MOST_MOVED} cells, got picture {picture}, window {window} and move ({down}, {right}); name others"
            )
    used = tuple(reference for reference in references if reference.picture >= 0)
    if not used:
        raise InputError("LocalSoftCopy: expected at least one reference, got none; name one with a picture")
    return used


def filled_up(named: Sequence[SearchWindow], rows: int) -> list[SearchWindow]:
    """These references and as many unused ones as make `rows` rows. Raises InputError where they are more than that."""
    if len(named) > rows:
        raise InputError(f"LocalSoftCopy: expected at most {rows} references, got {len(named)}; name fewer")
    return [*named, *[UNUSED] * (rows - len(named))]


def copied_shape(query: Sequence[int], keys: Sequence[int], values: Sequence[int]) -> tuple[int, int, int, int]:
    """Shape of the result for the shapes of the three inputs; raises InputError where they do not fit together."""
    fits = (
        len(query) == 4
        and len(keys) == 5
        and len(values) == 5
        and (keys[0], *keys[2:]) == tuple(query)
        and tuple(values[:2]) == tuple(keys[:2])
        and tuple(values[3:]) == tuple(query[2:])
        and min(*query, *keys, *values) >= 1
    )
    if not fits:
        raise InputError(
            "LocalSoftCopy: expected query [B, C, H, W], keys [B, K, C, H, W] and values [B, K, N, H, W] that agree,"
            f" got {list(query)}, {list(keys)} and {list(values)}"
        )
    B, _, H, W = query
    return B, values[2], H, W
