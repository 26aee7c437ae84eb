"""Groups of objects that are propagated together, and the merge of groups into one.

Objects prompted on one frame are a part. A group begins with one part, so that adding, correcting or removing another
object cannot change it. Each group costs a propagation on every frame, so groups are merged.

Their recent frames are the same, and the annotated frames differ. The merged group has one annotated frame, composed of
theirs: each cell comes from the part whose objects are nearest to it there. Groups whose objects lie on the same cells
stay apart. On the composed frame, a part knows its labels on its own cells alone. So each part has one channel more,
which is 1 where its labels are known. It is copied as the labels are, and the copied labels are divided by it. That is
the soft copy over the candidates where the part is known. The labels of other parts have no share in it.

A merge takes as many frames as the memory keeps. Meanwhile the groups go on as before, and fill the merged memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from corrflow.runtime.backends.base import Backend, Features
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.object_motion import FeatureBlocks
from corrflow.runtime.tracking.parts import Member, Part, whole_blocks
from corrflow.runtime.tracking.window_motion import WindowMotion

MIN_KNOWN = 0.01
"""Weight of the candidates where a part is known; below it, its labels are 0."""


@dataclass(frozen=True)
class _Place:
    """Channels of a part in the soft masks of a group.

    members: objects that the group tracks
    own:     their channels in the part, ascending
    merged:  the same channels in the group
    known:   channel of the group that is 1 where the part's labels are known; None in a group of one part
    """

    members: list[Member]
    own: list[int]
    merged: slice
    known: int | None


class Group:
    """Parts with one memory that their soft masks are copied from; they share search windows.

    A removed object keeps being tracked internally until its group is empty or merged, so that removing it does not
    change the others.
    """

    def __init__(
        self, backend: Backend, settings: TrackingSettings, geometry: Geometry, parts: Sequence[Part], moves: bool
    ) -> None:
        """Begin with the annotated frames of the parts.

        moves: True for search windows that move with the objects

        Raises InputError for more channels than the backend holds.
        """
        self.parts = tuple(parts)
        self._backend, self._settings, self._geometry = backend, settings, geometry
        self._places, self.num_channels = _places(self.parts)
        owner = _nearest([part.own_cells for part in parts])
        known = [owner == index for index in range(len(parts))]
        features = self.parts[0].features
        if len(parts) > 1:
            features = np.select(known, [part.features for part in parts])
        annotated = self._merged([part.annotated for part in parts], known)
        stored = self._merged([part.annotated_as_stored(settings.hard_labels) for part in parts], known)
        self.memory = backend.new_memory(settings, self.num_channels, geometry.cells)
        self.memory.add_frame(features, stored)
        channels = [place.merged.start + index for place in self._places for index, _ in enumerate(place.members)]
        self.motion = WindowMotion(settings, channels, annotated) if moves else None

    @property
    def tracked(self) -> list[Member]:
        """Members that were not removed."""
        return [member for part in self.parts for member in part.tracked]

    def step(self, features: Features, previous: FeatureBlocks | None, current: FeatureBlocks | None) -> None:
        """Propagate the parts' soft masks into the next frame.

        previous, current: blocks of the last frame's features and of the next one's; None without moving windows
        """
        references = self.memory.references
        params = self._settings.attributes_for([reference.age for reference in references])
        offsets = None
        if self.motion is not None:
            assert previous is not None and current is not None
            self.motion.measure(previous, current)
            offsets = self.motion.offsets(references)
        propagated = self._backend.propagate(features, self.memory, SearchPlan.of(references, params, offsets))
        for part, place in zip(self.parts, self._places, strict=True):
            part.update(features, _split(propagated, part, place), self._settings.hard_labels)
        self.store(features)

    def store(self, features: Features) -> None:
        """Add the newest frame to the memory, with what the parts hold of it."""
        self.memory.add_frame(features, self._merged([part.stored for part in self.parts]))
        if self.motion is not None:
            self.motion.observe(self._merged([part.soft_masks for part in self.parts]))

    @property
    def own_cells(self) -> np.ndarray:
        """Cells [h, w] bool of the annotated frame that the tracked objects lie on."""
        return np.any([part.own_cells for part in self.parts if part.tracked], 0)

    @property
    def positions(self) -> list[tuple[Member, np.ndarray]]:
        """Members and where they are now; none without moving windows."""
        return [] if self.motion is None else list(zip(self.followed, self.motion.current, strict=True))

    @property
    def followed(self) -> list[Member]:
        """Members in the order of `motion`: those that were not removed when the group began."""
        return [member for place in self._places for member in place.members]

    def take_over(self) -> None:
        """Leave out the objects that the group does not follow."""
        for part, place in zip(self.parts, self._places, strict=True):
            part.members = place.members

    def _merged(self, soft_masks: Sequence[np.ndarray], known: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Put the parts' soft masks [n, h, w] together: [N, h, w]; known: cells [h, w] bool, everywhere for None."""
        if len(self.parts) == 1:
            return soft_masks[0]
        merged = np.zeros((self.num_channels, *self._geometry.cells), np.float32)
        for index, place in enumerate(self._places):
            cells = 1 if known is None else known[index]
            merged[place.merged] = soft_masks[index][place.own] * cells
            merged[place.known] = cells
        return merged


