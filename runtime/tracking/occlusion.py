"""Occlusion handling: hide an object that is no longer visible, re-detect it, and drop spurious components.

Visibility is decided by appearance similarity. For every cell of the predicted mask, take the best cosine similarity to
stored features of the object, and average. Stored features come from the annotated frame and two recent views. The
similarity is lowered where too many cells look more like the object's surroundings than like the object. A mask that
has drifted onto a wall holds cells without a good match, and its similarity drops at once. The similarity is compared
with the object's own moving average, because some objects change more from frame to frame than others. An occluder that
looks like the object passes this test. But a mask that goes over to it is often several times as large at once.

An object that seems hidden gets a search memory of its own. It holds the annotated frame and two recent full views,
which are searched widely, and the newest frames, which represent the occluder and the background. If this search finds
the object at once, only the group's memory had drifted, and the object was never hidden. Otherwise the frame is stored
without the object, and the search goes on. A partly re-detected object is stored, but not shown until enough of it is
back. Otherwise an object that reappears bit by bit would become background. A re-detected object keeps its search
memory until the group's memory holds no frame without it.

Spurious components are removed first. Some lie apart from the main component and are small, such as background that
the object has just uncovered. Others lie where the object was not, such as a look-alike. A part that reappears on the
far side of a post is small and apart as well. But it is near, and resembles the object on the annotated frame. Recent
frames do not count here, since they may show the spurious component itself. An object that was prompted with several
components keeps all of them.

Every object is judged on its own: no object influences another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.backends.base import Backend, Features, Memory
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings, last_frames
from corrflow.runtime.tracking.blas import matmul_single_threaded
from corrflow.runtime.tracking.geometry import thinned, unit_features

CERTAIN = 0.8
"""Soft mask from which a cell certainly belongs to the object."""
SURROUNDINGS = 20
"""Cells around an object that count as its surroundings."""
SMALL_AREA = 64
"""Cells up to which an object may grow at once: the area of small ones is a matter of rounding."""
MAX_SAMPLES = 256
"""Cells that represent an object, or its surroundings, on one frame."""


@dataclass(frozen=True)
class OcclusionSettings:
    """Thresholds of occlusion handling; `corrflow-eval occlusion` and `corrflow-eval davis` measure them.

    occluded_below:         share of the baseline similarity below which an object seems hidden
    min_visible_area:       share of the baseline area, in cells, below which it seems hidden
    max_visible_area:       the same above which it seems hidden: the mask has gone over to what covers the object
    redetect_above:         share of the baseline similarity that re-detection needs
    redetect_area:          share of the baseline area that re-detection needs
    min_foreground_share:   share of a mask's cells that have to resemble the object more than its surroundings
    full_view_area:         share of the baseline area from which a frame is a full view
    recent_views:           last full views that are kept; the oldest and the newest of them are searched
    recent_frames:          newest frames that are searched besides
    search_radius, search_dilation: search window in the annotated frame and the full views
    ema_rate:               weight of a new frame in the baselines
    min_component_gap:      free cells on each side that separate a component from the others
    min_component_area:     share of the main component's area that a component at the object's place needs
    max_component_distance: components farther from the main one are dropped, in units of sqrt(baseline area)
    min_component_similarity: share of the largest component's similarity to the annotated frame that a component needs
    min_component_foreground_share: as min_foreground_share, for one component and the annotated frame
    """

    occluded_below: float = 0.9
    min_visible_area: float = 0.01
    max_visible_area: float = 3.0
    redetect_above: float = 0.9
    redetect_area: float = 0.3
    min_foreground_share: float = 0.9
    full_view_area: float = 0.5
    recent_views: int = 4
    recent_frames: int = 1
    search_radius: int = 24
    search_dilation: int = 2
    ema_rate: float = 0.3
    min_component_gap: int = 3
    min_component_area: float = 0.3
    max_component_distance: float = 0.75
    min_component_similarity: float = 0.9
    min_component_foreground_share: float = 0.8


_NUM_VIEWS = 3
"""Number of views used for re-detection: the annotated frame and two recent ones."""


def occlusion_settings_for(
    backend: Backend, tracking: TrackingSettings, settings: OcclusionSettings | None = None
) -> OcclusionSettings | None:
    """Return settings where the backend and the tracking settings support occlusion handling, else None.

    settings: the settings to return; None for the default settings
    """
    settings = settings or OcclusionSettings()
    return settings if _is_supported(backend, tracking, settings) else None


def _is_supported(backend: Backend, tracking: TrackingSettings, settings: OcclusionSettings) -> bool:
    """Check that the search has its annotated frame and, with engines, no more references than they are built for."""
    enough = (
        backend.supports_runtime_search_params or tracking.num_reference_frames >= _NUM_VIEWS + settings.recent_frames
    )
    return enough and tracking.permanent_frames == (0,)


@dataclass(frozen=True)
class Appearance:
    """Features of sampled cells on one frame: `foreground` [C, n], `surroundings` [C, m]; float32, of unit length."""

    foreground: np.ndarray
    surroundings: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, soft_mask: np.ndarray) -> Appearance:
        """Sample the object of a soft mask [h, w] from features [C, h, w], both float32."""
        foreground = np.flatnonzero(soft_mask > CERTAIN)
        if len(foreground) < 20:  # thin objects have few certain cells
            foreground = np.flatnonzero(soft_mask > 0.5)
        if not len(foreground):  # objects smaller than a cell have none
            foreground = np.array([soft_mask.argmax()])
        kernel = np.ones((2 * SURROUNDINGS + 1, 2 * SURROUNDINGS + 1), np.uint8)
        near = cv2.dilate((soft_mask > 0.3).astype(np.uint8), kernel).astype(bool)
        return cls(_sampled(features, foreground), _sampled(features, np.flatnonzero(near & (soft_mask < 0.05))))

    def similarity(self, features: np.ndarray, cells: np.ndarray) -> tuple[float, float]:
        """Compare cells [n] of features [C, h, w] with this appearance.

        Returns the mean of the cells' best cosine similarities to the foreground. The second value is the share of the
        cells that resemble the foreground more than the surroundings.
        """
        sampled = _sampled(features, cells).T
        best = matmul_single_threaded(sampled, self.foreground).max(1)
        share = 1.0
        if self.surroundings.shape[1]:
            share = float((best > matmul_single_threaded(sampled, self.surroundings).max(1)).mean())
        return float(best.mean(dtype=np.float64)), share


@dataclass
class ObjectState:
    """State of one object.

    baseline_similarity, baseline_area: moving averages of similarity and area in cells; 0 before the first frame
    relative_similarity:  similarity of the last frame over its baseline, 0..1
    disconnected:         True for an object prompted with several components, none of which is spurious
    reference_appearance: appearance on the annotated frame
    recent_views:         appearance, features and soft masks of the last full views
    last_mask:            [h, w] bool, the object's cells on the last frame that showed any
    search_memory:        references for re-detection, while the object is hidden or was re-detected recently
    frames_since_redetection: frames since the object was found again
    """

    baseline_similarity: float = 0.0
    baseline_area: float = 0.0
    relative_similarity: float = 1.0
    occluded: bool = False
    disconnected: bool = False
    reference_appearance: Appearance | None = None
    recent_views: deque[tuple[Appearance, np.ndarray, np.ndarray]] = field(default_factory=deque)
    last_mask: np.ndarray | None = None
    search_memory: Memory | None = None
    frames_since_redetection: int = 0


class OcclusionMonitor:
    """Occlusion handling for a group of objects that were prompted on one frame.

    A backend without runtime search parameters searches with those built into it. Raises InputError for settings
    without the annotated frame, and for too few reference frames where a backend is built for a fixed number.
    """

    def __init__(
        self,
        backend: Backend,
        tracking: TrackingSettings,
        settings: OcclusionSettings,
        features: Features,
        soft_masks: np.ndarray,
        objects: Sequence[tuple[int, ObjectState]],
    ) -> None:
        """Start at the annotated frame.

        features:   of the annotated frame
        soft_masks: [N, h, w] float32 of the annotated frame
        objects:    channel and state of each object; the states are filled in
        """
        if not _is_supported(backend, tracking, settings):
            raise InputError(
                "expected settings with the first frame alone as permanent frame, and three others without the fused"
                " kernel, for occlusion handling, got others; turn it off with --no-redetect"
            )
        self._backend, self._settings = backend, settings
        on_host = np.asarray(features)
        self._annotated = on_host, soft_masks
        # The views have wide windows; the newest frames have the tracker's own.
        plain = replace(tracking, dilate_past_age=0, move_windows=False, radius=(1,), dilation=(1,))
        self._memory_settings = replace(
            plain, permanent_frames=tuple(range(_NUM_VIEWS)), recent_offsets=last_frames(settings.recent_frames)
        )
        params = tracking.attributes
        ((radius, dilation),) = params.windows(2)[1:]
        self._search_params = replace(
            params,
            radius=(settings.search_radius,) * _NUM_VIEWS + (radius,),
            dilation=(settings.search_dilation,) * _NUM_VIEWS + (dilation,),
        )
        self._memory_length = max(tracking.recent_offsets, default=0)
        for channel, state in objects:
            soft_mask = soft_masks[channel]
            state.baseline_area = float((soft_mask > 0.5).sum())
            state.last_mask = soft_mask > 0.5
            state.disconnected = len(self._candidate_components(soft_mask, state)[1]) > 0
            state.reference_appearance = Appearance.of(on_host, soft_mask)
            state.recent_views = deque(maxlen=settings.recent_views)

    def update(
        self, features: Features, soft_masks: np.ndarray, objects: Sequence[tuple[int, ObjectState]]
    ) -> np.ndarray:
        """Judge the next frame and return the soft masks [N, h, w] that the memory stores.

        Spurious components are removed, and masks of hidden or searched objects are replaced. The masks of objects
        whose state is `occluded` afterwards are not for display. Without a change, the result is `soft_masks` itself.

        objects: channel and state of each object; the states are updated
        """
        on_host, judged = np.asarray(features), soft_masks
        for channel, state in objects:
            propagated = soft_masks[channel]
            soft_mask = self._update_object(features, on_host, propagated, channel, state)
            if (soft_mask > 0.5).any():
                state.last_mask = soft_mask > 0.5
            if soft_mask is not propagated:
                judged = soft_masks.copy() if judged is soft_masks else judged
                judged[channel] = soft_mask
        for channel, state in objects:
            if state.search_memory is not None:
                state.search_memory.add_frame(features, judged)
            full_view = (judged[channel] > 0.5).sum() >= self._settings.full_view_area * state.baseline_area
            if not state.occluded and full_view:
                state.recent_views.append((Appearance.of(on_host, judged[channel]), on_host, judged))
        return judged

    def _update_object(
        self, query: Features, features: np.ndarray, soft_mask: np.ndarray, channel: int, state: ObjectState
    ) -> np.ndarray:
        """Return one object's soft mask; query: the features [C, h, w] where the backend has them."""
        if state.search_memory is not None:
            soft_mask = self._search(query, features, channel, state)
        elif not state.disconnected:
            soft_mask = self._without_spurious(features, soft_mask, state)
        similarity, area = self._appearance_similarity(features, soft_mask, state)
        settings = self._settings
        if state.occluded:
            state.occluded = not self._is_redetected(state, similarity, area)
            state.frames_since_redetection = 0
        elif similarity < settings.occluded_below * state.baseline_similarity or not self._is_plausible(
            state, area, settings.min_visible_area
        ):
            state.search_memory, state.frames_since_redetection = self._new_search_memory(state), 0
            soft_mask = self._search(query, features, channel, state)
            similarity, area = self._appearance_similarity(features, soft_mask, state)
            if not self._is_redetected(state, similarity, area):
                state.occluded = True
                return np.zeros_like(soft_mask)
        else:
            state.frames_since_redetection += 1
            if state.frames_since_redetection >= self._memory_length:
                state.search_memory = None
        if not state.occluded:
            baseline = state.baseline_similarity
            state.relative_similarity = min(1.0, similarity / baseline) if baseline else 1.0
            state.baseline_similarity += (settings.ema_rate if baseline else 1.0) * (similarity - baseline)
            # A partly hidden object is as large as before.
            if state.search_memory is None and area >= settings.full_view_area * state.baseline_area:
                state.baseline_area += settings.ema_rate * (area - state.baseline_area)
        return soft_mask

    def _is_redetected(self, state: ObjectState, similarity: float, area: int) -> bool:
        settings = self._settings
        enough = similarity >= settings.redetect_above * state.baseline_similarity
        return enough and self._is_plausible(state, area, settings.redetect_area)

    def _is_plausible(self, state: ObjectState, area: int, least: float) -> bool:
        """Check that an area in cells is not below a share of the baseline, and does not suddenly exceed it."""
        most = max(SMALL_AREA, self._settings.max_visible_area * state.baseline_area)
        return max(2, least * state.baseline_area) <= area <= most

    def _search(self, query: Features, features: np.ndarray, channel: int, state: ObjectState) -> np.ndarray:
        """Return the object's soft mask [h, w], propagated from its search memory."""
        memory = state.search_memory
        assert memory is not None
        soft_mask = self._backend.propagate(query, memory, SearchPlan.of(memory.references, self._search_params))[
            channel
        ]
        return soft_mask if state.disconnected else self._without_spurious(features, soft_mask, state)

    def _new_search_memory(self, state: ObjectState) -> Memory:
        """Return a memory of the annotated frame and two recent full views."""
        views = [(features, soft_masks) for _, features, soft_masks in state.recent_views] or [self._annotated]
        soft_masks = self._annotated[1]
        cells = soft_masks.shape[1], soft_masks.shape[2]
        memory = self._backend.new_memory(self._memory_settings, len(soft_masks), cells)
        for frame in (self._annotated, views[0], views[-1]):
            memory.add_frame(*frame)
        return memory

    def _appearance_similarity(
        self, features: np.ndarray, soft_mask: np.ndarray, state: ObjectState
    ) -> tuple[float, int]:
        """Return the appearance similarity of a soft mask [h, w] and its area in cells."""
        cells = np.flatnonzero(soft_mask > 0.5)
        if len(cells) < 2:
            return 0.0, len(cells)
        assert state.reference_appearance is not None
        views = [view[0] for view in list(state.recent_views)[:: max(1, len(state.recent_views) - 1)]]
        known = [state.reference_appearance, *views]
        appearance = Appearance(
            np.concatenate([one.foreground for one in known], 1), np.concatenate([one.surroundings for one in known], 1)
        )
        similarity, share = appearance.similarity(features, cells)
        return similarity * min(1.0, share / self._settings.min_foreground_share), len(cells)

    def _candidate_components(self, soft_mask: np.ndarray, state: ObjectState) -> tuple[np.ndarray, list[int]]:
        """Return the mask's components by number [h, w], 0 between them, and the numbers of those that may be spurious.

        The main component is the one that overlaps the previous mask most, not the largest. A large component that
        overlaps it as well is no candidate. A hidden object may reappear anywhere: its main component is the largest.
        """
        gap = self._settings.min_component_gap
        kernel = np.ones((2 * gap + 1, 2 * gap + 1), np.uint8)
        mask = soft_mask > 0.5
        count, component = cv2.connectedComponents(cv2.dilate(mask.astype(np.uint8), kernel), connectivity=8)
        if count <= 2:  # one of them is the background
            return component, []
        assert state.last_mask is not None
        previous = cv2.dilate(state.last_mask.astype(np.uint8), kernel) > 0
        areas, overlaps = (np.bincount(component[cells], minlength=count) for cells in (mask, mask & previous))
        if state.occluded or not overlaps.any():
            overlaps = areas
        main = overlaps.argmax()
        min_area = self._settings.min_component_area * areas[main]
        candidates = [
            number
            for number in range(1, count)
            if number != main and (areas[number] < min_area or not overlaps[number])
        ]
        return component, candidates

    def _without_spurious(self, features: np.ndarray, soft_mask: np.ndarray, state: ObjectState) -> np.ndarray:
        """Return the soft mask [h, w] with its spurious components set to 0."""
        component, candidates = self._candidate_components(soft_mask, state)
        spurious = self._spurious(features, soft_mask > 0.5, component, candidates, state) if candidates else []
        if not spurious:
            return soft_mask
        removed = np.isin(component, spurious)
        # The soft border of a component goes with it, unless it belongs to another component.
        border = cv2.dilate(removed.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        return np.where(border & (removed | (component == 0)), np.float32(0), soft_mask)

    def _spurious(
        self, features: np.ndarray, mask: np.ndarray, component: np.ndarray, candidates: list[int], state: ObjectState
    ) -> list[int]:
        """Return the candidates that are far from the main component, or do not resemble the annotated object."""
        assert state.reference_appearance is not None
        settings, reference = self._settings, state.reference_appearance
        others = mask & ~np.isin(component, candidates)
        largest = mask & (component == np.bincount(component[others]).argmax())
        min_similarity = settings.min_component_similarity * reference.similarity(features, np.flatnonzero(largest))[0]
        max_distance = settings.max_component_distance * np.sqrt(state.baseline_area)
        distance = cv2.distanceTransform((~others).astype(np.uint8), cv2.DIST_L2, 5)
        spurious = []
        for number in candidates:
            cells = np.flatnonzero(mask & (component == number))
            similarity, share = reference.similarity(features, cells)
            if (
                similarity < min_similarity
                or share < settings.min_component_foreground_share
                or distance.flat[cells].min() > max_distance
            ):
                spurious.append(number)
        return spurious


def _sampled(features: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return unit-length features [C, n] of cells of [C, h, w], evenly thinned to at most MAX_SAMPLES."""
    return unit_features(features, thinned(cells, MAX_SAMPLES))
