"""The tracker: give it a frame with objects, then frame after frame; the loop belongs to the caller.

Each frame is encoded once. Its soft labels are copied from the memory: the frame the objects were given on and the
last few frames with the labels found there (paper, section 3.4; the memory is its future work). Objects given on one
frame form a group with a memory of its own, so that adding, correcting or removing an object cannot change another.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.backends.base import Backend, Features, Memory
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.edge_refinement import follow_edges
from corrflow.runtime.tracking.geometry import Geometry, Upsampler, indexed_mask
from corrflow.runtime.tracking.occlusion import ObjectState, OcclusionMonitor, OcclusionSettings
from corrflow.runtime.tracking.window_motion import Followed, WindowMotion
from corrflow.runtime.types import (
    LOST_POINT,
    KeypointsObject,
    MaskObject,
    ObjectResult,
    TrackedObject,
    Tracks,
    _size,
    check_objects,
)

logger = logging.getLogger("corrflow")

# Label channels come in blocks of one size, so that the arithmetic of a channel does not depend on its neighbours.
CHANNEL_BLOCK = 8


@dataclass
class _Member:
    """An object and its channels in its group's labels; one that was removed goes on there, unseen (see _Group)."""

    given: TrackedObject
    channels: slice
    presence: ObjectState = field(default_factory=ObjectState)
    removed: bool = False


@dataclass
class _Group:
    """Objects given on the same frame, and the memory they are copied from.

    They have windows in common, which follow them all: one that was removed is judged and followed as before until none
    is left, so that the rest is searched for as if it were still there.
    """

    members: list[_Member]
    memory: Memory
    watch: OcclusionMonitor | None = None
    follower: WindowMotion | None = None

    @property
    def tracked(self) -> list[_Member]:
        """Those that were not removed."""
        return [member for member in self.members if not member.removed]