class Merge:
    """Merge of groups into one, whose memory they fill while they go on."""

    def __init__(
        self, backend: Backend, settings: TrackingSettings, geometry: Geometry, groups: Sequence[Group], moves: bool
    ) -> None:
        """Begin after a step. Raises InputError for more channels than the backend holds."""
        self.groups = tuple(groups)
        self.group = Group(backend, settings, geometry, _tracked_parts(groups), moves)
        self._missing = max(settings.recent_offsets)
        if self.group.motion is not None:
            # A hidden object stays where it was.
            last = {id(member): position for group in groups for member, position in group.positions}
            self.group.motion.resume([last[id(member)] for member in self.group.followed])

    def advance(self, features: Features) -> bool:
        """Add the newest frame, after a step of the groups; return True once the merged group takes their place."""
        self.group.store(features)
        self._missing -= 1
        if not self._missing:
            self.group.take_over()
        return not self._missing


def can_merge(settings: TrackingSettings) -> bool:
    """Return True where the first frame alone is permanent, and frames are searched alike at every age."""
    return settings.permanent_frames == (0,) and bool(settings.recent_offsets) and not settings.dilate_past_age


def mergeable(groups: Sequence[Group], max_channels: int | None) -> list[Group]:
    """Return two or more groups to merge, the oldest first; an empty list where all are to stay apart.

    max_channels: largest number of channels of a merged group; None for any
    """
    sets: list[tuple[list[Group], np.ndarray]] = []
    for group in groups:
        cells = group.own_cells
        for chosen, taken in sets:
            fits = max_channels is None or merged_channels([*chosen, group]) <= max_channels
            if fits and not (taken & cells).any():
                chosen.append(group)
                taken |= cells
                break
        else:
            sets.append(([group], cells))
    return next((chosen for chosen, _ in sets if len(chosen) > 1), [])


def merged_channels(groups: Sequence[Group]) -> int:
    """Return the number of channels that these groups have once they are merged."""
    return _places(_tracked_parts(groups))[1]


def _tracked_parts(groups: Sequence[Group]) -> list[Part]:
    return [part for group in groups for part in group.parts if part.tracked]


def _places(parts: Sequence[Part]) -> tuple[list[_Place], int]:
    """Return the place of each part in a group, and the group's number of channels."""
    if len(parts) == 1:
        count = len(parts[0].annotated)
        return [_Place(parts[0].tracked, list(range(count)), slice(0, count), None)], count
    used = [[one.channel for one in part.tracked] for part in parts]
    places, first, known = [], 0, sum(map(len, used))
    for index, (part, own) in enumerate(zip(parts, used, strict=True)):
        places.append(_Place(part.tracked, own, slice(first, first + len(own)), known + index))
        first += len(own)
    return places, whole_blocks(known + len(parts))


def _split(propagated: np.ndarray, part: Part, place: _Place) -> np.ndarray:
    """Return a part's soft masks [n, h, w] of those of its group, [N, h, w]."""
    if place.known is None:
        return propagated
    known = propagated[place.known]
    soft_masks = np.zeros_like(part.annotated)
    weights = np.where(known > MIN_KNOWN, 1 / np.maximum(known, MIN_KNOWN), np.float32(0))
    # Rounding may lift a label that is 1 at every candidate.
    soft_masks[place.own] = np.minimum(propagated[place.merged] * weights, 1)
    return soft_masks


def _nearest(regions: Sequence[np.ndarray]) -> np.ndarray:
    """Return the index of the region [h, w] bool that is nearest to each cell, [h, w]."""
    distances = [cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, 5) for region in regions]
    return np.argmin(distances, 0)
