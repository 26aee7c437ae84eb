"""Bidirectional tracking: every frame of a video from annotations on any frames.

Each object is tracked from each of its annotations to the neighbouring annotations, or to the ends of the video. A
backward sweep from the last annotation comes first, then a forward sweep over the whole video. Between two annotations
the passes from both are blended. Points are compared with all their labels, before and after.
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
from corrflow.runtime.batch.passes import (
    FOLDER,
    PassFolder,
    PropagationPass,
    blend_masks,
    blend_points,
    round_to_float16,
)
from corrflow.runtime.batch.targets import Target, point_order, targets_of
from corrflow.runtime.formats.annotations import Annotations
from corrflow.runtime.formats.compressed_annotation import CompressedAnnotation
from corrflow.runtime.tracking.edge_refinement import refine_edges
from corrflow.runtime.tracking.geometry import Geometry, Upsampler
from corrflow.runtime.tracking.keypoints.tracked_body import grouped_by_body
from corrflow.runtime.tracking.results import absent_result, frame_result, keypoints_result, mask_result, split_points
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import (
    AbsentObject,
    Frame,
    FrameResult,
    KeypointsObject,
    MaskObject,
    ObjectResult,
    TrackedObject,
)
from corrflow.runtime.video.open_source import FrameSource
from corrflow.runtime.video.prefetch import read_ahead

AGREEMENT = 0.1
"""Distance up to which both passes agree on a point, in longest sides of the points' box."""
_MIN_AGREEMENT = 2.0  # pixels


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
            first = cache[cache.indices[0]].image
            geometry = Geometry.of((first.shape[0], first.shape[1]), tracker.settings.short_side)
            targets = targets_of(by_frame)
            earlier, new = options.earlier / FOLDER, options.results / FOLDER
            passes = stack.enter_context(PassFolder(options.input_digest, earlier, new, geometry.cells, options.keep))
            _track_backward(tracker, targets, passes, cache)
            frames = chain((cache[index] for index in cache.indices), remaining)
            refine_radius = tracker.settings.refine_radius
            reader = _ResultReader(geometry, geometry.upsampler(), passes, point_order(by_frame), refine_radius)
            for frame, soft in _track_forward(tracker, targets, passes, frames, cache):
                yield reader.result(frame, targets, soft)
    except OSError as error:
        raise CorrflowError(
            f"expected room for frames and soft masks in {folder}, got an error ({error.strerror}); free some space"
        ) from error


def _read_to_last_annotation(
    name: str, frames: Iterator[Frame], cache: FrameCache, annotations: Annotations
) -> dict[int, list[CompressedAnnotation]]:
    """Read the frames up to the last annotation into `cache`, and return the usable annotations by frame index.

    Raises InputError without any of them.
    """
    missing, by_frame = set(annotations.frames), dict[int, list[CompressedAnnotation]]()
    for frame in frames:
        cache.append(frame)
        if frame.index in missing:
            missing.remove(frame.index)
            by_frame[frame.index] = annotations.usable_on(frame)
        if not missing:
            break
    usable = [packed.prompt for objects in by_frame.values() for packed in objects]
    if all(isinstance(prompt, AbsentObject) for prompt in usable):
        first = annotations.notes or [f"got labels for frame {', '.join(map(str, sorted(missing)[:4]))}"]
        start = f", of which {cache.indices.start} is the first that can be decoded" if cache.indices.start else ""
        raise InputError(
            f"expected labels on one of the {len(cache)} frames of {name}, {first[0]}; frames count from 0{start}"
        )
    for index in sorted(missing):
        reason = f"the video ends after {cache.indices.stop} frames, which count from 0"
        if index < cache.indices.start:
            reason = f"frame {cache.indices.start} is the first of the video that can be decoded"
        for packed in annotations.objects[index]:
            annotations.leave_out(packed, index, reason)
    return by_frame


def _track_backward(tracker: Tracker, targets: Sequence[Target], passes: PassFolder, cache: FrameCache) -> None:
    """Track from every annotation back to the previous annotation, into `passes`."""
    active: dict[int, PropagationPass] = {}
    tracker.reset()
    for index in reversed(cache.indices):
        starting = []
        for target in targets:
            if index not in target.annotations:
                continue
            before = target.before(index)
            length = index - (cache.indices[0] - 1 if before is None else before) - 1
            active.pop(target.number, None)
            if target.is_absent(index) or (before is not None and target.is_absent(before)):
                continue
            if length and not passes.reuse(target, index, -1, length):
                active[target.number] = passes.create(target, index, -1, length)
                starting.append((target, index))
        _advance(tracker, active, starting, lambda index=index: cache[index].image, cache)


def _track_forward(
    tracker: Tracker, targets: Sequence[Target], passes: PassFolder, frames: Iterable[Frame], cache: FrameCache
) -> Iterator[tuple[Frame, Mapping[int, np.ndarray]]]:
    """Yield every frame with what the active forward passes hold, by target; reused passes are not active."""
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
            if length != 0 and not target.is_absent(frame.index) and not passes.reuse(target, frame.index, 1, length):
                active[target.number] = passes.create(target, frame.index, 1, length) if passes.keep else None
                starting.append((target, frame.index))
        yield frame, _advance(tracker, active, starting, lambda frame=frame: frame.image, cache)


