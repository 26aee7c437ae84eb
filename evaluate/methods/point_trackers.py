"""Point tracking with every method: the tracker, optical flow (Lucas-Kanade, DIS), and no motion at all.

A baseline's confidence is 1 or 0, as it has no probability of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.evaluate.masks import THREADS, Method
from corrflow.evaluate.methods.label_copying import copy_points
from corrflow.evaluate.methods.methods import FlowWarp, Identity, LucasKanade, TrackerMethod
from corrflow.runtime.batch.bidirectional import PassOptions, track_bidirectional
from corrflow.runtime.batch.frame_cache import FrameCache
from corrflow.runtime.formats.annotations import Annotations
from corrflow.runtime.formats.compressed_annotation import CompressedAnnotation
from corrflow.runtime.types import Frame, KeypointsObject, ObjectResult
from corrflow.runtime.video.open_source import FrameSource, open_source

_MAX_OBJECTS = 255
_Item = TypeVar("_Item")
_Step = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Function of the previous and the next grey image and points [P, 2]: moved points [P, 2] and [P] bool, True for found.
"""


class Stopwatch:
    """CPU time of the process and wall time, in seconds, of the measured parts of a loop."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    @contextmanager
    def _counted(self, sign: int) -> Generator[None, None, None]:
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.cpu += sign * (time.process_time() - cpu)
            self.wall += sign * (time.perf_counter() - wall)

    def measured(self, items: Iterable[_Item], sign: int = 1) -> Iterator[_Item]:
        """Yield the items, and add the time that their iterator takes.

        sign: -1 to subtract the time of an inner iterator, such as that of reading a file
        """
        iterator = iter(items)
        while True:
            with self._counted(sign):
                item = next(iterator, None)
            if item is None:
                return
            yield item


# --- one pass through a video ----------------------------------------------------------------------------------


def track_points(
    method: Method, images: Iterable[np.ndarray], prompts: Mapping[int, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each frame the positions [P, 2] float64 and confidences [P] of all points prompted so far.

    prompts: points [p, 2] by frame index; P counts the points in the order of their frames

    Raises InputError for a method that cannot track points.
    """
    if isinstance(method.predictor, TrackerMethod) and len(prompts) > _MAX_OBJECTS:
        raise InputError(f"expected points on at most {_MAX_OBJECTS} frames, got {len(prompts)}")
    objects = {}
    for number, index in enumerate(sorted(prompts), 1):
        names = tuple(str(position) for position in range(len(prompts[index])))
        objects[index] = [KeypointsObject(number, prompts[index].astype(np.float32), names)]
    return track_objects(method, images, objects)


