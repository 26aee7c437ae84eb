"""Tracking from Python in one loop: `for result in corrflow.track("video.mp4", masks="mask.png")`."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from corrflow.runtime.types import FrameResult

PathOrText = str | PathLike[str]


def track(
    source: PathOrText | Iterable[Any],
    masks: PathOrText | np.ndarray | Sequence[Any] | Mapping[Any, Any] | None = None,
    keypoints: PathOrText | Mapping[str, tuple[float, float]] | Sequence[Any] | np.ndarray | None = None,
    *,
    model: PathOrText | None = None,
    backend: str = "auto",
    short_side: int | None = None,
    memory_frames: int | None = None,
    redetect: bool = True,
    threads: int = 0,
    start: int | None = None,
) -> Generator[FrameResult, None, None]:
    """Track objects, prompted on one frame, through a source from there on, one frame at a time.

    source:    path of a video file or a folder of images, a glob pattern of images, or an iterable of frames: arrays
               [H, W, 3] uint8 in BGR, or PIL images
    masks:     path of a mask PNG or of an annotation file (COCO, LabelMe, CVAT, SLEAP, ...), an array or a PIL image
               [H, W] (bool or 0 and 255 for one object, uint8 of ids for several), a list of these, {id: mask} or
               {name: mask}
    keypoints: path of a CSV with the columns name,x,y, an array or list [P, 2], or {name: (x, y)}, in pixels; (0, 0) is
               the centre of the top-left pixel
    start:     number of the prompted frame, counted from 0; None for 0, or for the first frame that can be decoded
               where an annotation file states the frames
    model, backend, short_side, memory_frames, redetect, threads: as for `Tracker.from_model`

    Yields the result of every frame, the first as it was prompted. A few frames are held at a time; leaving the loop
    early closes everything. Raises InputError at the first frame for a value that cannot be used, SourceEndedEarly
    after the last good frame of a damaged source.
    """
    # Imported here, so that `import corrflow` costs neither OpenCV nor ONNX Runtime.
    from corrflow.runtime.formats.prompts import prompted_frame, prompts_from_values
    from corrflow.runtime.tracking.stream import track_source
    from corrflow.runtime.tracking.tracker import Tracker
    from corrflow.runtime.video.open_source import open_frames

    prompts = prompts_from_values(masks, keypoints)
    with (
        open_frames(source) as frames,
        Tracker.from_model(
            model, backend, short_side=short_side, memory_frames=memory_frames, redetect=redetect, threads=threads
        ) as tracker,
    ):
        yield from track_source(frames, tracker, prompts, prompted_frame(prompts, start))
