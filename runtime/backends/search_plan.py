"""Search plan of one propagation step: tracking makes it, a backend carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from corrflow.plugins.local_soft_copy.spec import Attributes, SearchWindow

Offsets = Mapping[int, Sequence[tuple[int, int]]]
"""Offsets (down, right) in cells of the search windows of each frame, by frame number."""


class ReferenceFrame(NamedTuple):
    """A stored frame that the next frame is matched against.

    slot:  place in the memory
    frame: number of the frame, counted from the first that was added
    age:   frames between it and the next frame; 1 for the newest
    """

    slot: int
    frame: int
    age: int


@dataclass(frozen=True)
class SearchPlan:
    """Search windows of one step, and the parameters of the search.

    windows: rows (memory slot, index of the window's radius and dilation, down, right) in the order of the tie rule
    params:  radius, dilation, top_k and temperature; a backend without `supports_runtime_search_params` uses the values
             built into propagate.onnx instead
    """

    windows: tuple[SearchWindow, ...]
    params: Attributes

    @classmethod
    def of(cls, references: Sequence[ReferenceFrame], params: Attributes, offsets: Offsets | None = None) -> SearchPlan:
        """Build the plan that searches every reference frame once for each of its offsets; once in place without any.

        offsets: only for backends with `supports_window_offsets`
        """
        return cls(
            tuple(
                SearchWindow(reference.slot, index, *offset)
                for index, reference in enumerate(references)
                for offset in (offsets or {}).get(reference.frame, ((0, 0),))
            ),
            params,
        )

    @property
    def slots(self) -> list[int]:
        """Memory slot of each window."""
        return [window[0] for window in self.windows]

    @property
    def moves(self) -> bool:
        """True where a window has an offset, or a frame has several windows."""
        return any(window[2:] != (0, 0) for window in self.windows) or len(set(self.slots)) < len(self.windows)
