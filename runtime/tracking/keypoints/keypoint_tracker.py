"""Tracker of one object's points, in a crop around them that moves, turns and scales with the object.

The crop shows the object as on the frame of its first labels, so that its appearance there stays comparable whichever
way the object turns. Labels are copied within the crop (section 3.4 of the paper): they say where each point is. Then
the pictures say exactly where, see refinement.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from corrflow.runtime.backends.base import Backend, Memory
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings, last_frames
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.keypoints.confidence import Evidence, point_confidence
from corrflow.runtime.tracking.keypoints.crop import Crop
from corrflow.runtime.tracking.keypoints.patch_matching import FINE_RADIUS, sample_patches, sample_turned_patches
from corrflow.runtime.tracking.keypoints.refinement import (
    LabelledPicture,
    Refined,
    best_correlation,
    refine_in_crop,
    refine_in_video,
)
from corrflow.runtime.tracking.keypoints.similarity import apply, compose, fit_similarity, invert
from corrflow.runtime.tracking.parts import whole_blocks
from corrflow.runtime.types import MIN_POINT_CONFIDENCE

MAX_VIEWS = 8
"""Labelled frames that are kept."""
SEARCHED_VIEWS = 5
"""Labelled frames that a frame is compared with: those that look most like it."""
SHAPE_SPREAD = 0.3
"""Standard deviation of a point around its labelled place in the crop, in longest sides of the points' box."""
MIN_PEAK = 0.05
"""Peak of a copied label from which the point has a place."""
MIN_FILLED_PEAK = 0.8
"""Peak of a label from which it is filled in on a labelled frame that lacks it; less sure ones cost accuracy."""
FINE_SCALE = 0.75
"""Scale of the crop below which points are refined again at the resolution of the video."""
RECENT_FRAMES = 2
"""Frames in memory besides the labelled ones; more cost time and make the points drift."""
_MIN_SPREAD = 4.0  # cells


@dataclass(frozen=True)
class View:
    """Labelled frame as the crop shows it; features: [C, h, w] float32."""

    features: np.ndarray
    labelled: LabelledPicture


