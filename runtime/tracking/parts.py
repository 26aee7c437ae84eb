"""Objects that were prompted on the same frame, with their soft masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from corrflow.runtime.backends.base import Features
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.occlusion import ObjectState, OcclusionMonitor
from corrflow.runtime.tracking.target_model import TargetModel
from corrflow.runtime.types import MaskObject

CHANNEL_BLOCK = 8
"""Mask channels come in blocks of one size, so that the arithmetic of a channel does not depend on its neighbours."""
MIN_OWN = 0.1
"""Soft mask from which a cell of the annotated frame is an object's own."""


def whole_blocks(channels: int) -> int:
    """Return the number of channels, rounded up to whole blocks."""
    return -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK


@dataclass
class Member:
    """Object of a part, with its channel in the part's soft masks; see groups.py for removed objects."""

    prompt: MaskObject
    channel: int
    state: ObjectState = field(default_factory=ObjectState)
    removed: bool = False
    target: TargetModel | None = None

    def rename(self, name: str) -> None:
        """Give the object another name."""
        self.prompt = replace(self.prompt, name=name)


@dataclass
class Part:
    """Objects prompted on the same frame.

    features:   [C, h, w] float32 of that frame
    annotated:  [N, h, w] float32, the soft masks that were given
    soft_masks: [N, h, w] float32 of the newest frame
    stored:     [N, h, w] float32, the same as memories store them
    """

    members: list[Member]
    features: np.ndarray
    annotated: np.ndarray
    occlusion: OcclusionMonitor | None = None
    soft_masks: np.ndarray = field(init=False)
    stored: np.ndarray = field(init=False)

    @classmethod
    def of(
        cls, objects: Sequence[MaskObject], features: np.ndarray, geometry: Geometry, target_model: bool = False
    ) -> Part:
        """Give masks of one frame their channels, and target models where these are asked for."""
        soft_masks = np.zeros((whole_blocks(len(objects)), *geometry.cells), np.float32)
        members = []
        for channel, prompt in enumerate(objects):
            soft_masks[channel] = geometry.mask_to_cells(prompt.mask)
            target = TargetModel(features, soft_masks[channel]) if target_model else None
            members.append(Member(prompt, channel, target=target))
        return cls(members, features, soft_masks)

    @property
    def tracked(self) -> list[Member]:
        """Members that were not removed."""
        return [member for member in self.members if not member.removed]

    @property
    def states(self) -> list[tuple[int, ObjectState]]:
        """Channel and state of each mask object."""
        return [(one.channel, one.state) for one in self.members]

    @property
    def own_cells(self) -> np.ndarray:
        """Cells [h, w] bool of the annotated frame that the tracked objects lie on."""
        maps = [self.annotated[one.channel] for one in self.tracked]
        return np.any([own >= min(MIN_OWN, float(own.max())) for own in maps], 0)

    def update(self, features: Features, soft_masks: np.ndarray, hard_labels: bool) -> None:
        """Take the propagated soft masks [N, h, w] of the next frame.

        Removed objects are treated alike, since they still have a share in the search windows.
        """
        targets = [(one, one.target) for one in self.members if one.target is not None]
        if targets:
            soft_masks = soft_masks.copy()
        for one, target in targets:
            if not one.state.occluded:
                soft_masks[one.channel] = target.refine(np.asarray(features), soft_masks[one.channel])
        if self.occlusion is not None:
            soft_masks = self.occlusion.update(features, soft_masks, self.states)
        for one, target in targets:
            if not one.state.occluded:
                target.observe(np.asarray(features), soft_masks[one.channel])
        self.soft_masks, self.stored = soft_masks, _as_stored(soft_masks, hard_labels)

    def annotated_as_stored(self, hard_labels: bool) -> np.ndarray:
        """Return the given soft masks as memories store them."""
        return _as_stored(self.annotated, hard_labels)


def _as_stored(soft_masks: np.ndarray, hard_labels: bool) -> np.ndarray:
    """Return soft masks as memories store them: as they are, or as 0 and 1."""
    return (soft_masks > 0.5).astype(np.float32) if hard_labels else soft_masks
