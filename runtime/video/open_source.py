"""Opening of frame sources: video files, folders of images, glob patterns, and frames from Python."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from contextlib import suppress
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from corrflow.errors import InputError
from corrflow.runtime.video.image_header import read_header
from corrflow.runtime.video.image_sequence import (
    IMAGE_SUFFIXES,
    ImageSequence,
    find_images,
    is_image,
    natural_order,
)
from corrflow.runtime.video.image_stack import StackSource
from corrflow.runtime.video.source import FrameSource
from corrflow.runtime.video.video_file import VideoSource

__all__ = [
    "IMAGE_SUFFIXES",
    "FrameSource",
    "ImageSequence",
    "VideoSource",
    "natural_order",
    "open_frames",
    "open_source",
]


def open_frames(source: str | PathLike[str] | Iterable[Any], strict: bool = False) -> FrameSource:
    """Open a path or a pattern, as `open_source` does, or an iterable of frames. Raises InputError."""
    if isinstance(source, (str, PathLike)):
        return open_source(fspath(source), strict)
    if not isinstance(source, Iterable):
        raise InputError(f"expected a path or an iterable of frames, got {type(source).__name__}; pass one of those")
    from corrflow.runtime.video.array_source import ArraySource

    return ArraySource(source)


def open_source(spec: str, strict: bool = False) -> FrameSource:
    """Open a source and decode its first frame, so that an unusable source is reported before any output.

    spec:   path of a video file, an image file of one or several frames or a folder of images, or a glob pattern of
            images ("clip/*.jpg", also with "**"); images have natural order, frame2 before frame10
    strict: True to end a video at its first damage, False to skip damage and report it in the source's notes

    Raises InputError where nothing is found or decoded, or two images have the same name.
    """
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        images = find_images(os.path.join(glob.escape(path), "*"), f"folder {spec!r}")
        return ImageSequence(images, name=Path(path).resolve().name)
    if os.path.isfile(path):
        return _open_file(Path(path), strict)
    if glob.has_magic(path):
        images = find_images(path, f"pattern {spec!r}")
        return ImageSequence(images, name=images[0].resolve().parent.name)
    problem = "is neither a file nor a folder" if os.path.exists(path) else "does not exist"
    raise InputError(
        f"expected a video file, a folder of images or a glob pattern, got {spec!r}, which {problem}; check the path"
    )


def _open_file(path: Path, strict: bool) -> FrameSource:
    if not is_image(path):
        return VideoSource(path, strict)
    with suppress(OSError), path.open("rb") as file:
        header = read_header(file)
        if header is not None and header.is_sequence:
            return StackSource(path, header) if header.kind in ("TIFF", "WebP") else VideoSource(path, strict)
    return ImageSequence([path], name=path.stem)
