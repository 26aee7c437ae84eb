"""The tracker: prompt it with objects on one frame, then step it frame by frame; the loop belongs to the caller.

Each frame is encoded once. Its soft masks are copied from memory: the annotated frame and the last few, with masks.
The paper (section 3.4) names such a memory as future work. Objects prompted on one frame form a group with a memory of
its own, so that adding, correcting or removing an object cannot change another.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.base import Backend, Features, Memory
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND, TrackingSettings, with_settings
from corrflow.runtime.tracking.edge_refinement import refine_edges
from corrflow.runtime.tracking.geometry import Geometry, Upsampler
from corrflow.runtime.tracking.occlusion import (
    ObjectState,
    OcclusionMonitor,
    OcclusionSettings,
    occlusion_settings_for,
)
from corrflow.runtime.tracking.results import frame_result, keypoints_result, mask_result, prompt_result
from corrflow.runtime.tracking.window_motion import ObjectChannels, WindowMotion
from corrflow.runtime.types import (
    MIN_POINT_PEAK,
    Frame,
    FrameResult,
    KeypointsObject,
    MaskObject,
    ObjectResult,
    TrackedObject,
    check_objects,
    size_text,
)

logger = logging.getLogger("corrflow")

# Mask channels come in blocks of one size, so that the arithmetic of a channel does not depend on its neighbours.
CHANNEL_BLOCK = 8


@dataclass
class _Member:
    """Object of a group, with its channels in the group's soft masks; see _Group for removed objects."""

    prompt: TrackedObject
    channels: slice
    state: ObjectState = field(default_factory=ObjectState)
    removed: bool = False


@dataclass
class _Group:
    """Objects prompted on the same frame, and the memory that their masks are copied from.

    Objects of a group share search windows. A removed object keeps being tracked internally until its group is empty,
    so that removing it does not change the others.
    """

    members: list[_Member]
    memory: Memory
    occlusion: OcclusionMonitor | None = None
    motion: WindowMotion | None = None

    @property
    def tracked(self) -> list[_Member]:
        """Members that were not removed."""
        return [member for member in self.members if not member.removed]

    @property
    def states(self) -> list[tuple[int, ObjectState]]:
        """Channel and state of each mask object."""
        return [(one.channels.start, one.state) for one in self.members if isinstance(one.prompt, MaskObject)]


