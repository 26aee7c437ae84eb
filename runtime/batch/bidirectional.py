"""Bidirectional tracking: every frame of a video from annotations on any frames.

Each object is tracked from each of its annotations to the neighbouring annotations, or to the ends of the video. A
backward sweep from the last annotation comes first, then a forward sweep over the whole video. Between two annotations
the passes from both are blended.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.batch.frame_cache import FrameCache
from corrflow.runtime.batch.passes import FOLDER, PassFolder, PropagationPass, blend_passes, round_to_float16
from corrflow.runtime.batch.targets import Target, point_order, targets_of
from corrflow.runtime.formats.annotations import Annotations, CompressedAnnotation
from corrflow.runtime.tracking.edge_refinement import refine_edges
from corrflow.runtime.tracking.geometry import Geometry, Upsampler
from corrflow.runtime.tracking.results import frame_result, keypoints_result, mask_result
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, FrameResult, KeypointsObject, MaskObject, ObjectResult, check_objects
from corrflow.runtime.video.open_source import FrameSource
from corrflow.runtime.video.prefetch import read_ahead


@dataclass(frozen=True)
class PassOptions:
    """Storage of the propagation passes.

    input_digest: digest of the video and the model
    earlier:      results of an earlier run, whose passes are reused; may be missing
    results:      results of this run
    keep:         True to keep the passes in the results
    """

    input_digest: str
    earlier: Path
    results: Path
    keep: bool


def track_bidirectional(
    source: FrameSource, tracker: Tracker, annotations: Annotations, folder: Path, options: PassOptions
) -> Generator[FrameResult, None, None]:
    """Yield the result of every frame in order. Frames up to the last annotation are stored in `folder`.

    Raises InputError for annotations of a missing frame or of another size, CorrflowError where the disk is full, and
    SourceEndedEarly after the last decodable frame.
    """
    try:
        with ExitStack() as stack:
            remaining = stack.enter_context(read_ahead(iter(source)))
            cache = stack.enter_context(FrameCache(folder / "frames"))
            by_frame = _read_to_last_annotation(source.name, remaining, cache, annotations)
            first = cache[0].image
            geometry = Geometry.of((first.shape[0], first.shape[1]), tracker.settings.short_side)
            targets = targets_of(by_frame)
            earlier, new = options.earlier / FOLDER, options.results / FOLDER
            passes = stack.enter_context(PassFolder(options.input_digest, earlier, new, geometry.cells, options.keep))
            _track_backward(tracker, targets, passes, cache)
            frames = chain((cache[index] for index in range(len(cache))), remaining)
            refine_radius = tracker.settings.refine_radius
            reader = _ResultReader(geometry, geometry.upsampler(), passes, point_order(by_frame), refine_radius)
            for frame, soft in _track_forward(tracker, targets, passes, frames):
                yield reader.result(frame, targets, soft)
    except OSError as error:
        raise CorrflowError(
            f"expected room for frames and soft masks in {folder}, got an error ({error.strerror}); free some space"
        ) from error


def _read_to_last_annotation(
    name: str, frames: Iterator[Frame], cache: FrameCache, annotations: Annotations
) -> dict[int, list[CompressedAnnotation]]:
    """Read the frames up to the last annotation into `cache`, and return the annotations by frame index."""
    missing, by_frame = set(annotations.frames), dict[int, list[CompressedAnnotation]]()
    for frame in frames:
        cache.append(frame)
        if keys := annotations.keys_of(frame):
            by_frame[frame.index] = [packed for key in keys for packed in annotations.objects[key]]
            objects = [packed.unpacked() for packed in by_frame[frame.index]]
            check_objects(objects, (frame.image.shape[0], frame.image.shape[1]), ())
            missing -= set(keys)
        if not missing:
            return by_frame
    raise InputError(
        f"expected labels on one of the {len(cache)} frames of {name}, got labels for frame "
        f"{', '.join(sorted(map(str, missing))[:4])}; frames count from 0"
    )


def _track_backward(tracker: Tracker, targets: Sequence[Target], passes: PassFolder, cache: FrameCache) -> None:
    """Track from every annotation back to the previous annotation, into `passes`."""
    active: dict[int, PropagationPass] = {}
    tracker.reset()
    for index in reversed(range(len(cache))):
        starting = []
        for target in targets:
            if index not in target.annotations:
                continue
            before = target.before(index)
            length = index - (-1 if before is None else before) - 1
            active.pop(target.number, None)
            if length and not passes.reuse(target, index, -1, length):
                active[target.number] = passes.create(target, index, -1, length)
                starting.append((target, index))
        _advance(tracker, active, starting, lambda index=index: cache[index].image)


def _track_forward(
    tracker: Tracker, targets: Sequence[Target], passes: PassFolder, frames: Iterable[Frame]
) -> Iterator[tuple[Frame, Mapping[int, np.ndarray]]]:
    """Yield every frame with the soft masks of the active forward passes, by target; reused passes are not active."""
    active: dict[int, PropagationPass | None] = {}
    tracker.reset()
    for frame in frames:
        starting = []
        for target in targets:
            if frame.index not in target.annotations:
                continue
            after = target.after(frame.index)
            length = None if after is None else after - frame.index - 1
            active.pop(target.number, None)
            if length != 0 and not passes.reuse(target, frame.index, 1, length):
                active[target.number] = passes.create(target, frame.index, 1, length) if passes.keep else None
                starting.append((target, frame.index))
        yield frame, _advance(tracker, active, starting, lambda frame=frame: frame.image)


def _advance(
    tracker: Tracker,
    active: Mapping[int, PropagationPass | None],
    starting: Sequence[tuple[Target, int]],
    image: Callable[[], np.ndarray],
) -> dict[int, np.ndarray]:
    """Track one frame of a sweep: add the soft masks of active targets to their passes, then start targets.

    image: returns the frame's image; called only if a target is tracked on this frame

    Returns the soft masks by target.
    """
    numbers = {target.number for target, _ in starting}
    for number in tracker.object_ids:
        if number in numbers or number not in active:
            tracker.remove(number)
    prompts = [target.annotation(index) for target, index in starting]
    if not tracker.object_ids:
        if prompts:
            tracker.start(image(), prompts)
        return {}
    soft = {number: round_to_float16(masks) for number, masks in tracker.soft_step(image()).items()}
    for number, masks in soft.items():
        if (propagation := active[number]) is not None:
            propagation.append(masks)
    tracker.add(prompts)
    return soft


@dataclass(frozen=True)
class _ResultReader:
    """Reader of results from soft masks.

    point_order: names of the points of each object, by its id
    """

    geometry: Geometry
    upsample: Upsampler
    passes: PassFolder
    point_order: Mapping[int, tuple[str, ...]]
    refine_radius: int

    def result(self, frame: Frame, targets: Sequence[Target], forward: Mapping[int, np.ndarray]) -> FrameResult:
        """Return the result of a frame; forward: soft masks of the active forward passes, by target."""
        ids, masks, results = [], [], []
        keypoints: dict[int, list[tuple[KeypointsObject, np.ndarray, np.ndarray]]] = {}
        for target in targets:
            annotation = target.annotations.get(frame.index)
            soft = None if annotation else self._soft_masks(frame.index, target, forward)
            prompt = target.prompt
            if isinstance(prompt, MaskObject):
                if soft is None:
                    annotated = target.annotation(frame.index)
                    assert isinstance(annotated, MaskObject)
                    mask = annotated.mask.astype(np.float32)
                else:
                    mask = refine_edges(self.upsample(soft)[0], frame.image, self.refine_radius, self.geometry.scale)
                ids.append(prompt.id)
                masks.append(mask)
                results.append(mask_result(prompt, mask))
            elif soft is None:
                annotated = target.annotation(frame.index)
                assert isinstance(annotated, KeypointsObject)
                points = np.asarray(annotated.points, np.float32)
                keypoints.setdefault(prompt.id, []).append((prompt, points, np.ones(len(points), np.float32)))
            else:
                keypoints.setdefault(prompt.id, []).append((prompt, *self.geometry.cells_to_points(soft)))
        results += [self._keypoints_result(parts) for parts in keypoints.values()]
        return frame_result(frame, self.geometry.frame, ids, masks, results)

    def _keypoints_result(self, parts: Sequence[tuple[KeypointsObject, np.ndarray, np.ndarray]]) -> ObjectResult:
        """Combine the targets of one object: prompt, points [P, 2] and peaks [P] of each."""
        prompt = parts[0][0]
        names = [name for part, _, _ in parts for name in part.point_names]
        order = [names.index(name) for name in self.point_order[prompt.id]]
        points = np.concatenate([points for _, points, _ in parts])[order]
        peaks = np.concatenate([peaks for _, _, peaks in parts])[order]
        combined = replace(prompt, points=points, point_names=self.point_order[prompt.id])
        return keypoints_result(combined, points, peaks)

    def _soft_masks(self, index: int, target: Target, forward: Mapping[int, np.ndarray]) -> np.ndarray:
        """Return the soft masks of a target on a frame without an annotation, blended where it lies between two."""
        before, after = target.before(index), target.after(index)
        earlier = later = None
        if before is not None:
            active = forward.get(target.number)
            earlier = self.passes.open(target, before, 1)[index - before - 1] if active is None else active
        if after is not None:
            later = self.passes.open(target, after, -1)[after - index - 1]
        if earlier is None or later is None or before is None or after is None:
            soft = later if earlier is None else earlier
            assert soft is not None  # a target has an annotation before or after every frame
            return soft
        return blend_passes(earlier, later, (index - before) / (after - before), isinstance(target.prompt, MaskObject))
