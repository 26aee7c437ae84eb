"""Whether an object is there: it is lost when what is tracked no longer looks like what was given, and found again.

Two searches say so, both made of the tracker's own op. The recall copies labels from the frame the object was given on
alone, within a window so wide that the tracker's history has no part in it. Where the tracked mask lies on something
else, the recall has background there: the mean recalled label over the mask's cells is the agreement. It is held
against the object's own usual agreement, because some objects change so much that the recall never finds all of them.

A lost object gets references of its own: the frame it was given on and two of the last on which it was seen, all
searched widely, and the frames since, which speak for whatever hides it and for the background; the frame on which it
was lost is remembered without it. What the search brings back is remembered but not shown until there is enough of it.
Were it not remembered, an object that comes back bit by bit would be taken for background. Found again, an object stays
on these references until its group's memory no longer holds frames without it, and its recall is from the three frames
on which it was seen.
Everything is decided channel by channel: no object has a part in another's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from corrflow.plugins.errors import InputError
from corrflow.runtime.artifact import TrackingSettings, last_frames
from corrflow.runtime.backend import Backend, Features, Memory


@dataclass(frozen=True)
class PresenceSettings:
    """When an object is lost and found; measured by `corrflow-eval presence`.

    lost_below:    share of its usual agreement below which an object is lost
    growth, shrinkage: times its usual area beyond and below which that share is divided by the excess: a smear grows at
                   once, and what is left of an object beside something that hides it is small at once
    found_area:    share of its usual area, in cells, that has to be back
    found_above:   share of its usual agreement that this has to have
    recall_radius, recall_dilation: window of the recall
    seen_within:   last frames among which are the two it is searched with, the oldest and the newest that show it
    since:         last frames that it is searched with besides
    search_radius, search_dilation: window in the frames on which it was seen
    pace:          weight of a new frame in what is usual
    """

    lost_below: float = 0.72
    growth: float = 1.25
    shrinkage: float = 0.8
    found_area: float = 0.3
    found_above: float = 0.75
    recall_radius: int = 12
    recall_dilation: int = 4
    seen_within: int = 4
    since: int = 1
    search_radius: int = 24
    search_dilation: int = 2
    pace: float = 0.3


def presence_for(backend: Backend, tracking: TrackingSettings) -> PresenceSettings | None:
    """The usual settings where back end and settings allow for them, None elsewhere."""
    return PresenceSettings() if backend.any_attributes and tracking.anchors == (0,) else None


@dataclass
class Presence:
    """What is known about one object.

    usual, area: agreement and cells as usual
    share:       of the usual agreement in the last frame, 0..1
    search:      the references it is looked for with, where it is lost or was found only lately
    found_for:   frames since it was found again
    recall:      those of them on which it was seen, once it was lost; until then the group's recall is its own
    """

    usual: float = 0.0
    area: float = 0.0
    share: float = 1.0
    lost: bool = False
    search: Memory | None = None
    found_for: int = 0
    recall: Memory | None = None


class Watch:
    """Judges the labels of a group of objects that were given on one frame.

    Raises InputError for a back end that cannot search with other windows, or settings without that frame.
    """

    def __init__(
        self,
        backend: Backend,
        tracking: TrackingSettings,
        settings: PresenceSettings,
        first: Features,
        given: np.ndarray,
    ) -> None:
        """first, given: features of the frame the objects were given on, and its labels [N, h, w] float32."""
        if not backend.any_attributes or tracking.anchors != (0,):
            raise InputError(
                "expected the fused kernel and settings with the first frame alone as anchor to watch whether objects"
                " are there, got others; leave the watching out"
            )
        self._backend, self._settings = backend, settings
        self._first = first, given
        self._past: deque[tuple[Features, np.ndarray, set[int]]] = deque(maxlen=settings.seen_within)
        plain = replace(tracking, dilate_after=0, radius=(1,), dilation=(1,))
        self._three_seen = replace(plain, anchors=(0, 1, 2), ages=())
        self._and_since = replace(plain, anchors=(0, 1, 2), ages=last_frames(settings.since))
        self._recall = self._new_memory(replace(plain, ages=()), [self._first])
        # Three frames on which an object was seen, then those since, whose windows are the tracker's own.
        own = tracking.attributes
        ((radius, dilation),) = own.windows(2)[1:]
        self._searching = replace(
            own,
            radius=(settings.search_radius,) * 3 + (radius,),
            dilation=(settings.search_dilation,) * 3 + (dilation,),
        )
        self._recalling = replace(own, radius=(settings.recall_radius,), dilation=(settings.recall_dilation,))
        self._memory_is_renewed_after = max(tracking.ages, default=0)

    def judge(self, features: Features, labels: np.ndarray, objects: Sequence[tuple[int, Presence]]) -> np.ndarray:
        """The labels [N, h, w] to be remembered: where an object was just lost or is searched for they are others.

        Those of an object that is lost afterwards are not to be shown.

        objects: the channel of each object and what is known about it, which is updated
        """
        shared: np.ndarray | None = None
        judged = labels.copy()
        for channel, presence in objects:
            if presence.search is not None:
                found = self._backend.propagate(features, presence.search.searched_with(self._searching))
                judged[channel] = found[channel]
            if presence.recall is not None:
                recalled = self._recalled(features, presence.recall)
            else:
                recalled = shared = shared if shared is not None else self._recalled(features, self._recall)
            if presence.lost:
                if self._finds(presence, judged[channel], recalled[channel]):
                    presence.lost, presence.found_for = False, 0
            elif self._stays(presence, judged[channel], recalled[channel]):
                presence.found_for += 1
                if presence.found_for >= self._memory_is_renewed_after:
                    presence.search = None
            else:
                presence.lost = True
                judged[channel] = 0
                seen = self._seen(channel)
                presence.search = self._new_memory(self._and_since, seen)
                presence.recall = self._new_memory(self._three_seen, seen)
        for _, presence in objects:
            if presence.search is not None:
                presence.search.remember(features, judged)
        self._past.append((features, judged, {channel for channel, presence in objects if not presence.lost}))
        return judged

    def _recalled(self, features: Features, memory: Memory) -> np.ndarray:
        return self._backend.propagate(features, memory.searched_with(self._recalling))

    def _new_memory(self, settings: TrackingSettings, frames: Sequence[tuple[Features, np.ndarray]]) -> Memory:
        labels = self._first[1]
        memory = self._backend.new_memory(settings, len(labels), (labels.shape[1], labels.shape[2]))
        for frame in frames:
            memory.remember(*frame)
        return memory

    def _seen(self, channel: int) -> list[tuple[Features, np.ndarray]]:
        """The frame an object was given on, and two of the last on which it was seen, with their labels."""
        seen = [(features, labels) for features, labels, there in self._past if channel in there] or [self._first]
        return [self._first, seen[0], seen[-1]]

    def _stays(self, presence: Presence, label: np.ndarray, recalled: np.ndarray) -> bool:
        agreement, area = _agreement(label, recalled)
        presence.usual, presence.area = presence.usual or agreement, presence.area or area
        presence.share = min(1.0, agreement / presence.usual) if presence.usual else 0.0
        settled = presence.search is None
        if presence.area:
            change = area / presence.area
            presence.share *= min(1.0, self._settings.growth / max(change, 1e-9))
            if settled:  # what was found lately may still be coming out bit by bit
                presence.share *= min(1.0, change / self._settings.shrinkage)
        if not area or presence.share < self._settings.lost_below:
            return False
        presence.usual += self._settings.pace * (agreement - presence.usual)
        if settled:
            presence.area += self._settings.pace * (area - presence.area)
        return True

    def _finds(self, presence: Presence, label: np.ndarray, recalled: np.ndarray) -> bool:
        agreement, area = _agreement(label, recalled)
        share = agreement / presence.usual if presence.usual else 1.0
        if not area or area < self._settings.found_area * presence.area or share < self._settings.found_above:
            return False
        presence.share = min(1.0, share)
        return True


def _agreement(label: np.ndarray, recalled: np.ndarray) -> tuple[float, int]:
    """The mean recalled label over an object's cells, and how many these are; labels [h, w]."""
    own = label > 0.5
    area = int(own.sum())
    return (float(recalled[own].mean(dtype=np.float64)) if area else 0.0), area
