"""The memory ring on the host: features and soft labels of a fixed number of reference frames, allocated once."""

from __future__ import annotations

import numpy as np


class MemoryRing:
    """Slots 0..anchors-1 are written once and stay; the others are a ring that the oldest frame leaves first.

    capacity: K, anchors <= K of them kept for ever; labels: N; cells: (h, w); channels: C
    """

    def __init__(self, capacity: int, anchors: int, labels: int, cells: tuple[int, int], channels: int) -> None:
        self._keys = np.empty((capacity, channels, *cells), np.float32)
        self._values = np.empty((capacity, labels, *cells), np.float32)
        self._anchors, self._anchored, self._remembered = anchors, 0, 0

    @property
    def labels(self) -> int:
        return self._values.shape[1]

    @property
    def filled(self) -> int:
        """References at hand."""
        return self._anchored + min(self._remembered, len(self._keys) - self._anchors)

    def remember(self, features: np.ndarray, labels: np.ndarray, anchor: bool = False) -> None:
        """Store a frame: features [C, h, w], labels [N, h, w], both float32."""
        ring = len(self._keys) - self._anchors
        if anchor and self._anchored < self._anchors:
            slot = self._anchored
            self._anchored += 1
        elif ring:
            # Slots stay filled from the front, so that the references at hand are one view without gaps.
            slot = self._anchored + self._remembered % ring
            self._remembered += 1
        else:
            return
        self._keys[slot], self._values[slot] = features, labels

    def references(self, fill: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Keys [K, C, h, w] and values [K, N, h, w], views of the K references at hand.

        fill: repeat the first reference until the memory is full, for graphs with a fixed number of references.
        """
        count = self.filled
        if fill and count < len(self._keys):
            self._keys[count:], self._values[count:] = self._keys[0], self._values[0]
            count = len(self._keys)
        return self._keys[:count], self._values[:count]
