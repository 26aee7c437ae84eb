"""Whether an object is there: it is lost when its mask no longer looks like it, and found again.

What says so is the likeness of a mask: the mean, over its cells, of the best product with the features of cells where
the object was seen - on the frame it was given on and on two of the last that showed it. Where more than a few of these
cells look more like what lay around the object there, the likeness is less by their share. A mask that has slid onto a
wall has cells that were copied from the object for want of anything better, and their best products are low at once.
Likeness is held against the object's own usual one, because some objects change more from frame to frame than others.

An object that seems gone gets references of its own: the frame it was given on and two of the last that showed most of
it, all searched widely, and the frames since, which speak for whatever hides it and for the background. If they find it
at once it was only the memory that had gone astray, and it was never lost. Otherwise it is remembered as absent from
this frame, and searched for from frame to frame; what comes back is remembered but not shown until there is enough of
it. Were it not remembered, an object that comes back bit by bit would be taken for background. Found again, an object
stays on these references until its group's memory no longer holds frames without it.

Strays go first: pieces of a mask that lie apart from the rest and are small, such as what the object leaves behind on
the background it has just uncovered, or that lie where it was not, such as somebody in the same clothes. A piece that
comes out on the other side of a post is small and apart as well: it is near, and it looks like the object on the frame
it was given on. (Not on those since, which may hold the stray itself.)
An object that was given in pieces keeps all of them.

Everything is decided object by object: none has a part in another's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.backends.base import Backend, Features, Memory
from corrflow.runtime.settings import TrackingSettings, last_frames
from corrflow.runtime.tracking.blas import product

SURE, NEAR, SAMPLED = 0.8, 20, 256
"""Labels from which a cell is surely the object's; cells around it that count as its surroundings; cells that stand for
an object or for its surroundings on one frame."""


@dataclass(frozen=True)
class OcclusionSettings:
    """When an object is lost and found; measured by `corrflow-eval presence` and `corrflow-eval davis`.

    lost_below:    share of its usual likeness below which an object seems gone
    gone_area:     share of its usual area, in cells, below which it seems gone
    found_above, found_area: shares of its usual likeness and area that have to be back
    own_cells:     share of a mask's cells that have to look more like the object than like its surroundings
    whole_area:    share of its usual area from which a frame shows an object well enough to be searched with
    seen_within:   last of such frames among which are the two it is searched with, the oldest and the newest
    since:         last frames that it is searched with besides
    search_radius, search_dilation: window in the frames on which it was seen
    pace:          weight of a new frame in what is usual
    stray_gap:     cells on either side that have to be free between a stray and the rest
    stray_area:    share of the main piece from which a piece where the object was is no stray
    stray_reach:   distance to the rest, as a share of the root of the usual area, from which a piece is one in any case
    stray_like:    share of the largest piece's best products with the object as given below which it is one
    stray_own:     share of its cells that have to look more like the object as given than like what lay around it
    """

    lost_below: float = 0.9
    gone_area: float = 0.01
    found_above: float = 0.9
    found_area: float = 0.3
    own_cells: float = 0.9
    whole_area: float = 0.5
    seen_within: int = 4
    since: int = 1
    search_radius: int = 24
    search_dilation: int = 2
    pace: float = 0.3
    stray_gap: int = 3
    stray_area: float = 0.3
    stray_reach: float = 0.75
    stray_like: float = 0.9
    stray_own: float = 0.8


_SEARCHED = 3
"""Frames on which it was seen that an object is searched for with: the one it was given on and two others."""


def occlusion_settings_for(backend: Backend, tracking: TrackingSettings) -> OcclusionSettings | None:
    """The usual settings where back end and settings allow for them, None elsewhere."""
    usual = OcclusionSettings()
    return usual if _can_watch(backend, tracking, usual) else None


def _can_watch(backend: Backend, tracking: TrackingSettings, settings: OcclusionSettings) -> bool:
    """Whether the search has the frame it needs and, with engines, no more references than they are built for."""
    enough = backend.supports_runtime_search_params or tracking.references >= _SEARCHED + settings.since
    return enough and tracking.permanent_frames == (0,)


@dataclass(frozen=True)
class Appearance:
    """Features of cells on one frame: `own` of the object [C, n] and `around` it [C, m], of unit length, float32."""

    own: np.ndarray
    around: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, label: np.ndarray) -> Appearance:
        """features [C, h, w], label [h, w], float32"""
        own = np.flatnonzero(label > SURE)
        if len(own) < 20:  # thin things have few cells of their own
            own = np.flatnonzero(label > 0.5)
        if not len(own):  # and what is smaller than a cell has none
            own = np.array([label.argmax()])
        reach = np.ones((2 * NEAR + 1, 2 * NEAR + 1), np.uint8)
        near = cv2.dilate((label > 0.3).astype(np.uint8), reach).astype(bool)
        return cls(_cells(features, own), _cells(features, np.flatnonzero(near & (label < 0.05))))

    def matches(self, features: np.ndarray, cells: np.ndarray) -> tuple[float, float]:
        """Mean of the best products of cells [n] of features [C, h, w] with the object's, and the share of those cells
        whose best is higher than with what lay around it."""
        chosen = _cells(features, cells).T
        best = product(chosen, self.own).max(1)
        own = float((best > product(chosen, self.around).max(1)).mean()) if self.around.shape[1] else 1.0
        return float(best.mean(dtype=np.float64)), own


@dataclass
class ObjectState:
    """What is known about one object.

    usual, area: likeness and cells as usual; 0 before the first
    share:       of the usual likeness in the last frame, 0..1
    in_pieces:   given in pieces, so that none of them is a stray
    given:       how it looks on the frame it was given on
    seen:        how it looks on the last frames that showed most of it, and those frames with their labels
    mask:        [h, w] bool, its cells on the last frame that showed any
    search:      the references it is looked for with, where it is lost or was found only lately
    found_for:   frames since it was found again
    """

    usual: float = 0.0
    area: float = 0.0
    share: float = 1.0
    lost: bool = False
    in_pieces: bool = False
    given: Appearance | None = None
    seen: deque[tuple[Appearance, np.ndarray, np.ndarray]] = field(default_factory=deque)
    mask: np.ndarray | None = None
    search: Memory | None = None
    found_for: int = 0


class OcclusionMonitor:
    """Judges the labels of a group of objects that were given on one frame.

    A back end with built-in windows searches with those. Raises InputError for settings without that frame, and for
    ones with fewer references than the search has where the back end is built for so many and no more.
    """

    def __init__(
        self,
        backend: Backend,
        tracking: TrackingSettings,
        settings: OcclusionSettings,
        first: Features,
        given: np.ndarray,
        objects: Sequence[tuple[int, ObjectState]],
    ) -> None:
        """first, given: features of the frame the objects were given on, and its labels [N, h, w] float32.

        objects: the channel of each object and what is known about it, which is filled in
        """
        if not _can_watch(backend, tracking, settings):
            raise InputError(
                "expected settings with the first frame alone as anchor, and three others without the fused kernel, to"
                " watch whether objects are there, got others; leave the watching out"
            )
        self._backend, self._settings = backend, settings
        on_host = np.asarray(first)
        self._first = on_host, given
        # Three frames on which an object was seen, then those since, whose windows are the tracker's own.
        plain = replace(tracking, dilate_past_age=0, move_windows=False, radius=(1,), dilation=(1,))
        self._memory = replace(
            plain, permanent_frames=tuple(range(_SEARCHED)), recent_offsets=last_frames(settings.since)
        )
        own = tracking.attributes
        ((radius, dilation),) = own.windows(2)[1:]
        self._searching = replace(
            own,
            radius=(settings.search_radius,) * _SEARCHED + (radius,),
            dilation=(settings.search_dilation,) * _SEARCHED + (dilation,),
        )
        self._memory_is_renewed_after = max(tracking.recent_offsets, default=0)
        for channel, presence in objects:
            label = given[channel]
            presence.area = float((label > 0.5).sum())
            presence.mask = label > 0.5
            presence.in_pieces = len(self._doubtful_pieces(label, presence)[1]) > 0
            presence.given = Appearance.of(on_host, label)
            presence.seen = deque(maxlen=settings.seen_within)

    def judge(self, features: Features, labels: np.ndarray, objects: Sequence[tuple[int, ObjectState]]) -> np.ndarray:
        """The labels [N, h, w] to be remembered: without strays; others where one seems gone or is searched for.

        Those of an object that is lost afterwards are not to be shown. Where nothing changes, they are `labels` itself.

        objects: the channel of each object and what is known about it, which is updated
        """
        host, judged = np.asarray(features), labels
        for channel, presence in objects:
            given = labels[channel]
            label = self._judge(features, host, given, channel, presence)
            if (label > 0.5).any():
                presence.mask = label > 0.5
            if label is not given:
                judged = labels.copy() if judged is labels else judged
                judged[channel] = label
        for channel, presence in objects:
            if presence.search is not None:
                presence.search.add_frame(features, judged)
            if not presence.lost and (judged[channel] > 0.5).sum() >= self._settings.whole_area * presence.area:
                presence.seen.append((Appearance.of(host, judged[channel]), host, judged))
        return judged

    def _judge(
        self, query: Features, features: np.ndarray, label: np.ndarray, channel: int, presence: ObjectState
    ) -> np.ndarray:
        """One object's label; query: features [C, h, w] where the back end has them."""
        if presence.search is not None:
            label = self._searched(query, features, channel, presence)
        elif not presence.in_pieces:
            label = self._without_strays(features, label, presence)
        likeness, area = self._likeness(features, label, presence)
        settings = self._settings
        if presence.lost:
            presence.lost = not self._finds(presence, likeness, area)
            presence.found_for = 0
        elif likeness < settings.lost_below * presence.usual or area < max(2, settings.gone_area * presence.area):
            presence.search, presence.found_for = self._new_search(presence), 0
            label = self._searched(query, features, channel, presence)
            likeness, area = self._likeness(features, label, presence)
            if not self._finds(presence, likeness, area):
                presence.lost = True
                return np.zeros_like(label)
        else:
            presence.found_for += 1
            if presence.found_for >= self._memory_is_renewed_after:
                presence.search = None
        if not presence.lost:
            presence.share = min(1.0, likeness / presence.usual) if presence.usual else 1.0
            presence.usual += (settings.pace if presence.usual else 1.0) * (likeness - presence.usual)
            # What is half hidden, or still coming out, is as large as before.
            if presence.search is None and area >= settings.whole_area * presence.area:
                presence.area += settings.pace * (area - presence.area)
        return label

    def _finds(self, presence: ObjectState, likeness: float, area: int) -> bool:
        settings = self._settings
        return likeness >= settings.found_above * presence.usual and area >= max(2, settings.found_area * presence.area)

    def _searched(self, query: Features, features: np.ndarray, channel: int, presence: ObjectState) -> np.ndarray:
        """Its label [h, w] by the references of its own."""
        memory = presence.search
        assert memory is not None
        if self._backend.supports_runtime_search_params:
            memory = memory.searched_with(self._searching)
        label = self._backend.propagate(query, memory)[channel]
        return label if presence.in_pieces else self._without_strays(features, label, presence)

    def _new_search(self, presence: ObjectState) -> Memory:
        """A memory of the frame an object was given on and two of the last that showed most of it."""
        seen = [(features, labels) for _, features, labels in presence.seen] or [self._first]
        labels = self._first[1]
        memory = self._backend.new_memory(self._memory, len(labels), (labels.shape[1], labels.shape[2]))
        for frame in (self._first, seen[0], seen[-1]):
            memory.add_frame(*frame)
        return memory

    def _likeness(self, features: np.ndarray, label: np.ndarray, presence: ObjectState) -> tuple[float, int]:
        """Likeness of the mask that a label [h, w] makes, and its cells."""
        cells = np.flatnonzero(label > 0.5)
        if len(cells) < 2:
            return 0.0, len(cells)
        assert presence.given is not None
        known = [presence.given, *(seen[0] for seen in list(presence.seen)[:: max(1, len(presence.seen) - 1)])]
        owns, arounds = [one.own for one in known], [one.around for one in known]
        best, own = Appearance(np.concatenate(owns, 1), np.concatenate(arounds, 1)).matches(features, cells)
        return best * min(1.0, own / self._settings.own_cells), len(cells)

    def _doubtful_pieces(self, label: np.ndarray, presence: ObjectState) -> tuple[np.ndarray, list[int]]:
        """The pieces of a label's mask by number [h, w], 0 around them, and which of them may be strays.

        The piece that has most of where the object was is none, nor is another that has some of it and is large. An
        object that is lost may come back anywhere: the largest piece stands for it.
        """
        gap = self._settings.stray_gap
        around = np.ones((2 * gap + 1, 2 * gap + 1), np.uint8)
        mask = label > 0.5
        pieces, piece = cv2.connectedComponents(cv2.dilate(mask.astype(np.uint8), around), connectivity=8)
        if pieces <= 2:  # the background is one
            return piece, []
        assert presence.mask is not None
        before = cv2.dilate(presence.mask.astype(np.uint8), around) > 0
        areas, there = (np.bincount(piece[cells], minlength=pieces) for cells in (mask, mask & before))
        if presence.lost or not there.any():
            there = areas
        main = there.argmax()
        least = self._settings.stray_area * areas[main]
        return piece, [one for one in range(1, pieces) if one != main and (areas[one] < least or not there[one])]

    def _without_strays(self, features: np.ndarray, label: np.ndarray, presence: ObjectState) -> np.ndarray:
        """A label [h, w] with its strays at 0."""
        piece, doubtful = self._doubtful_pieces(label, presence)
        strays = self._strays(features, label > 0.5, piece, doubtful, presence) if doubtful else []
        if not strays:
            return label
        stray = np.isin(piece, strays)
        # A faint rim goes with it, unless it is another piece's.
        rim = cv2.dilate(stray.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        return np.where(rim & (stray | (piece == 0)), np.float32(0), label)

    def _strays(
        self, features: np.ndarray, mask: np.ndarray, piece: np.ndarray, doubtful: list[int], presence: ObjectState
    ) -> list[int]:
        """Which of these pieces do not come out behind something: they are far, or do not look like the object."""
        assert presence.given is not None
        settings, given = self._settings, presence.given
        rest = mask & ~np.isin(piece, doubtful)
        largest = mask & (piece == np.bincount(piece[rest]).argmax())
        like = settings.stray_like * given.matches(features, np.flatnonzero(largest))[0]
        reach = settings.stray_reach * np.sqrt(presence.area)
        distance = cv2.distanceTransform((~rest).astype(np.uint8), cv2.DIST_L2, 5)
        strays = []
        for one in doubtful:
            cells = np.flatnonzero(mask & (piece == one))
            best, own = given.matches(features, cells)
            if best < like or own < settings.stray_own or distance.flat[cells].min() > reach:
                strays.append(one)
        return strays


def _cells(features: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Features [C, h, w] of some cells, evenly thinned to so many as are sampled: [C, n], of unit length."""
    if len(cells) > SAMPLED:
        cells = cells[np.linspace(0, len(cells) - 1, SAMPLED).astype(int)]
    chosen = features.reshape(len(features), -1)[:, cells]
    return chosen / np.maximum(np.sqrt((chosen**2).sum(0)), np.float32(1e-12))