def _advance(
    tracker: Tracker,
    active: Mapping[int, PropagationPass | None],
    starting: Sequence[tuple[Target, int]],
    image: Callable[[], np.ndarray],
    cache: FrameCache,
) -> dict[int, np.ndarray]:
    """Track one frame of a sweep: add what is tracked of active targets to their passes, then start targets.

    image: returns the frame's image; called only if a target is tracked on this frame
    cache: frames up to the last annotation

    Returns soft masks or points, as `Tracker.soft_step` does, by target.
    """
    numbers = {target.number for target, _ in starting}
    for number in tracker.object_ids:
        if number in numbers or number not in active:
            tracker.remove(number)
    prompts = [target.annotation(index) for target, index in starting]
    labels = _labels_of(starting, prompts, cache)
    if not tracker.object_ids:
        if prompts:
            tracker.start(image(), prompts, labels)
        return {}
    tracked = tracker.soft_step(image())
    for number, values in tracked.items():
        tracked[number] = values if values.ndim == 2 else round_to_float16(values)
        if (propagation := active[number]) is not None:
            propagation.append(tracked[number])
    tracker.add(prompts, labels)
    return tracked


def _labels_of(
    starting: Sequence[tuple[Target, int]], prompts: Sequence[TrackedObject], cache: FrameCache
) -> list[tuple[np.ndarray, KeypointsObject]]:
    """Return the further labels of starting targets: once for each body, each image once. Images may be large."""
    groups = grouped_by_body([one for one in prompts if isinstance(one, KeypointsObject)])
    leading = {group[0].id for group in groups}
    labels = [one for target, index in starting if target.number in leading for one in target.labels_for(index).items()]
    images = {frame: cache[frame].image for frame in sorted({frame for frame, _ in labels})}
    return [(images[frame], label) for frame, label in labels]


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
        """Return the result of a frame; forward: what the active forward passes hold, by target."""
        ids, masks, results = [], [], []
        keypoints: dict[int, list[tuple[KeypointsObject, np.ndarray, np.ndarray, bool]]] = {}
        for target in targets:
            is_annotated = frame.index in target.annotations
            prompt = target.prompt
            if self._is_absent(frame.index, target):
                if isinstance(prompt, MaskObject):
                    results.append(absent_result(prompt, is_annotated))
                else:
                    last, unseen = np.asarray(prompt.points, np.float32), np.zeros(len(prompt.points), np.float32)
                    keypoints.setdefault(prompt.id, []).append((prompt, last, unseen, False))
                continue
            soft = None if is_annotated else self._tracked(frame.index, target, forward)
            if isinstance(prompt, MaskObject):
                shown = prompt
                if soft is None:
                    annotated = target.annotation(frame.index)
                    assert isinstance(annotated, MaskObject)
                    mask, shown = annotated.mask.astype(np.float32), replace(annotated, id=prompt.id)
                else:
                    mask = refine_edges(self.upsample(soft)[0], frame.image, self.refine_radius, self.geometry.scale)
                ids.append(prompt.id)
                masks.append(mask)
                results.append(mask_result(shown, mask, soft is None))
            elif soft is None:
                annotated = target.annotation(frame.index)
                assert isinstance(annotated, KeypointsObject)
                points = np.asarray(annotated.points, np.float32)
                is_own = not annotated.is_prediction
                keypoints.setdefault(prompt.id, []).append((prompt, points, np.ones(len(points), np.float32), is_own))
            else:
                keypoints.setdefault(prompt.id, []).append((prompt, *split_points(soft), False))
        results += [self._keypoints_result(parts) for parts in keypoints.values()]
        return frame_result(frame, self.geometry.frame, ids, masks, results)

    def _keypoints_result(self, parts: Sequence[tuple[KeypointsObject, np.ndarray, np.ndarray, bool]]) -> ObjectResult:
        """Combine the targets of one object: prompt, points [P, 2], confidence [P], and True for points of the user."""
        prompt = parts[0][0]
        names = [name for part, *_ in parts for name in part.point_names]
        order = [names.index(name) for name in self.point_order[prompt.id]]
        points = np.concatenate([points for _, points, _, _ in parts])[order]
        confidence = np.concatenate([one for _, _, one, _ in parts])[order]
        annotated = {name for part, _, _, is_annotated in parts if is_annotated for name in part.point_names}
        combined = replace(prompt, points=points, point_names=self.point_order[prompt.id])
        own = tuple(name for name in combined.point_names if name in annotated)
        return keypoints_result(combined, points, confidence, own)

    @staticmethod
    def _is_absent(index: int, target: Target) -> bool:
        """Return True where the last annotation up to a frame, or else the next one, says that the object is absent."""
        latest = index if index in target.annotations else target.before(index)
        latest = target.after(index) if latest is None else latest
        return latest is not None and target.is_absent(latest)

    def _tracked(self, index: int, target: Target, forward: Mapping[int, np.ndarray]) -> np.ndarray:
        """Return a target's mask or points on a frame without an annotation, blended where it lies between two."""
        before, after = target.before(index), target.after(index)
        if after is not None and target.is_absent(after):
            after = None
        earlier = later = None
        if before is not None:
            active = forward.get(target.number)
            earlier = self.passes.open(target, before, 1)[index - before - 1] if active is None else active
        if after is not None:
            later = self.passes.open(target, after, -1)[after - index - 1]
        if earlier is None or later is None or before is None or after is None:
            tracked = later if earlier is None else earlier
            assert tracked is not None  # a target has an annotation before or after every frame
            return tracked
        position = (index - before) / (after - before)
        if isinstance(target.prompt, MaskObject):
            return blend_masks(earlier, later, position)
        extent = float(np.ptp(np.asarray(target.prompt.points), axis=0).max())
        return blend_points(earlier, later, position, max(_MIN_AGREEMENT, AGREEMENT * extent))
