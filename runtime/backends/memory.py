"""Which frames are remembered, and the memory on the host: features and soft labels, allocated once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np

from corrflow.plugins.local_soft_copy.cpu import PackedFeatures, packed_depth
from corrflow.plugins.local_soft_copy.spec import Attributes, SearchWindow
from corrflow.runtime.settings import TrackingSettings

if TYPE_CHECKING:
    from typing_extensions import Self  # Python 3.10 has none of its own


class ReferenceSlots:
    """Which slot each frame goes to: one for each anchor, then a ring as long as the oldest reference is old.

    Says nothing of what is in a slot, so that a memory may be on any device.
    """

    def __init__(self, settings: TrackingSettings) -> None:
        self._settings = settings
        self._ring = max(settings.recent_offsets, default=0)
        self._frames = np.full(len(settings.permanent_frames) + self._ring, -1)  # counted from the first remembered
        self._remembered = self._in_ring = 0

    def __len__(self) -> int:
        return len(self._frames)

    def take(self) -> int | None:
        """The slot that the next frame overwrites, or None for a frame that will never be a reference."""
        frame, permanent_frames = self._remembered, self._settings.permanent_frames
        self._remembered += 1
        if frame in permanent_frames:
            slot = permanent_frames.index(frame)
        elif self._ring:
            # An anchor is not in the ring as well, so that every reference is there once.
            slot = len(permanent_frames) + self._in_ring % self._ring
            self._in_ring += 1
        else:
            return None
        self._frames[slot] = frame
        return slot

    @property
    def wanted(self) -> np.ndarray:
        """Slots of the next frame's references, ascending: the order that they are given to the op.

        They are the first slots, without a gap, where the references are the first frame and the last few.
        """
        filled = self._frames >= 0
        recent = np.isin(self._remembered - self._frames, self._settings.recent_offsets)
        return np.flatnonzero(filled & (recent | np.isin(self._frames, self._settings.permanent_frames)))

    @property
    def frames(self) -> list[int]:
        """The frames in those slots."""
        return self._frames[self.wanted].tolist()

    def named(self, aims: Mapping[int, Sequence[tuple[int, int]]]) -> tuple[SearchWindow, ...]:
        """The references by their slots, each through the window of its place, those of a frame once for each of its
        moves (down, right) in `aims`, and unmoved where that has none.
        """
        return tuple(
            SearchWindow(slot, window, *move)
            for window, (slot, frame) in enumerate(zip(self.wanted.tolist(), self.frames, strict=True))
            for move in aims.get(frame, ((0, 0),))
        )

    @property
    def attributes(self) -> Attributes:
        """How to search them."""
        return self._settings.attributes_for((self._remembered - self._frames[self.wanted]).tolist())


class _Ring:
    """Arrays with one entry a slot, and the references of the next frame in them."""

    def __init__(self, settings: TrackingSettings, labels: int, cells: tuple[int, int]) -> None:
        self._slots = ReferenceSlots(settings)
        self._values = np.empty((len(self._slots), labels, *cells), np.float32)
        self._attributes: Attributes | None = None
        self._aims: Mapping[int, Sequence[tuple[int, int]]] = {}

    def searched_with(self, attributes: Attributes) -> Self:
        """The same references as they are now, in the same memory, searched with other attributes."""
        view = copy(self)
        view._attributes = attributes
        return view

    def aimed(self, aims: Mapping[int, Sequence[tuple[int, int]]]) -> Self:
        """The same references as they are now, in the same memory, those of a frame once for each of its moves."""
        view = copy(self)
        view._aims = aims
        return view

    @property
    def labels(self) -> int:
        return self._values.shape[1]

    @property
    def frames(self) -> list[int]:
        """The frames that are references for the next one, in the order that they are given to the op."""
        return self._slots.frames

    @property
    def attributes(self) -> Attributes:
        """How to search the references of the next frame."""
        return self._attributes or self._slots.attributes

    @property
    def _chosen(self) -> slice | np.ndarray:
        """Their slots: a slice, which makes views, where they are the first ones (the first frame and the last few are
        always), and otherwise an index, which makes copies."""
        slots = self._slots.wanted
        return slice(0, len(slots)) if len(slots) == slots[-1] + 1 else slots


class MemoryRing(_Ring):
    """The memory as float32 arrays.

    settings: which frames are references, and how each is searched; labels: N; cells: (h, w); channels: C
    """

    def __init__(self, settings: TrackingSettings, labels: int, cells: tuple[int, int], channels: int) -> None:
        super().__init__(settings, labels, cells)
        self._keys = np.empty((len(self._slots), channels, *cells), np.float32)

    def add_frame(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Store the next frame: features [C, h, w], labels [N, h, w], both float32."""
        slot = self._slots.take()
        if slot is not None:
            self._keys[slot], self._values[slot] = features, labels

    def references(self) -> tuple[np.ndarray, np.ndarray, Attributes]:
        """Keys [K, C, h, w] and values [K, N, h, w] of the K references of the next frame, and how to search them.

        For who cannot move windows: how they are aimed is left out.
        """
        chosen = self._chosen
        return self._keys[chosen], self._values[chosen], self.attributes

    def named_references(self) -> tuple[np.ndarray, np.ndarray, Attributes, tuple[SearchWindow, ...]]:
        """All slots, keys [S, C, h, w] and values [S, N, h, w], how to search, and which of them, moved how far."""
        return self._keys, self._values, self.attributes, self._slots.named(self._aims)


class PackedRing(_Ring):
    """The memory with features packed into 16 or 8 bits a channel, half or a quarter as large.

    pack: makes that of features [C, h, w] float32; the rest is as for MemoryRing
    """

    def __init__(
        self,
        settings: TrackingSettings,
        labels: int,
        cells: tuple[int, int],
        channels: int,
        bits: int,
        pack: Callable[[np.ndarray], PackedFeatures],
    ) -> None:
        super().__init__(settings, labels, cells)
        self._words = np.empty((len(self._slots), packed_depth(channels, bits), *cells), np.int32)
        self._scales = np.empty(len(self._slots), np.float32)
        self._bits, self._pack = bits, pack

    def add_frame(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Store the next frame: features [C, h, w], labels [N, h, w], both float32."""
        slot = self._slots.take()
        if slot is not None:
            packed = self._pack(features)
            self._words[slot], self._scales[slot], self._values[slot] = packed.words, packed.scales, labels

    def named_references(self) -> tuple[PackedFeatures, np.ndarray, Attributes, tuple[SearchWindow, ...]]:
        """As MemoryRing's, with packed keys."""
        packed = PackedFeatures(self._words, self._scales, self._bits)
        return packed, self._values, self.attributes, self._slots.named(self._aims)