class KeypointTracker:
    """Tracker of the points of one body through frames of one size. Memory and time per frame do not grow.

    Points [P, 2] are NaN for those without a label. A point without any label so far is not tracked.

    evidence: what is known of each point on the newest frame; None before the first step
    """

    evidence: Evidence | None = None

    def __init__(
        self,
        backend: Backend,
        settings: TrackingSettings,
        image: np.ndarray,
        points: np.ndarray,
        others: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ) -> None:
        """Start at a labelled frame.

        backend:  on the CPU; its frames may have any size
        settings: of the search; frames of the memory are the tracker's own
        image:    [H, W, 3] uint8, BGR
        points:   [P, 2], (x, y) in pixels, at least one of them labelled
        others:   images and points of further labelled frames, from any time
        """
        self._backend, self._search = backend, settings.attributes
        self._in_first = points.astype(np.float64)  # places on the frame that the crop is taken from
        self._crop = Crop.around(points[_is_known(points)].astype(np.float64), (image.shape[0], image.shape[1]))
        self._geometry = Geometry.of(self._crop.size, 0, backend.stride)
        # Only the frames of these settings count: those of a memory.
        self._settings = replace(
            settings,
            recent_offsets=last_frames(RECENT_FRAMES),
            radius=settings.radius[:1],
            dilation=settings.dilation[:1],
            dilate_past_age=0,
        )
        self._channels = whole_blocks(len(points))
        self._pose, self._points, self._views = np.eye(2, 3), np.full(points.shape, np.nan), list[View]()
        self.restart(image, points, others)

    def restart(
        self, image: np.ndarray, points: np.ndarray, others: Sequence[tuple[np.ndarray, np.ndarray]] | None = None
    ) -> None:
        """Take labels of the newest frame; points without one go on from where they are.

        image:  [H, W, 3] uint8, BGR
        points: [P, 2], (x, y) in pixels
        others: further labelled frames in place of those known so far; None keeps those
        """
        views = self._views if others is None else [self._view(*other) for other in others[: MAX_VIEWS - 1]]
        self._views = [*views, self._view(image, points)][-MAX_VIEWS:]
        self._points = np.where(_is_known(points)[:, None], points, self._points)
        self._last, self._pose = _grey(image), self._pose_of(self._points)
        self._places, self._extent = self._labelled_places()
        spread = max(_MIN_SPREAD, SHAPE_SPREAD * self._extent / self._geometry.stride)
        self._shape_prior = self._geometry.points_to_cells(self._places, spread)
        frames = [(view.features, self._label_maps(view.labelled.points)) for view in self._views]
        known = np.stack([view.labelled.has_label for view in self._views])
        if (_is_known(self._points) & ~_is_known(points)).any():
            to_crop = compose(self._crop.transform, invert(self._pose))
            features = self._encode(self._crop.cut(image, to_crop))
            frames.append((features, self._label_maps(apply(to_crop, self._points))))
            # Points of no view have no other label than the place that they were tracked to.
            known = np.vstack([known, _is_known(self._points) & ~known.any(0)])
        self._copy_missing_labels(frames, known)
        self._memory = self._memory_of(frames, len(self._views))

    def stop(self, columns: Sequence[int]) -> None:
        """Track these points no longer."""
        self._points[list(columns)] = np.nan

    def step(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Track into the next frame [H, W, 3] uint8, BGR.

        Returns points [P, 2] float64 in pixels, and the probability [P] float32 that each of them is right.
        """
        to_crop = compose(self._crop.transform, invert(self._pose))  # where the object was last
        shown, grey = self._crop.cut(image, to_crop), _grey(image)
        picture, features = _grey(shown), self._encode(shown)
        views = self._similar_views(features)
        labelled = [self._views[index].labelled for index in views]
        copied, peaks, heatmaps = self._copy(features, views)
        is_tracked = _is_known(self._points)
        last_points = np.where(is_tracked[:, None], self._points, apply(invert(to_crop), copied))
        last = self._crop.cut(self._last, to_crop), apply(to_crop, last_points)
        refined = refine_in_crop(picture, copied, last, labelled)
        points = apply(invert(to_crop), refined.points)
        if self._crop.scale < FINE_SCALE:
            in_frame = Refined(points, refined.label, refined.from_last)
            points = refine_in_video(grey, in_frame, (self._last, last_points), labelled, self._pose[:, :2])
        in_crop = apply(to_crop, points)
        correlations = best_correlation(picture, in_crop, [view.labelled for view in self._views])
        displacement = np.linalg.norm(in_crop - self._places, axis=1) / self._extent
        self.evidence = Evidence(peaks, correlations, refined.label >= 0, displacement)
        confidence = point_confidence(self.evidence)
        confidence[~is_tracked | ~_is_inside(points, grey.shape)] = 0
        points[~is_tracked] = np.nan
        self._last, self._points = grey, points
        # Where no point is in sight, places are noise: the crop waits, and nothing is learned from the frame.
        if confidence.max() >= MIN_POINT_CONFIDENCE:
            self._remember(features, heatmaps, apply(to_crop, points), peaks)
            self._pose = self._pose_of(points, peaks.clip(0, 1).astype(np.float64))
        return points, confidence.astype(np.float32)

    def _pose_of(self, points: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Return where the body is, from points [P, 2] on a frame: the transform from the crop's own frame.

        Points that had no place there get the one that they have now.
        """
        known = _is_known(points)
        common = known & _is_known(self._in_first)
        if not common.any():
            return self._pose
        weights = np.ones(len(points)) if weights is None else weights
        pose = fit_similarity(self._in_first[common], points[common].astype(np.float64), weights[common])
        new = known & ~common
        self._in_first[new] = apply(invert(pose), points[new].astype(np.float64))
        return pose

    def _view(self, image: np.ndarray, points: np.ndarray) -> View:
        """Return the view of a labelled frame with points [P, 2]."""
        pose, grey = self._pose_of(points), _grey(image)
        to_crop = compose(self._crop.transform, invert(pose))
        shown, in_crop = self._crop.cut(image, to_crop), apply(to_crop, points.astype(np.float64))
        picture = _grey(shown)
        fine = sample_turned_patches(grey, points.astype(np.float64), pose[:, :2], FINE_RADIUS)
        return View(self._encode(shown), LabelledPicture(in_crop, picture, sample_patches(picture, in_crop), fine))

    def _encode(self, shown: np.ndarray) -> np.ndarray:
        return np.asarray(self._backend.encode(shown))

    def _labelled_places(self) -> tuple[np.ndarray, float]:
        """Return the mean labelled place of each point in the crop, [P, 2], and the extent of the body."""
        places = np.stack([view.labelled.points for view in self._views])
        known = _is_known(places)
        mean = np.where(known[..., None], places, 0).sum(0) / np.maximum(known.sum(0), 1)[:, None]
        # Further labels may have replaced all those of a point.
        mean = np.where(
            np.any(known, axis=0)[:, None], mean, np.nan_to_num(apply(self._crop.transform, self._in_first))
        )
        labelled = self._in_first[_is_known(self._in_first)]
        # A single point has no extent of its own, but the crop has room for a body around it.
        return mean, max(float(np.ptp(labelled, axis=0).max()) * self._crop.scale, min(self._crop.size) / 4)

    def _label_maps(self, points: np.ndarray) -> np.ndarray:
        """Draw the label of each point; the map of a point without one is empty, as are those up to a whole block."""
        maps = np.zeros((self._channels, *self._geometry.cells), np.float32)
        known = np.flatnonzero(_is_known(points))
        maps[known] = self._geometry.points_to_cells(points[known])
        return maps

    def _copy_missing_labels(self, frames: list[tuple[np.ndarray, np.ndarray]], known: np.ndarray) -> None:
        """Fill in labels that views lack, copied from the frames that have them: an empty label says "not here".

        frames: features and labels of the views, then of any other frame
        known:  [frames, P] bool, True where a frame has a label to copy
        """
        for pattern in np.unique(known.T, axis=0):
            columns, sources = np.flatnonzero((pattern == known.T).all(1)), np.flatnonzero(pattern)
            lacking = np.flatnonzero(~pattern[: len(self._views)])
            if not len(sources) or not len(lacking):
                continue
            memory = self._memory_of([frames[index] for index in sources], len(sources))
            plan = SearchPlan.of(memory.references, self._search)
            for features, maps in (frames[index] for index in lacking):
                copied = self._backend.propagate(features, memory, plan)[: len(self._points)] * self._shape_prior
                sure = columns[copied[columns].max((1, 2)) > MIN_FILLED_PEAK]
                maps[sure] = copied[sure]

    def _memory_of(self, frames: Sequence[tuple[np.ndarray, np.ndarray]], num_permanent: int) -> Memory:
        """Return a memory with the features and labels of frames, of which the first ones stay."""
        settings = replace(self._settings, permanent_frames=tuple(range(num_permanent)))
        memory = self._backend.new_memory(settings, self._channels, self._geometry.cells)
        for features, maps in frames:
            memory.add_frame(features, maps)
        return memory

    def _similar_views(self, features: np.ndarray) -> list[int]:
        """Return the views that look most like a frame, the most similar first."""
        similarity = [float(np.vdot(view.features, features)) for view in self._views]
        return sorted(range(len(similarity)), key=similarity.__getitem__, reverse=True)[:SEARCHED_VIEWS]

    def _copy(self, features: np.ndarray, views: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Copy the labels from memory: points [P, 2] in the crop, peaks [P] and soft masks [P, h, w]."""
        references = [one for one in self._memory.references if one.frame >= len(self._views) or one.frame in views]
        plan = SearchPlan.of(references, self._search)
        heatmaps = self._backend.propagate(features, self._memory, plan)[: len(self._points)] * self._shape_prior
        points, peaks = self._geometry.cells_to_points(heatmaps)
        return points.astype(np.float64), peaks, heatmaps

    def _remember(self, features: np.ndarray, heatmaps: np.ndarray, points: np.ndarray, peaks: np.ndarray) -> None:
        """Add the frame to the memory with its labels: half as copied, half drawn at the refined points.

        Copied labels spread from frame to frame until their peak is meaningless; they keep the alternatives.
        """
        maps = self._label_maps(points)
        drawn = maps[: len(points)]
        drawn[:] = np.where((peaks > MIN_PEAK)[:, None, None], (heatmaps + drawn) / 2, heatmaps)
        self._memory.add_frame(features, maps)


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def _is_known(points: np.ndarray) -> np.ndarray:
    """Return [..., P] bool: True for points [..., P, 2] that are not NaN."""
    return np.all(np.isfinite(points), axis=-1)


def _is_inside(points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return [P] bool: True for points [P, 2] in a picture of (height, width)."""
    return np.all((points >= -0.5) & (points <= np.array(size[1::-1]) - 0.5), axis=1)
