"""Where frames come from: a video file, a folder of pictures or a glob pattern of pictures.

`open_source` is the only entry: it looks at the text the user gave and returns a `FrameSource`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from corrflow.errors import InputError
from corrflow.runtime.video.image_sequence import (
    PICTURE_SUFFIXES,
    PictureSource,
    find_pictures,
    is_picture,
    natural_order,
)
from corrflow.runtime.video.source import FrameSource
from corrflow.runtime.video.video_file import VideoSource

__all__ = [
    "PICTURE_SUFFIXES",
    "FrameSource",
    "PictureSource",
    "VideoSource",
    "natural_order",
    "open_frames",
    "open_source",
]


def open_frames(source: str | PathLike[str] | Iterable[Any]) -> FrameSource:
    """Open a source that a Python caller has: a path or a pattern, as `open_source` takes it, or frames.

    Raises InputError for any other value.
    """
    if isinstance(source, (str, PathLike)):
        return open_source(fspath(source))
    if not isinstance(source, Iterable):
        raise InputError(f"expected a path or an iterable of frames, got {type(source).__name__}; pass one of those")
    from corrflow.runtime.video.array_source import ArraySource

    return ArraySource(source)


def open_source(spec: str) -> FrameSource:
    """Open what the user named and decode its first frame, so that an unusable source is refused before any output.

    spec: path of a video file, of a picture, of a folder of pictures, or a glob pattern of pictures ("clip/*.jpg",
          "**" included); pictures come in natural order, frame2 before frame10

    Raises InputError where nothing is found, nothing can be decoded or two pictures share one name.
    """
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        pictures = find_pictures(os.path.join(glob.escape(path), "*"), f"folder {spec!r}")
        return PictureSource(pictures, name=Path(path).resolve().name)
    if os.path.isfile(path):
        if is_picture(Path(path)):
            return PictureSource([Path(path)], name=Path(path).stem)
        return VideoSource(Path(path))
    if glob.has_magic(path):
        pictures = find_pictures(path, f"pattern {spec!r}")
        return PictureSource(pictures, name=pictures[0].resolve().parent.name)
    problem = "is neither a file nor a folder" if os.path.exists(path) else "does not exist"
    raise InputError(
        f"expected a video file, a folder of pictures or a glob pattern, got {spec!r}, which {problem}; check the path"
    )