class Tracker:
    """Tracks masks and keypoints through a stream of frames of one size.

    settings: the artifact's own unless given; radius, dilation, top_k and temperature may differ from those built into
    propagate.onnx where the back end says so. Raises InputError where it does not.
    presence: when mask objects are taken for lost and found again; None: never, their labels stand as they are
    """

    def __init__(
        self,
        backend: Backend,
        settings: TrackingSettings | None = None,
        presence: OcclusionSettings | None = None,
    ) -> None:
        self.backend, self.presence = backend, presence
        self.settings = settings or backend.artifact.settings
        built_in = backend.artifact.settings.attributes
        if not backend.supports_runtime_search_params and (
            self.settings.attributes != built_in or self.settings.dilate_past_age
        ):
            widened = (
                f" with dilation past age {self.settings.dilate_past_age}" if self.settings.dilate_past_age else ""
            )
            raise InputError(
                f"expected the settings built into {backend.artifact.name} ({built_in}), got"
                f" {self.settings.attributes}{widened}; build the fused kernel, or export an artifact with those"
                " settings"
            )
        if self.settings.move_windows and not backend.supports_window_offsets:
            logger.info(
                "%s: windows stay where they are, and do not follow the objects; export %s again for ones that move",
                backend.name,
                backend.artifact.name,
            )
        self.reset()

    def reset(self) -> None:
        """Forget all objects and frames."""
        self._groups: list[_Group] = []
        self._geometry: Geometry | None = None
        self._upsample: Upsampler | None = None
        self._features: Features = None

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects being tracked, ascending."""
        return tuple(sorted(member.given.id for group in self._groups for member in group.tracked))

    def start(self, frame: np.ndarray, objects: Sequence[TrackedObject]) -> Tracks:
        """Begin anew with a frame [H, W, 3] uint8, BGR, and the objects on it; returns them as they were given.

        Raises InputError for a frame or an object that does not fit.
        """
        height, width = self._check_frame(frame)
        geometry = Geometry.of((height, width), self.settings.short_side)
        check_objects(objects, (height, width), ())
        self.reset()
        self._geometry, self._upsample = geometry, geometry.upsampler()
        self._features = self.backend.encode(frame, geometry.working)
        self._join(objects)
        return self._given(objects)

    def step(self, frame: np.ndarray) -> Tracks:
        """Track every object into the next frame [H, W, 3] uint8, BGR.

        Raises CorrflowError where the size is not that of the first frame, InputError before `start`.
        """
        geometry, upsample = self._started()
        soft = self.soft_step(frame)
        ids, maps, tracks = [], [], []
        for group in self._groups:
            for member in group.tracked:
                own = soft[member.given.id]
                if member.presence.lost:
                    tracks.append(ObjectResult(member.given.id, member.given.name, 0.0, False))
                elif isinstance(member.given, MaskObject):
                    ids.append(member.given.id)
                    maps.append(self._outlined(upsample(own)[0], frame))
                    track = mask_track(member.given, maps[-1])
                    tracks.append(replace(track, confidence=track.confidence * member.presence.share))
                else:
                    tracks.append(keypoints_track(member.given, *geometry.cells_to_points(own)))
        return tracks_of(geometry, ids, maps, tracks)

    def _outlined(self, label: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """A mask's label [H, W] float32 on the pixels of its frame, with outlines along the frame's edges where the
        settings say so. Frames on a device are not looked at, which would be to copy them here."""
        if not isinstance(frame, np.ndarray):
            return label
        geometry, _ = self._started()
        return follow_edges(label, frame, self.settings.refine_radius, geometry.scale)

    def soft_step(self, frame: np.ndarray) -> dict[int, np.ndarray]:
        """As `step`, but what it reads its result from: by id, soft labels [n, h, w] float32, 0..1, on cells.

        n is 1 for a mask and the number of points otherwise. A lost object's are 0, whatever is remembered of it.
        """
        geometry, _ = self._started()
        size = self._check_frame(frame)
        if size != geometry.frame:
            raise CorrflowError(
                f"expected frames of {_size(geometry.frame)} as at the start, got {_size(size)};"
                " start again with objects on a frame of the new size"
            )
        self._features = self.backend.encode(frame, geometry.working)
        soft = {}
        for group in self._groups:
            memory = group.memory
            if group.follower is not None:
                memory = memory.aimed(group.follower.aims(memory.frames))
            labels = self.backend.propagate(self._features, memory)
            if group.watch is not None:
                labels = group.watch.judge(self._features, labels, _watched(group.members))
            group.memory.add_frame(self._features, self._remembered(labels, group.members))
            if group.follower is not None:
                group.follower.see(labels)
            for member in group.tracked:
                own = labels[member.channels]
                soft[member.given.id] = np.zeros_like(own) if member.presence.lost else own
        return soft

    def add(self, objects: Sequence[TrackedObject]) -> Tracks:
        """Track further objects, given on the frame last seen; returns them as they were given."""
        geometry, _ = self._started()
        check_objects(objects, geometry.frame, self.object_ids)
        self._join(objects)
        return self._given(objects)

    def correct(self, given: TrackedObject) -> Tracks:
        """Replace an object by what it truly looks like on the frame last seen."""
        geometry, _ = self._started()
        if given.id not in self.object_ids:
            raise InputError(f"expected an object among {list(self.object_ids)} to correct, got {given.id}")
        check_objects([given], geometry.frame, ())
        self.remove(given.id)
        return self.add([given])

    def remove(self, object_id: int) -> None:
        """Stop tracking an object; raises InputError for one that is not tracked."""
        for group in self._groups:
            for member in group.tracked:
                if member.given.id == object_id:
                    member.removed = True
                    self._groups = [group for group in self._groups if group.tracked]
                    return
        raise InputError(f"expected an object among {list(self.object_ids)} to remove, got {object_id}")

    def _check_frame(self, frame: Any) -> tuple[int, int]:
        """(height, width) of a frame. One on the device is for the back end to check further."""
        on_device = getattr(frame, "__cuda_array_interface__", None)
        if on_device is not None and self.backend.device_frames and len(on_device["shape"]) == 3:
            return tuple(on_device["shape"][:2])
        _check_host_frame(frame)
        return frame.shape[:2]

    def rename(self, object_id: int, name: str) -> None:
        """Call an object something else; raises InputError for one that is not tracked."""
        for member in (member for group in self._groups for member in group.tracked):
            if member.given.id == object_id:
                member.given = replace(member.given, name=name)
                return
        raise InputError(f"expected an object among {list(self.object_ids)} to rename, got {object_id}")

    def merge(self, other: Tracker) -> None:
        """Take over another tracker's objects with their memory; its last frame has to be this one's.

        The back end and the settings have to be the same. Raises InputError where sizes or ids do not fit.
        """
        geometry, _ = self._started()
        theirs, _ = other._started()
        if (
            geometry != theirs
            or other.backend is not self.backend
            or other.settings != self.settings
            or other.presence != self.presence
        ):
            raise InputError("expected a tracker of the same frames, back end and settings, got another")
        if common := set(self.object_ids) & set(other.object_ids):
            raise InputError(f"expected every object to have an id of its own, got {sorted(common)} twice")
        self._groups += other._groups
        other.reset()

    def _started(self) -> tuple[Geometry, Upsampler]:
        if self._geometry is None or self._upsample is None:
            raise InputError("expected start(frame, objects) before the first step")
        return self._geometry, self._upsample

    def _join(self, objects: Sequence[TrackedObject]) -> None:
        """Make a group of these objects on the current frame, with a memory that begins there."""
        geometry, _ = self._started()
        members, maps = [], []
        for given in objects:
            own = (
                geometry.mask_to_cells(given.mask)[None]
                if isinstance(given, MaskObject)
                else geometry.points_to_cells(given.points)
            )
            first = sum(len(part) for part in maps)
            members.append(_Member(given, slice(first, first + len(own))))
            maps.append(own)
        if not members:
            return
        used = sum(len(part) for part in maps)
        labels = np.zeros((-(-used // CHANNEL_BLOCK) * CHANNEL_BLOCK, *geometry.cells), np.float32)
        labels[:used] = np.concatenate(maps)
        memory = self.backend.new_memory(self.settings, len(labels), geometry.cells)
        memory.add_frame(self._features, self._remembered(labels, members, given=True))
        watch = None
        if self.presence is not None and any(isinstance(given, MaskObject) for given in objects):
            watch = OcclusionMonitor(
                self.backend, self.settings, self.presence, self._features, labels, _watched(members)
            )
        follower = None
        if self.settings.move_windows and self.backend.supports_window_offsets:
            followed = [Followed(one.channels, isinstance(one.given, KeypointsObject)) for one in members]
            follower = WindowMotion(self.settings, followed, labels)
        self._groups.append(_Group(members, memory, watch, follower))

    def _remembered(self, labels: np.ndarray, members: list[_Member], given: bool = False) -> np.ndarray:
        """What the memory gets of labels [N, h, w]: masks as they are or as 0 and 1, points half as bumps drawn anew.

        given: on the frame the objects were given on, where the points' labels are such bumps already

        A point's label is a mixture of shifted bumps, which spreads from frame to frame until its peak means nothing.
        The other half keeps what else the point may be, and its place between cells.
        """
        geometry, _ = self._started()
        kept = labels
        for member in members:
            own = labels[member.channels]
            if isinstance(member.given, KeypointsObject):
                if given:
                    continue
                points, heights = geometry.cells_to_points(own)
                seen = heights > LOST_POINT
                drawn = own.copy()
                drawn[seen] = (own[seen] + geometry.points_to_cells(points[seen])) / 2
            elif self.settings.hard_labels:
                drawn = (own > 0.5).astype(np.float32)
            else:
                continue
            kept = labels.copy() if kept is labels else kept
            kept[member.channels] = drawn
        return kept

    def _given(self, objects: Sequence[TrackedObject]) -> Tracks:
        """The objects as tracks of the frame they are given on."""
        geometry, _ = self._started()
        masks = [given for given in objects if isinstance(given, MaskObject)]
        maps = [given.mask.astype(np.float32) for given in masks]
        tracks = [
            mask_track(given, given.mask.astype(np.float32))
            if isinstance(given, MaskObject)
            else keypoints_track(given, given.points.astype(np.float32), np.ones(len(given.points), np.float32))
            for given in objects
        ]
        mask = indexed_mask([given.id for given in masks], maps) if maps else np.zeros(geometry.frame, np.uint8)
        return Tracks(mask, tuple(sorted(tracks, key=lambda track: track.id)))


def _watched(members: Sequence[_Member]) -> list[tuple[int, ObjectState]]:
    """The channel of each mask object and what is known about it."""
    return [(one.channels.start, one.presence) for one in members if isinstance(one.given, MaskObject)]


def tracks_of(
    geometry: Geometry, ids: Sequence[int], maps: Sequence[np.ndarray], tracks: Sequence[ObjectResult]
) -> Tracks:
    """The result of a frame from the mask objects' ids and labels [H, W] and every object's track."""
    mask = indexed_mask(ids, maps) if maps else np.zeros(geometry.frame, np.uint8)
    return Tracks(mask, tuple(sorted(tracks, key=lambda track: track.id)))


def mask_track(given: MaskObject, label: np.ndarray) -> ObjectResult:
    """The object with its soft label [H, W] float32 at the frame's size."""
    own = label > 0.5
    columns, rows = np.flatnonzero(own.any(0)), np.flatnonzero(own.any(1))
    if not len(rows):
        return ObjectResult(given.id, given.name, 0.0, False)
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return ObjectResult(given.id, given.name, float(label[own].mean(dtype=np.float64)), True, box)


def keypoints_track(given: KeypointsObject, points: np.ndarray, heights: np.ndarray) -> ObjectResult:
    """The object at points [P, 2] float32 in pixels, with the heights [P] of their soft labels."""
    confidence = heights.clip(0, 1).astype(np.float32)
    return ObjectResult(
        given.id,
        given.name,
        float(confidence.mean()),
        bool((confidence > LOST_POINT).any()),
        points=points,
        point_names=given.point_names,
        point_confidence=confidence,
    )


def _check_host_frame(frame: np.ndarray) -> None:
    if not (isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8):
        got = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise InputError(f"expected a frame [H, W, 3] uint8, BGR, got {got}")
    if 0 in frame.shape:
        raise InputError(f"expected a frame with pixels, got {list(frame.shape)}")
