"""Tracking from Python in one loop: `for tracks in corrflow.runtime.track("video.mp4", masks="mask.png")`."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.formats.mask_png import read_mask_objects
from corrflow.runtime.formats.points_csv import read_keypoints
from corrflow.runtime.settings import with_settings
from corrflow.runtime.tracking.occlusion import occlusion_settings_for
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, KeypointsObject, MaskObject, TrackedObject, Tracks
from corrflow.runtime.video.open_source import open_source
from corrflow.runtime.video.prefetch import read_ahead

PathOrText = str | PathLike[str]
Masks = PathOrText | np.ndarray | Sequence[PathOrText]
Keypoints = PathOrText | Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class FrameTracks(Tracks):
    """The tracks of one frame together with the frame that they were found on."""

    frame: Frame


def track(
    source: PathOrText,
    masks: Masks | None = None,
    keypoints: Keypoints | None = None,
    *,
    artifact: PathOrText | None = None,
    backend: str = "auto",
    short_side: int | None = None,
    memory_frames: int | None = None,
    threads: int = 0,
    redetect: bool = True,
) -> Generator[FrameTracks, None, None]:
    """Track objects, given on the first frame, through a source, one frame at a time.

    source:    video file, folder of pictures, or glob pattern of pictures
    masks:     PNG file or files as for corrflow-track --init, or an array [H, W]: bool for one object, uint8 of ids
    keypoints: CSV file as for corrflow-track --keypoints, or {name: (x, y)} in pixels, (0, 0) the top-left pixel's
               centre
    artifact, backend, short_side, memory_frames, threads, redetect: as the options of corrflow-track

    Yields the tracks of every frame, the first as it was given. A few frames are held at a time; leaving the loop early
    closes everything. Raises InputError at the first frame for what cannot be used, SourceEndedEarly after the last
    good frame of a damaged source.
    """
    objects = _objects(masks, keypoints)
    chosen = load_artifact(resolve_model(artifact))
    settings = with_settings(chosen.settings, short_side, memory_frames)
    with open_source(fspath(source)) as frames:
        engine = open_backend(backend, chosen, threads)
        try:
            presence = occlusion_settings_for(engine, settings) if redetect else None
            tracker, started = Tracker(engine, settings, presence), False
            with read_ahead(iter(frames)) as ahead:
                for frame in ahead:
                    tracks = tracker.step(frame.image) if started else tracker.start(frame.image, objects)
                    started = True
                    yield FrameTracks(tracks.mask, tracks.objects, frame=frame)
        finally:
            engine.close()


def _objects(masks: Masks | None, keypoints: Keypoints | None) -> list[TrackedObject]:
    objects: list[TrackedObject] = []
    if isinstance(masks, np.ndarray):
        objects += _objects_of_array(masks)
    elif isinstance(masks, (str, PathLike)):
        objects += read_mask_objects([Path(masks)])
    elif masks is not None:
        objects += read_mask_objects([Path(path) for path in masks])
    next_id = max((given.id for given in objects), default=0) + 1
    if isinstance(keypoints, Mapping):
        if keypoints:
            places = np.array(list(keypoints.values()), np.float32)
            objects.append(KeypointsObject(next_id, places, tuple(keypoints)))
    elif keypoints is not None:
        objects += read_keypoints(Path(keypoints), next_id)
    if not objects:
        raise InputError("expected masks or keypoints to track, got neither; pass masks= or keypoints=")
    return objects


def _objects_of_array(masks: np.ndarray) -> list[MaskObject]:
    if masks.ndim != 2 or masks.dtype not in (np.bool_, np.uint8):
        raise InputError(f"expected masks as [H, W] bool or uint8 of ids, got {masks.dtype} {list(masks.shape)}")
    if masks.dtype == np.bool_:
        return [MaskObject(1, masks)]
    return [MaskObject(value, masks == value) for value in np.unique(masks).tolist() if value]