class Tracker:
    """Tracker of masks and keypoints through a stream of frames of one size.

    `Tracker.from_model` opens a model with its backend and is what applications use; the constructor takes a backend
    that is open already. Use the tracker as a context manager, or call `close`.
    """

    def __init__(
        self,
        backend: Backend,
        settings: TrackingSettings | None = None,
        occlusion: OcclusionSettings | None = None,
    ) -> None:
        """Track with an open backend.

        settings:  the model's own unless given; the search parameters may differ from those built into propagate.onnx
                   where the backend supports it
        occlusion: thresholds of occlusion handling; None turns it off

        Raises InputError for search parameters that the backend does not support.
        """
        self.backend, self.occlusion = backend, occlusion
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
                "%s: search windows do not follow the objects; export %s again for windows that move",
                backend.name,
                backend.artifact.name,
            )
        self.reset()

    @classmethod
    def from_model(
        cls,
        model: str | PathLike[str] | None = None,
        backend: str = "auto",
        *,
        short_side: int | None = None,
        memory_frames: int | None = None,
        redetect: bool = True,
        threads: int = 0,
    ) -> Tracker:
        """Open a model and return a tracker on it.

        model:         name of a bundled model ("quarter", "fast", "fast-int8"), or path of an artifact folder or zip;
                       None for "quarter"
        backend:       "auto", "tensorrt", "onnxruntime-cuda", "onnxruntime" or "onnx-function"
        short_side:    short side in pixels that frames are resized to; 0 keeps their size; None takes the model's
        memory_frames: number of recent frames in memory; None takes the model's
        redetect:      detect occlusion, hide occluded objects and re-detect them
        threads:       CPU threads; 0 for one on each core

        Raises InputError for a model, a backend or a value that cannot be used.
        """
        if threads < 0:
            raise InputError(f"expected threads of 0 or more, got {threads}; 0 uses every core")
        artifact = load_artifact(resolve_model(model))
        settings = with_settings(artifact.settings, short_side, memory_frames)
        opened = open_backend(backend, artifact, threads)
        try:
            occlusion = occlusion_settings_for(opened, settings) if redetect else None
            if redetect and occlusion is None:
                logger.warning(
                    "%s: occlusion handling is off; it needs a model with the first frame alone as permanent frame, and"
                    " --memory-frames 3 or more (or --backend onnxruntime)",
                    opened.name,
                )
            return cls(opened, settings, occlusion)
        except BaseException:
            opened.close()
            raise

    def close(self) -> None:
        """Release the backend with everything that it holds."""
        self.backend.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def reset(self) -> None:
        """Forget all objects and frames."""
        self._groups: list[_Group] = []
        self._geometry: Geometry | None = None
        self._upsample: Upsampler | None = None
        self._features: Features = None
        self._frame: Frame | None = None
        self._num_frames = 0

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the tracked objects, ascending."""
        return tuple(sorted(member.prompt.id for group in self._groups for member in group.tracked))

    def start(self, frame: np.ndarray | Frame, objects: Sequence[TrackedObject]) -> FrameResult:
        """Begin anew with objects on a frame; return the objects as they were given.

        frame: [H, W, 3] uint8, BGR, or a Frame with such an image

        Raises InputError for a frame or an object that does not fit.
        """
        image = frame.image if isinstance(frame, Frame) else frame
        height, width = self._check_image(image)
        geometry = Geometry.of((height, width), self.settings.short_side)
        check_objects(objects, (height, width), ())
        self.reset()
        self._geometry, self._upsample = geometry, geometry.upsampler()
        self._frame = self._as_frame(frame)
        self._features = self.backend.encode(image, geometry.working)
        self._add_group(objects)
        return prompt_result(self._frame, geometry.frame, objects)

    def step(self, frame: np.ndarray | Frame) -> FrameResult:
        """Track every object into the next frame; frame: as for `start`.

        Raises CorrflowError for a size that is not the first frame's, InputError before `start`.
        """
        geometry, upsample = self._started()
        propagated = self.soft_step(frame)
        assert self._frame is not None
        ids, soft_masks, objects = [], [], []
        for group in self._groups:
            for member in group.tracked:
                prompt, own = member.prompt, propagated[member.prompt.id]
                if member.state.occluded:
                    objects.append(ObjectResult(prompt.id, prompt.name, 0.0, False))
                elif isinstance(prompt, MaskObject):
                    ids.append(prompt.id)
                    soft_masks.append(self._refined(upsample(own)[0], self._frame.image))
                    result = mask_result(prompt, soft_masks[-1])
                    objects.append(replace(result, confidence=result.confidence * member.state.relative_similarity))
                else:
                    objects.append(keypoints_result(prompt, *geometry.cells_to_points(own)))
        return frame_result(self._frame, geometry.frame, ids, soft_masks, objects)

    def _refined(self, soft_mask: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Move a soft mask [H, W] float32 to the image's edges, where the settings ask for it.

        Images on a device are left alone: looking at one would copy it to the host.
        """
        if not isinstance(image, np.ndarray):
            return soft_mask
        return refine_edges(soft_mask, image, self.settings.refine_radius, self._started()[0].scale)

    def soft_step(self, frame: np.ndarray | Frame) -> dict[int, np.ndarray]:
        """Track into the next frame as `step` does, and return soft masks [n, h, w] float32, 0..1, on cells, by id.

        n is 1 for a mask, otherwise the number of points. The masks of an occluded object are 0.
        """
        geometry, _ = self._started()
        image = frame.image if isinstance(frame, Frame) else frame
        size = self._check_image(image)
        if size != geometry.frame:
            raise CorrflowError(
                f"expected frames of {size_text(geometry.frame)} as at the start, got {size_text(size)};"
                " start again with objects on a frame of the new size"
            )
        self._frame = self._as_frame(frame)
        self._features = self.backend.encode(image, geometry.working)
        by_id = {}
        for group in self._groups:
            references = group.memory.references
            params = self.settings.attributes_for([reference.age for reference in references])
            offsets = group.motion.offsets(references) if group.motion is not None else None
            plan = SearchPlan.of(references, params, offsets)
            soft_masks = self.backend.propagate(self._features, group.memory, plan)
            if group.occlusion is not None:
                soft_masks = group.occlusion.update(self._features, soft_masks, group.states)
            group.memory.add_frame(self._features, self._stored(soft_masks, group.members))
            if group.motion is not None:
                group.motion.observe(soft_masks)
            for member in group.tracked:
                own = soft_masks[member.channels]
                by_id[member.prompt.id] = np.zeros_like(own) if member.state.occluded else own
        return by_id

    def add(self, objects: Sequence[TrackedObject]) -> FrameResult:
        """Track further objects, prompted on the last frame; return them as they were given."""
        geometry, _ = self._started()
        check_objects(objects, geometry.frame, self.object_ids)
        self._add_group(objects)
        assert self._frame is not None
        return prompt_result(self._frame, geometry.frame, objects)

    def correct(self, prompt: TrackedObject) -> FrameResult:
        """Replace an object by its true mask or points on the last frame; raises InputError for an unknown id."""
        geometry, _ = self._started()
        if prompt.id not in self.object_ids:
            raise InputError(f"expected an object among {list(self.object_ids)} to correct, got {prompt.id}")
        check_objects([prompt], geometry.frame, ())
        self.remove(prompt.id)
        return self.add([prompt])

    def remove(self, object_id: int) -> None:
        """Stop tracking an object; raises InputError for an id that is not tracked."""
        self._member(object_id, "remove").removed = True
        self._groups = [group for group in self._groups if group.tracked]

    def rename(self, object_id: int, name: str) -> None:
        """Give an object another name; raises InputError for an id that is not tracked."""
        member = self._member(object_id, "rename")
        member.prompt = replace(member.prompt, name=name)

    def merge(self, other: Tracker) -> None:
        """Merge another tracker into this one, including its memory; the other one is reset.

        Both must have processed the same last frame with the same backend and settings. Raises InputError for different
        sizes or settings, and for an id that both have.
        """
        geometry, _ = self._started()
        other_geometry, _ = other._started()
        if (
            geometry != other_geometry
            or other.backend is not self.backend
            or other.settings != self.settings
            or other.occlusion != self.occlusion
        ):
            raise InputError("expected a tracker of the same frames, backend and settings, got another")
        if common := set(self.object_ids) & set(other.object_ids):
            raise InputError(f"expected every object to have an id of its own, got {sorted(common)} twice")
        self._groups += other._groups
        other.reset()

    def _started(self) -> tuple[Geometry, Upsampler]:
        if self._geometry is None or self._upsample is None:
            raise InputError("expected start(frame, objects) before the first step")
        return self._geometry, self._upsample

    def _member(self, object_id: int, action: str) -> _Member:
        for group in self._groups:
            for member in group.tracked:
                if member.prompt.id == object_id:
                    return member
        raise InputError(f"expected an object among {list(self.object_ids)} to {action}, got {object_id}")

    def _as_frame(self, frame: np.ndarray | Frame) -> Frame:
        """Return the frame with its number, and its time at the nominal rate where the caller gave an image alone."""
        number = self._num_frames
        self._num_frames += 1
        if isinstance(frame, Frame):
            return frame
        return Frame(frame, number, number / float(NOMINAL_FRAMES_PER_SECOND), f"{number:05d}")

    def _check_image(self, image: Any) -> tuple[int, int]:
        """Return (height, width) of an image; the backend checks images on a device further."""
        on_device = getattr(image, "__cuda_array_interface__", None)
        if on_device is not None and self.backend.device_frames and len(on_device["shape"]) == 3:
            return tuple(on_device["shape"][:2])
        if not (isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8):
            got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(f"expected a frame [H, W, 3] uint8, BGR, got {got}")
        if 0 in image.shape:
            raise InputError(f"expected a frame with pixels, got {list(image.shape)}")
        return image.shape[:2]

    def _add_group(self, objects: Sequence[TrackedObject]) -> None:
        """Group these objects of the current frame, with a memory that starts there."""
        geometry, _ = self._started()
        members, maps = [], []
        for prompt in objects:
            own = (
                geometry.mask_to_cells(prompt.mask)[None]
                if isinstance(prompt, MaskObject)
                else geometry.points_to_cells(prompt.points)
            )
            first = sum(len(part) for part in maps)
            members.append(_Member(prompt, slice(first, first + len(own))))
            maps.append(own)
        if not members:
            return
        used = sum(len(part) for part in maps)
        soft_masks = np.zeros((-(-used // CHANNEL_BLOCK) * CHANNEL_BLOCK, *geometry.cells), np.float32)
        soft_masks[:used] = np.concatenate(maps)
        group = _Group(members, self.backend.new_memory(self.settings, len(soft_masks), geometry.cells))
        group.memory.add_frame(self._features, self._stored(soft_masks, members, annotated=True))
        if self.occlusion is not None and group.states:
            group.occlusion = OcclusionMonitor(
                self.backend, self.settings, self.occlusion, self._features, soft_masks, group.states
            )
        if self.settings.move_windows and self.backend.supports_window_offsets:
            channels = [ObjectChannels(one.channels, isinstance(one.prompt, KeypointsObject)) for one in members]
            group.motion = WindowMotion(self.settings, channels, soft_masks)
        self._groups.append(group)

    def _stored(self, soft_masks: np.ndarray, members: list[_Member], annotated: bool = False) -> np.ndarray:
        """Return what the memory stores of soft masks [N, h, w]: points half redrawn, masks soft or as 0 and 1.

        annotated: True for the annotated frame, where the points' masks are freshly drawn Gaussians

        The soft mask of a point is a mixture of shifted Gaussians, which spreads from frame to frame until its peak is
        meaningless. So half of it is drawn anew. The other half keeps the alternatives and the sub-cell position.
        """
        geometry, _ = self._started()
        stored = soft_masks
        for member in members:
            own = soft_masks[member.channels]
            if isinstance(member.prompt, KeypointsObject):
                if annotated:
                    continue
                points, peaks = geometry.cells_to_points(own)
                visible = peaks > MIN_POINT_PEAK
                drawn = own.copy()
                drawn[visible] = (own[visible] + geometry.points_to_cells(points[visible])) / 2
            elif self.settings.hard_labels:
                drawn = (own > 0.5).astype(np.float32)
            else:
                continue
            stored = soft_masks.copy() if stored is soft_masks else stored
            stored[member.channels] = drawn
        return stored
