"""Whether an object is there: it is lost when what is tracked no longer looks like what was given, and found again.

Two searches say so, both made of the tracker's own op. The recall copies labels from the frame the object was given on
alone, within a window so wide that the tracker's history has no part in it. Where the tracked mask lies on something
else, the recall has background there: the mean recalled label over the mask's cells is the agreement. It is held
against the object's own usual agreement, because some objects change so much that the recall never finds all of them.

The frame in which an object is lost is remembered without it, so that the last frames speak for whatever hides it and
for the background. From then on the wide search weighs the given frame against those; what it brings back is remembered
but not shown until there is enough of it. Were it not remembered, an object that comes back bit by bit would be taken
for background.
Everything is decided channel by channel: no object has a part in another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from corrflow.plugins.errors import InputError
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.runtime.artifact import TrackingSettings
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
    search_radius, search_dilation: window of the wide search in the frame an object was given on
    pace:          weight of a new frame in what is usual
    """

    lost_below: float = 0.65
    growth: float = 1.25
    shrinkage: float = 0.8
    found_area: float = 0.2
    found_above: float = 0.75
    recall_radius: int = 12
    recall_dilation: int = 4
    search_radius: int = 24
    search_dilation: int = 2
    pace: float = 0.3


def presence_for(backend: Backend, tracking: TrackingSettings) -> PresenceSettings | None:
    """The usual settings where back end and settings allow for them, None elsewhere."""
    return PresenceSettings() if backend.any_attributes and tracking.anchors == (0,) else None


@dataclass
class Presence:
    """What is known about one object: agreement and area (cells) as usual, and the agreement of the last frame."""

    usual: float = 0.0
    area: float = 0.0
    share: float = 1.0
    lost: bool = False


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
        recalling = replace(
            tracking, ages=(), dilate_after=0, radius=(settings.recall_radius,), dilation=(settings.recall_dilation,)
        )
        self._recall = backend.new_memory(recalling, len(given), (given.shape[1], given.shape[2]))
        self._recall.remember(first, given)
        # Two windows: the first is that of the frame the objects were given on, the second that of all recent ones.
        radius, dilation = tracking.attributes.windows(2)[1]
        self._wide = Attributes(
            (settings.search_radius, radius), (settings.search_dilation, dilation), tracking.top_k, tracking.temperature
        )

    def judge(
        self, features: Features, labels: np.ndarray, memory: Memory, objects: Sequence[tuple[int, Presence]]
    ) -> np.ndarray:
        """The labels [N, h, w] to be remembered: where an object was just lost or is searched for they are others.

        Those of an object that is lost afterwards are not to be shown.

        objects: the channel of each object and what is known about it, which is updated
        """
        recalled = self._backend.propagate(features, self._recall)
        judged = labels.copy()
        searched: np.ndarray | None = None
        for channel, presence in objects:
            if presence.lost:
                if searched is None:
                    searched = self._backend.propagate(features, memory.searched_with(self._wide))
                judged[channel] = searched[channel]
                presence.lost = not self._finds(presence, searched[channel], recalled[channel])
            elif not self._stays(presence, labels[channel], recalled[channel]):
                presence.lost = True
                judged[channel] = 0
        return judged

    def _stays(self, presence: Presence, label: np.ndarray, recalled: np.ndarray) -> bool:
        agreement, area = _agreement(label, recalled)
        presence.usual, presence.area = presence.usual or agreement, presence.area or area
        presence.share = min(1.0, agreement / presence.usual) if presence.usual else 0.0
        if presence.area:
            change = area / presence.area
            presence.share *= min(1.0, self._settings.growth / max(change, 1e-9), change / self._settings.shrinkage)
        if not area or presence.share < self._settings.lost_below:
            return False
        presence.usual += self._settings.pace * (agreement - presence.usual)
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
