"""The tracker: prompt it with objects on one frame, then step it frame by frame; the loop belongs to the caller.

Each frame is encoded once for all masks. Its soft masks are copied from memory: the annotated frame and the last few,
with masks. The paper (section 3.4) names such a memory as future work. Masks prompted on one frame begin with a memory
of their own, so that adding, correcting or removing an object cannot change another. Then memories are merged, see
groups.py. Keypoints are tracked object by object, in a crop around them, see keypoints/keypoint_tracker.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.base import Backend, Features
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND, TrackingSettings, with_settings
from corrflow.runtime.tracking.edge_refinement import refine_edges
from corrflow.runtime.tracking.geometry import Geometry, Upsampler
from corrflow.runtime.tracking.groups import Group, Merge, can_merge, mergeable, merged_channels
from corrflow.runtime.tracking.keypoints.tracked_body import Labels, TrackedBody, TrackedKeypoints, grouped_by_body
from corrflow.runtime.tracking.object_motion import FeatureBlocks
from corrflow.runtime.tracking.occlusion import OcclusionMonitor, OcclusionSettings, occlusion_settings_for
from corrflow.runtime.tracking.parts import Member, Part
from corrflow.runtime.tracking.results import (
    absent_result,
    frame_result,
    keypoints_result,
    mask_result,
    prompt_result,
    split_points,
)
from corrflow.runtime.types import (
    Frame,
    FrameResult,
    KeypointsObject,
    MaskObject,
    TrackedObject,
    check_objects,
    size_text,
)

logger = logging.getLogger("corrflow")


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
        self._groups: list[Group] = []
        self._merging: Merge | None = None
        self._max_channels: int | None = None  # of a merged group, known once a backend refuses one
        self._geometry: Geometry | None = None
        self._upsample: Upsampler | None = None
        self._features: Features = None
        self._blocks: FeatureBlocks | None = None
        self._bodies: list[TrackedBody] = []
        self._frame: Frame | None = None
        self._num_frames = 0

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the tracked objects, ascending."""
        ids = [member.prompt.id for group in self._groups for member in group.tracked]
        return tuple(sorted([*ids, *(one.prompt.id for one in self._keypoints)]))

    def start(
        self,
        frame: np.ndarray | Frame,
        objects: Sequence[TrackedObject],
        labels: Labels = (),
    ) -> FrameResult:
        """Begin anew with objects on a frame; return the objects as they were given.

        frame:  [H, W, 3] uint8, BGR, or a Frame with such an image
        labels: further labelled frames of the video, from any time: images [H, W, 3] uint8, BGR, each with keypoints
                that have the id of an object, and any points of its body

        Raises InputError for a frame or an object that does not fit.
        """
        image = frame.image if isinstance(frame, Frame) else frame
        height, width = self._check_image(image)
        geometry = Geometry.of((height, width), self.settings.short_side, self.backend.stride)
        check_objects(objects, (height, width), ())
        self._check_labels(labels, (height, width))
        self.reset()
        self._geometry, self._upsample = geometry, geometry.upsampler()
        self._frame = self._as_frame(frame)
        self._add(objects, labels)
        return prompt_result(self._frame, geometry.frame, objects)

    def step(self, frame: np.ndarray | Frame) -> FrameResult:
        """Track every object into the next frame; frame: as for `start`.

        Raises CorrflowError for a size that is not the first frame's, InputError before `start`.
        """
        return self.advance(frame)()

    def advance(self, frame: np.ndarray | Frame) -> Callable[[], FrameResult]:
        """Track every object into the next frame, and return a function that makes the result.

        The function enlarges and refines masks. Another thread may call it while the tracker goes on, since it reads
        only the frame and what this step left. Raises what `step` does.
        """
        geometry, upsample = self._started()
        propagated = self.soft_step(frame)
        current = self._frame
        assert current is not None
        points = [keypoints_result(one.prompt, *split_points(propagated[one.prompt.id])) for one in self._keypoints]
        members = [
            (member.prompt, member.state.occluded, member.state.relative_similarity)
            for part in self._parts
            for member in part.tracked
        ]

        def result() -> FrameResult:
            ids, soft_masks, objects = [], [], list(points)
            for prompt, occluded, similarity in members:
                if occluded:
                    objects.append(absent_result(prompt))
                    continue
                ids.append(prompt.id)
                soft_masks.append(self._refined(upsample(propagated[prompt.id])[0], current.image, geometry.scale))
                shown = mask_result(prompt, soft_masks[-1])
                objects.append(replace(shown, confidence=shown.confidence * similarity))
            return frame_result(current, geometry.frame, ids, soft_masks, objects)

        return result

    @property
    def _parts(self) -> list[Part]:
        return [part for group in self._groups for part in group.parts]

    @property
    def _moves_windows(self) -> bool:
        return self.settings.move_windows and self.backend.supports_window_offsets

    @property
    def _keypoints(self) -> list[TrackedKeypoints]:
        return [one for body in self._bodies for one in body.members]

    def _encode(self) -> None:
        """Encode the current frame for masks, and where search windows follow the objects, its blocks of features."""
        geometry, _ = self._started()
        assert self._frame is not None
        self._features = self.backend.encode(self._frame.image, geometry.working)
        self._blocks = FeatureBlocks(np.asarray(self._features)) if self._moves_windows else None

    def _on_host(self, image: Any) -> np.ndarray:
        """Return a frame as an array, copied where it lies on a device."""
        return image if isinstance(image, np.ndarray) else self.backend.frame_on_host(image)

    def _refined(self, soft_mask: np.ndarray, image: np.ndarray, scale: float) -> np.ndarray:
        """Move a soft mask [H, W] float32 to the image's edges, where the settings ask for it.

        scale: size of the resized frame, relative to the frame

        Images on a device are left alone: looking at one would copy it to the host.
        """
        if not isinstance(image, np.ndarray):
            return soft_mask
        return refine_edges(soft_mask, image, self.settings.refine_radius, scale)

    def soft_step(self, frame: np.ndarray | Frame) -> dict[int, np.ndarray]:
        """Track into the next frame as `step` does, and return what is known of each object, by id.

        That is a soft mask [1, h, w] float32, 0..1, on cells, which is 0 for an occluded object. For keypoints it is
        x, y in pixels and the confidence of each point, [P, 3] float32.
        """
        geometry, _ = self._started()
        image = frame.image if isinstance(frame, Frame) else frame
        size = self._check_image(image)
        if size != geometry.frame:
            raise CorrflowError(
                f"expected frames of {size_text(geometry.frame)} as at the start, got {size_text(size)};"
                " start again with objects on a frame of the new size"
            )
        self._frame, previous = self._as_frame(frame), self._blocks
        self._features = self._blocks = None
        if self._groups:
            self._encode()
        for group in self._groups:
            group.step(self._features, previous, self._blocks)
        self._merge_groups()
        by_id = {}
        if self._bodies:
            on_host = self._on_host(image)
            for body in self._bodies:
                by_id.update(body.step(on_host))
        for part in self._parts:
            for member in part.tracked:
                own = part.soft_masks[member.channel][None]
                by_id[member.prompt.id] = np.zeros_like(own) if member.state.occluded else own
        return by_id

    def add(self, objects: Sequence[TrackedObject], labels: Labels = ()) -> FrameResult:
        """Track further objects, prompted on the last frame; return them as they were given.

        labels: as for `start`
        """
        geometry, _ = self._started()
        check_objects(objects, geometry.frame, self.object_ids)
        self._check_labels(labels, geometry.frame)
        self._add(objects, labels)
        assert self._frame is not None
        return prompt_result(self._frame, geometry.frame, objects)

    def correct(self, prompt: TrackedObject) -> FrameResult:
        """Replace an object by its true mask or points on the last frame; raises InputError for an unknown id.

        Earlier labels of the object count no longer: one that was wrong would pull the object back.
        """
        geometry, _ = self._started()
        if prompt.id not in self.object_ids:
            raise InputError(f"expected an object among {list(self.object_ids)} to correct, got {prompt.id}")
        check_objects([prompt], geometry.frame, ())
        if isinstance(prompt, KeypointsObject):
            assert self._frame is not None
            bodies = [body for body in self._bodies if any(one.prompt.id == prompt.id for one in body.members)]
            if any(body.correct(self._on_host(self._frame.image), prompt) for body in bodies):
                return prompt_result(self._frame, geometry.frame, [prompt])
        self.remove(prompt.id)
        return self.add([prompt])

    def remove(self, object_id: int) -> None:
        """Stop tracking an object; raises InputError for an id that is not tracked."""
        self._tracked(object_id, "remove").removed = True
        for body in self._bodies:
            body.drop_removed()
        self._bodies = [body for body in self._bodies if body.members]
        if not all(group.tracked for group in self._groups):
            self._groups = [group for group in self._groups if group.tracked]
            self._merging = None  # it may have been to include a group that is gone

    def rename(self, object_id: int, name: str) -> None:
        """Give an object another name; raises InputError for an id that is not tracked."""
        self._tracked(object_id, "rename").rename(name)

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
        if self._features is None:  # it has tracked no masks so far
            self._features, self._blocks = other._features, other._blocks
        self._bodies += other._bodies
        other.reset()

    def _started(self) -> tuple[Geometry, Upsampler]:
        if self._geometry is None or self._upsample is None:
            raise InputError("expected start(frame, objects) before the first step")
        return self._geometry, self._upsample

    def _tracked(self, object_id: int, action: str) -> Member | TrackedKeypoints:
        members = [member for group in self._groups for member in group.tracked]
        for one in [*members, *self._keypoints]:
            if one.prompt.id == object_id:
                return one
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

    def _check_labels(self, labels: Labels, size: tuple[int, int]) -> None:
        for image, label in labels:
            if self._check_image(image) != size:
                raise InputError(
                    f"expected labelled frames of {size_text(size)} as the first frame,"
                    f" got {size_text(self._check_image(image))}; give frames of the same video"
                )
            if not isinstance(label, KeypointsObject):
                raise InputError(f"expected points on further labelled frames, got a {type(label).__name__}")
            check_objects([label], size, ())

    def _add(self, objects: Sequence[TrackedObject], labels: Labels) -> None:
        """Track these objects of the current frame, with memories that start there."""
        geometry, _ = self._started()
        assert self._frame is not None
        keypoints = [one for one in objects if isinstance(one, KeypointsObject)]
        if keypoints:
            image, backend = self._on_host(self._frame.image), self.backend.on_cpu
            for prompts in grouped_by_body(keypoints):
                ids = {one.id for one in prompts}
                own = [(self._on_host(frame), label) for frame, label in labels if label.id in ids]
                body = next((body for body in self._bodies if body.accepts(prompts)), None)
                if body is None:
                    self._bodies.append(TrackedBody(backend, self.settings, image, prompts, own))
                else:
                    body.add(image, prompts, own)
        masks = [one for one in objects if isinstance(one, MaskObject)]
        if not masks:
            return
        if self._features is None:
            self._encode()
        part = Part.of(masks, np.asarray(self._features), geometry, self.settings.target_model)
        if self.occlusion is not None and part.states:
            part.occlusion = OcclusionMonitor(
                self.backend, self.settings, self.occlusion, self._features, part.annotated, part.states
            )
        self._groups.append(Group(self.backend, self.settings, geometry, [part], self._moves_windows))

    def _merge_groups(self) -> None:
        """Go on with the merge of groups, or begin one where there are groups to merge; call it after they stepped."""
        if self._merging is not None:
            if self._merging.advance(self._features):
                others = [group for group in self._groups if group not in self._merging.groups]
                self._groups, self._merging = [self._merging.group, *others], None
        elif len(self._groups) > 1 and can_merge(self.settings):
            geometry, _ = self._started()
            groups = mergeable(self._groups, self._max_channels)
            if groups:
                try:
                    self._merging = Merge(self.backend, self.settings, geometry, groups, self._moves_windows)
                except InputError:  # engines have a fixed number of channels
                    self._max_channels = merged_channels(groups) - 1