def track_objects(
    method: Method, images: Iterable[np.ndarray], prompts: Mapping[int, Sequence[KeypointsObject]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each frame the positions [P, 2] float64 and confidences [P] of all points prompted so far.

    prompts: objects by frame index, with ids that ascend over all frames; P counts their points in this order

    Raises InputError for a method that cannot track points.
    """
    predictor = method.predictor
    if isinstance(predictor, TrackerMethod):
        if method.protocol in (None, "default", "plain"):
            return _track_with_tracker(predictor, images, prompts)
        return _copy_labels(predictor, images, prompts)
    points = {index: np.concatenate([one.points for one in objects]) for index, objects in prompts.items()}
    return _track_with_flow(_step(method), images, points)


def _track_with_tracker(
    method: TrackerMethod, images: Iterable[np.ndarray], prompts: Mapping[int, Sequence[KeypointsObject]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with method.tracker(method.encoder.open(method.settings, THREADS)) as tracker:
        for index, image in enumerate(images):
            new = list(prompts.get(index, ()))
            result = tracker.start(image, new) if index == 0 else tracker.step(image)
            # `add` returns the new points at their prompted positions.
            objects: list[ObjectResult] = [*result.objects, *(tracker.add(new).objects if index and new else ())]
            positions = [np.zeros((0, 2)), *(item.points for item in objects if item.points is not None)]
            confidences = [np.zeros(0)]
            confidences += [item.point_confidence for item in objects if item.point_confidence is not None]
            yield np.concatenate(positions).astype(np.float64), np.asarray(np.concatenate(confidences))


def _copy_labels(
    method: TrackerMethod, images: Iterable[np.ndarray], prompts: Mapping[int, Sequence[KeypointsObject]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with closing(method.encoder.open(method.settings, THREADS)) as backend:
        yield from copy_points(backend, method.settings, images, prompts)


def _track_with_flow(
    step: _Step, images: Iterable[np.ndarray], prompts: Mapping[int, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    positions, followed, previous = np.zeros((0, 2)), np.zeros(0, bool), np.zeros(0, np.uint8)
    for index, image in enumerate(images):
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if index and len(positions):
            positions, found = step(previous, grey, positions)
            followed = followed & found
        new = prompts.get(index, np.zeros((0, 2)))
        positions = np.concatenate([positions, new])
        followed = np.concatenate([followed, np.ones(len(new), bool)])
        previous = grey
        yield positions, (followed & inside(positions, grey.shape)).astype(np.float32)


def inside(points: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return [P] bool: True for points [P, 2] within a frame of (height, width)."""
    with np.errstate(invalid="ignore"):
        return np.all((points >= -0.5) & (points <= np.array(size[::-1]) - 0.5), axis=-1)


def _step(method: Method) -> _Step:
    predictor = method.predictor
    if isinstance(predictor, LucasKanade):
        return predictor.step
    if isinstance(predictor, FlowWarp):
        return _flow_step()
    if isinstance(predictor, Identity):
        return lambda previous, grey, points: (points, np.ones(len(points), bool))
    raise InputError(f"expected a method that tracks points, got {method.label}")


def _flow_step() -> _Step:
    flow = dense_flow()

    def step(previous: np.ndarray, grey: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return points + sampled(flow(previous, grey), points), np.ones(len(points), bool)

    return step


def dense_flow() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return OpenCV's DIS optical flow, medium preset: from two grey images to the motion [H, W, 2] of the first."""
    # OpenCV's type stubs lack this function.
    flow: Any = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # pyright: ignore[reportAttributeAccessIssue]
    return lambda previous, grey: flow.calc(previous, grey, np.zeros((*grey.shape, 2), np.float32))


def sampled(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the values [P, 2] of a field [H, W, 2] float32 at points [P, 2], bilinear, at the border as inside."""
    x, y = (axis[:, None] for axis in points.astype(np.float32).T)
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]


# --- a file, from one or several labelled frames ---------------------------------------------------------------


@dataclass(frozen=True)
class TrackedVideo:
    """Points of a video as a method reports them.

    positions:   [F, K, 2] float64 for the requested frames; NaN where a point is not tracked
    confidences: [F, K] float64, 0..1; 0 where a point is not tracked
    seconds:     CPU and wall seconds per tracked frame
    """

    positions: np.ndarray
    confidences: np.ndarray
    seconds: tuple[float, float]


def track_video(
    method: Method,
    source: str,
    prompts: Mapping[int, Sequence[KeypointsObject]],
    frames: Sequence[int],
    keys: Sequence[tuple[int, str]],
    done: Callable[[], None] = lambda: None,
) -> TrackedVideo:
    """Track a video from its labelled frames, up to the last of the requested frames.

    prompts: objects by the index of a labelled frame; an object has the same id on all of them
    frames:  requested frames, ascending
    keys:    object's id and point's name of each of the K points
    done:    called after every tracked frame

    From one labelled frame all methods go forward. From several, the tracker does what corrflow-batch does. A baseline
    starts at the labelled frame of a point that is nearest in time, forward or backward. Raises InputError for a
    requested frame that the video does not have.
    """
    watch = Stopwatch()
    if len(prompts) == 1:
        tracked = _track_forward(method, source, prompts, frames[-1], watch)
    elif isinstance(method.predictor, TrackerMethod):
        tracked = watch.measured(_track_from_several(method.predictor, source, prompts, frames[-1]))
    else:
        tracked = _track_from_nearest(method, source, prompts, frames[-1], keys, watch)
    positions = np.full((len(frames), len(keys), 2), np.nan)
    confidences = np.zeros((len(frames), len(keys)))
    row_of = {frame: row for row, frame in enumerate(frames)}
    column_of = {key: column for column, key in enumerate(keys)}
    seen: set[int] = set()
    for frame, listed, points, confidence in tracked:
        if frame not in seen:
            seen.add(frame)
            done()
        if frame in row_of:
            columns = [column_of[key] for key in listed]
            positions[row_of[frame], columns] = points
            confidences[row_of[frame], columns] = confidence
    if missing := set(frames) - seen:
        raise InputError(
            f"expected the labelled frame {min(missing)} in {source}, got a video whose last frame is {max(seen)},"
            " counted from 0; give the labels of this video"
        )
    return TrackedVideo(positions, confidences, (watch.cpu / len(seen), watch.wall / len(seen)))


_Tracked = tuple[int, list[tuple[int, str]], np.ndarray, np.ndarray]  # frame, keys, positions, confidences


def _keys(objects: Sequence[KeypointsObject]) -> list[tuple[int, str]]:
    return [(one.id, name) for one in objects for name in one.point_names]


def _track_forward(
    method: Method, source: str, prompts: Mapping[int, Sequence[KeypointsObject]], last: int, watch: Stopwatch
) -> Iterator[_Tracked]:
    [(start, objects)] = prompts.items()
    with open_source(source) as opened:
        frames = (frame for frame in opened if frame.index >= start)
        images = (frame.image for frame in frames)
        tracked = watch.measured(track_objects(method, watch.measured(images, -1), {0: objects}))
        for frame, (points, confidence) in enumerate(tracked, start):
            yield frame, _keys(objects), points, confidence
            if frame >= last:
                break


def _track_from_several(
    method: TrackerMethod, source: str, prompts: Mapping[int, Sequence[KeypointsObject]], last: int
) -> Iterator[_Tracked]:
    objects = {frame: [CompressedAnnotation.of(one) for one in prompts[frame]] for frame in sorted(prompts)}
    with (
        tempfile.TemporaryDirectory(prefix="corrflow-") as folder,
        open_source(source) as opened,
        method.tracker(method.encoder.open(method.settings, THREADS)) as tracker,
    ):
        results = Path(folder) / "results"
        results.mkdir()
        options = PassOptions("", Path(folder) / "earlier", results, keep=False)
        with closing(track_bidirectional(opened, tracker, Annotations(objects), Path(folder), options)) as frames:
            for result in takewhile(lambda result: result.frame.index <= last, frames):
                points = [one for one in result.objects if one.points is not None and one.point_confidence is not None]
                keys = [(one.id, name) for one in points for name in one.point_names]
                positions = np.concatenate([np.zeros((0, 2)), *(np.asarray(one.points) for one in points)])
                confidences = np.concatenate([np.zeros(0), *(np.asarray(one.point_confidence) for one in points)])
                yield result.frame.index, keys, positions, confidences


def _track_from_nearest(
    method: Method,
    source: str,
    prompts: Mapping[int, Sequence[KeypointsObject]],
    last: int,
    keys: Sequence[tuple[int, str]],
    watch: Stopwatch,
) -> Iterator[_Tracked]:
    given = np.array(sorted(prompts))
    has_point = np.array([[key in _keys(prompts[frame]) for key in keys] for frame in given.tolist()])
    with (
        tempfile.TemporaryDirectory(prefix="corrflow-") as folder,
        open_source(source) as opened,
        FrameCache(Path(folder) / "frames") as cache,
    ):
        for frame in _up_to(opened, last):
            cache.append(frame)
        for number, start in enumerate(given.tolist()):
            own = _keys(prompts[start])
            columns = [keys.index(key) for key in own]
            for direction in (1, -1):
                stop = cache.indices.stop if direction == 1 else cache.indices.start - 1
                images = (cache[t].image for t in range(start, stop, direction))
                tracked = track_objects(method, watch.measured(images, -1), {0: prompts[start]})
                for offset, (points, confidence) in enumerate(watch.measured(tracked)):
                    t = start + direction * offset
                    distance = np.where(has_point, np.abs(given - t)[:, None], 1 << 40)
                    is_nearest = distance.argmin(0)[columns] == number  # the earlier one of two
                    if not is_nearest.any():
                        break
                    if offset or direction == 1:
                        chosen = np.flatnonzero(is_nearest)
                        yield t, [own[k] for k in chosen.tolist()], points[chosen], confidence[chosen]


def _up_to(source: FrameSource, last: int) -> Iterator[Frame]:
    return takewhile(lambda frame: frame.index <= last, source)
