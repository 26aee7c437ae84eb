"""Every frame of a video from labels on any of them: one sweep backward from the last, one forward to its end.

Each object is tracked from each of its labels to its neighbouring labels on either side, or to the end of the video.
Between two labels the passes from both are blended.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.batch.frame_cache import Spool, get_frame, put_frame
from corrflow.runtime.batch.passes import FOLDER, Pass, PassFolder, blended, rounded
from corrflow.runtime.batch.targets import Strand, order_of_points, strands_of
from corrflow.runtime.formats.annotations import Annotations, CompressedAnnotation
from corrflow.runtime.tracking.edge_refinement import refine_edges
from corrflow.runtime.tracking.geometry import Geometry, Upsampler
from corrflow.runtime.tracking.results import frame_result, keypoints_result, mask_result
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, FrameResult, KeypointsObject, MaskObject, check_objects
from corrflow.runtime.video.open_source import FrameSource
from corrflow.runtime.video.prefetch import read_ahead

_Points = tuple[KeypointsObject, np.ndarray, np.ndarray]  # with places [P, 2] and heights [P]


@dataclass(frozen=True)
class PassPlaces:
    """made_from: the source and the model in words; earlier, now: results of this item, the old and the new."""

    made_from: str
    earlier: Path
    now: Path
    keep: bool


def track_whole(
    source: FrameSource, tracker: Tracker, labels: Annotations, folder: Path, places: PassPlaces
) -> Generator[FrameResult, None, None]:
    """Frames with their tracks, in order. Frames up to the last label wait in a file in `folder`, not in memory.

    Raises InputError where a label's frame is not there or the objects do not fit it, CorrflowError where the disk is
    full, SourceEndedEarly after the last good frame.
    """
    try:
        with ExitStack() as stack:
            ahead = stack.enter_context(read_ahead(iter(source)))
            waiting = stack.enter_context(Spool(folder / "frames.spool"))
            labelled = _read_to_last_label(source.name, ahead, waiting, labels)
            first = get_frame(waiting, 0)
            geometry = Geometry.of((first.image.shape[0], first.image.shape[1]), tracker.settings.short_side)
            strands = strands_of(labelled)
            passes = stack.enter_context(
                PassFolder(places.made_from, places.earlier / FOLDER, places.now / FOLDER, geometry.cells, places.keep)
            )
            _backward(tracker, strands, passes, waiting)
            spooled = (get_frame(waiting, index) for index in range(len(waiting)))
            reader = _Reader(
                geometry, geometry.upsampler(), passes, order_of_points(labelled), tracker.settings.refine_radius
            )
            for frame, soft in _forward(tracker, strands, passes, chain(spooled, ahead)):
                yield reader.result(frame, strands, soft)
    except OSError as error:
        raise CorrflowError(
            f"expected room for frames and soft labels in {folder}, got an error ({error.strerror}); free some space"
        ) from error


def _read_to_last_label(
    name: str, frames: Iterator[Frame], waiting: Spool, labels: Annotations
) -> dict[int, list[CompressedAnnotation]]:
    """The objects by the index of their frame; the frames up to the last of them are in `waiting` then."""
    missing, labelled = set(labels.frames), dict[int, list[CompressedAnnotation]]()
    for frame in frames:
        put_frame(waiting, frame)
        if found := labels.keys_of(frame):
            labelled[frame.index] = [packed for key in found for packed in labels.objects[key]]
            objects = [packed.unpacked() for packed in labelled[frame.index]]
            check_objects(objects, (frame.image.shape[0], frame.image.shape[1]), ())
            missing -= set(found)
        if not missing:
            return labelled
    raise InputError(
        f"expected labels on one of the {len(waiting)} frames of {name}, got labels for frame "
        f"{', '.join(sorted(map(str, missing))[:4])}; frames count from 0"
    )


def _backward(tracker: Tracker, strands: Sequence[Strand], passes: PassFolder, waiting: Spool) -> None:
    """Track from every label back to the one before it, into `passes`, from the last frame that waits to the first."""
    making: dict[int, Pass] = {}
    tracker.reset()
    for index in reversed(range(len(waiting))):
        starting = []
        for strand in strands:
            if index not in strand.given:
                continue
            length = index - (-1 if (before := strand.before(index)) is None else before) - 1
            making.pop(strand.number, None)
            if length and not passes.exists(strand, index, -1, length):
                making[strand.number] = passes.new(strand, index, -1, length)
                starting.append((strand, index))
        _advance(tracker, making, starting, lambda index=index: get_frame(waiting, index).image)


def _forward(
    tracker: Tracker, strands: Sequence[Strand], passes: PassFolder, frames: Iterable[Frame]
) -> Iterator[tuple[Frame, Mapping[int, np.ndarray]]]:
    """Every frame with the soft labels of the passes forward, by strand, as far as they are not in `passes`."""
    making: dict[int, Pass | None] = {}
    tracker.reset()
    for frame in frames:
        starting = []
        for strand in strands:
            if frame.index not in strand.given:
                continue
            after = strand.after(frame.index)
            length = None if after is None else after - frame.index - 1
            making.pop(strand.number, None)
            if length != 0 and not passes.exists(strand, frame.index, 1, length):
                making[strand.number] = passes.new(strand, frame.index, 1, length) if passes.keep else None
                starting.append((strand, frame.index))
        yield frame, _advance(tracker, making, starting, lambda frame=frame: frame.image)


def _advance(
    tracker: Tracker,
    making: Mapping[int, Pass | None],
    starting: Sequence[tuple[Strand, int]],
    image: Callable[[], np.ndarray],
) -> dict[int, np.ndarray]:
    """One frame of a sweep: soft labels of the strands that go on, added to their passes; then others start on it.

    A frame that nobody needs is neither read nor encoded.
    """
    new = {strand.number for strand, _ in starting}
    for number in tracker.object_ids:
        if number in new or number not in making:
            tracker.remove(number)
    labels = [strand.label(index) for strand, index in starting]
    if not tracker.object_ids:
        if labels:
            tracker.start(image(), labels)
        return {}
    soft = {number: rounded(own) for number, own in tracker.soft_step(image()).items()}
    for number, own in soft.items():
        if (into := making[number]) is not None:
            into.append(own)
    tracker.add(labels)
    return soft


@dataclass(frozen=True)
class _Reader:
    """Reads tracks off soft labels."""

    geometry: Geometry
    upsample: Upsampler
    passes: PassFolder
    order: Mapping[int, tuple[str, ...]]
    refine_radius: int

    def result(self, frame: Frame, strands: Sequence[Strand], forward: Mapping[int, np.ndarray]) -> FrameResult:
        """The tracks of a frame; forward: soft labels by strand of passes that are being made."""
        index = frame.index
        ids, maps, tracks, points = [], [], [], dict[int, list[_Points]]()
        for strand in strands:
            given = strand.given.get(index)
            one = next(iter(strand.given.values())).prompt
            soft = None if given else self._soft(index, strand, forward)
            if isinstance(one, MaskObject):
                if soft is None:
                    whole = strand.given[index].unpacked()
                    assert isinstance(whole, MaskObject)
                    full = whole.mask.astype(np.float32)
                else:
                    full = refine_edges(self.upsample(soft)[0], frame.image, self.refine_radius, self.geometry.scale)
                ids.append(one.id)
                maps.append(full)
                tracks.append(mask_result(one, full))
            elif soft is None:
                own = strand.given[index].prompt
                assert isinstance(own, KeypointsObject)
                found = np.asarray(own.points, np.float32), np.ones(len(own.points), np.float32)
                points.setdefault(one.id, []).append((one, *found))
            else:
                points.setdefault(one.id, []).append((one, *self.geometry.cells_to_points(soft)))
        for parts in points.values():
            found = [name for one, _, _ in parts for name in one.point_names]
            names = self.order[parts[0][0].id]
            places = np.concatenate([places for _, places, _ in parts])
            heights = np.concatenate([heights for _, _, heights in parts])
            own = [found.index(name) for name in names]
            whole = replace(parts[0][0], points=places[own], point_names=names)
            tracks.append(keypoints_result(whole, places[own], heights[own]))
        return frame_result(frame, ids, maps, tracks)

    def _soft(self, index: int, strand: Strand, forward: Mapping[int, np.ndarray]) -> np.ndarray:
        before, after = strand.before(index), strand.after(index)
        earlier = later = None
        if before is not None:
            live = forward.get(strand.number)
            earlier = self.passes.of(strand, before, 1)[index - before - 1] if live is None else live
        if after is not None:
            later = self.passes.of(strand, after, -1)[after - index - 1]
        if earlier is None or later is None or before is None or after is None:
            only = later if earlier is None else earlier
            assert only is not None  # a strand has a label before or after every frame
            return only
        is_mask = isinstance(strand.given[before].prompt, MaskObject)
        return blended(earlier, later, (index - before) / (after - before), is_mask)
