"""Annotations with packed masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from corrflow.file_budget import FileBudget
from corrflow.runtime.formats.label_schema import FrameKey
from corrflow.runtime.formats.packed_masks import BitMask, PackedMask
from corrflow.runtime.types import Annotation, MaskObject

PACKED = np.empty((0, 0), bool)
"""Mask of an object whose mask is packed."""

_BYTES = 1000  # of an annotation beside its mask and points


@dataclass(frozen=True)
class CompressedAnnotation:
    """Object with a packed mask, because the annotations of all frames are in memory.

    prompt: object, with `PACKED` as its mask
    mask:   packed mask; None for other objects
    origin: path of its file, for messages
    """

    prompt: Annotation
    mask: PackedMask | None = None
    origin: str = ""

    @classmethod
    def of(cls, prompt: Annotation, origin: str = "") -> CompressedAnnotation:
        """Pack an object."""
        if not isinstance(prompt, MaskObject):
            return cls(prompt, None, origin)
        return cls(replace(prompt, mask=PACKED), BitMask.of(prompt.mask), origin)

    @property
    def shape(self) -> tuple[int, ...]:
        """Height and width of a mask; () for others."""
        return () if self.mask is None else self.mask.shape

    @property
    def place(self) -> tuple[float, float, float]:
        """x and y of the centre of a mask, and the square root of its area, in pixels; zeros for others."""
        return (0.0, 0.0, 0.0) if self.mask is None else self.mask.place

    def unpacked(self) -> Annotation:
        """Return the object with its mask."""
        if self.mask is None or not isinstance(self.prompt, MaskObject):
            return self.prompt
        return replace(self.prompt, mask=self.mask.unpacked())


@dataclass(frozen=True)
class PackedFrames(Mapping[FrameKey, list[Annotation]]):
    """Objects by frame for readers of files with thousands of masks; these are unpacked where a frame is asked for.

    budget: budget of the file, which every object draws from
    """

    budget: FileBudget = field(default_factory=FileBudget)
    packed: dict[FrameKey, list[CompressedAnnotation]] = field(default_factory=dict)

    def add(self, frame: FrameKey, one: Annotation, mask: PackedMask | None = None) -> None:
        """Add an object to a frame. Raises BudgetExceeded.

        mask: packed mask of an object whose mask is `PACKED`
        """
        packed = CompressedAnnotation.of(one) if mask is None else CompressedAnnotation(one, mask)
        self.budget.take(_BYTES + (0 if packed.mask is None else packed.mask.num_bytes), "labels")
        self.packed.setdefault(frame, []).append(packed)

    def __getitem__(self, frame: FrameKey) -> list[Annotation]:
        return [one.unpacked() for one in self.packed[frame]]

    def __iter__(self) -> Iterator[FrameKey]:
        return iter(self.packed)

    def __len__(self) -> int:
        return len(self.packed)
