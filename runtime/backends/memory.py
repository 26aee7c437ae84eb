"""Memory of reference frames on the host: features and soft masks in arrays that are allocated once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from corrflow.plugins.local_soft_copy.cpu import PackedFeatures, packed_depth
from corrflow.runtime.backends.search_plan import ReferenceFrame
from corrflow.runtime.settings import TrackingSettings


class SlotAllocator:
    """Slots of the stored frames: one for each permanent frame, then a ring of max(recent_offsets) slots.

    It knows slots and not their content, so that a memory may lie on any device.
    """

    def __init__(self, settings: TrackingSettings) -> None:
        self._settings = settings
        self._ring = max(settings.recent_offsets, default=0)
        self._frames = np.full(len(settings.permanent_frames) + self._ring, -1)  # counted from the first frame added
        self._added = self._in_ring = 0

    def __len__(self) -> int:
        return len(self._frames)

    def allocate(self) -> int | None:
        """Return the slot that the next frame overwrites, or None for a frame that is never a reference."""
        frame, permanent_frames = self._added, self._settings.permanent_frames
        self._added += 1
        if frame in permanent_frames:
            slot = permanent_frames.index(frame)
        elif self._ring:
            # A permanent frame is not in the ring as well, so that every reference is searched once.
            slot = len(permanent_frames) + self._in_ring % self._ring
            self._in_ring += 1
        else:
            return None
        self._frames[slot] = frame
        return slot

    @property
    def references(self) -> list[ReferenceFrame]:
        """Reference frames of the next frame, by ascending slot.

        They fill the first slots without a gap where the references are the first frame and the last few.
        """
        ages = self._added - self._frames
        recent = np.isin(ages, self._settings.recent_offsets)
        permanent = np.isin(self._frames, self._settings.permanent_frames)
        slots = np.flatnonzero((self._frames >= 0) & (recent | permanent))
        return [ReferenceFrame(int(slot), int(self._frames[slot]), int(ages[slot])) for slot in slots]


class SlotMemory:
    """Slots of the reference frames, with their soft masks.

    soft_masks: float32, allocated by the subclass; the second axis has the mask channels
    """

    soft_masks: np.ndarray

    def __init__(self, settings: TrackingSettings) -> None:
        self._slots = SlotAllocator(settings)

    @property
    def num_channels(self) -> int:
        """N, the number of mask channels."""
        return self.soft_masks.shape[1]

    @property
    def references(self) -> list[ReferenceFrame]:
        """Reference frames of the next frame, by ascending slot."""
        return self._slots.references


class _Ring(SlotMemory):
    """Soft masks with one entry a slot."""

    def __init__(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> None:
        super().__init__(settings)
        self.soft_masks = np.empty((len(self._slots), num_channels, *cells), np.float32)


class MemoryRing(_Ring):
    """Memory as float32 arrays.

    features:   [S, C, h, w], one entry for each slot
    soft_masks: [S, N, h, w]
    """

    def __init__(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int], channels: int) -> None:
        """Allocate the slots of these settings; cells: (h, w); channels: C."""
        super().__init__(settings, num_channels, cells)
        self.features = np.empty((len(self._slots), channels, *cells), np.float32)

    def add_frame(self, features: np.ndarray, soft_masks: np.ndarray) -> None:
        """Store the next frame: features [C, h, w], soft masks [N, h, w], both float32."""
        slot = self._slots.allocate()
        if slot is not None:
            self.features[slot], self.soft_masks[slot] = features, soft_masks

    def stacked(self, slots: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return keys [K, C, h, w] and values [K, N, h, w] of ascending slots; views where no slot is left out."""
        chosen = slice(0, len(slots)) if len(slots) == slots[-1] + 1 else slots
        return self.features[chosen], self.soft_masks[chosen]


class PackedRing(_Ring):
    """Memory with features packed into 16 or 8 bits a channel, half or a quarter as large."""

    def __init__(
        self,
        settings: TrackingSettings,
        num_channels: int,
        cells: tuple[int, int],
        channels: int,
        bits: int,
        pack: Callable[[np.ndarray], PackedFeatures],
    ) -> None:
        """Allocate the slots of these settings; pack: packs features [C, h, w] float32."""
        super().__init__(settings, num_channels, cells)
        words = np.empty((len(self._slots), packed_depth(channels, bits), *cells), np.int32)
        self.features = PackedFeatures(words, np.empty(len(self._slots), np.float32), bits)
        self._pack = pack

    def add_frame(self, features: np.ndarray, soft_masks: np.ndarray) -> None:
        """Store the next frame: features [C, h, w], soft masks [N, h, w], both float32."""
        slot = self._slots.allocate()
        if slot is not None:
            packed = self._pack(features)
            self.features.words[slot], self.features.scales[slot] = packed.words, packed.scales
            self.soft_masks[slot] = soft_masks
