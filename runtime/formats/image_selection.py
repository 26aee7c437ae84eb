"""Selection of a video's images from a file of labels that lists images, perhaps of several videos."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from corrflow.runtime.formats.annotations import ReadContext, stands_for
from corrflow.runtime.formats.label_schema import FrameKey

_Id = TypeVar("_Id")

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")
_NUMBER = re.compile(r"[_\-. ]*(frame|img|image)?[_\-. ]*[0-9]+$", re.IGNORECASE)

# Roboflow adds the suffix of the original and a digest: img_5_png.rf.0123abcd.jpg.
_ROBOFLOW = re.compile(r"_(png|jpe?g|bmp|tiff?|webp)\.rf\.[0-9A-Za-z]+$")


@dataclass(frozen=True)
class ListedImage:
    """Image as a file of labels lists it.

    path:  path of the image in the file
    video: name of its video in the file; "" where the file has none
    index: index of the frame in the file; None without one
    """

    path: str
    video: str = ""
    index: int | None = None


def select_images(images: Mapping[_Id, ListedImage], context: ReadContext) -> dict[_Id, FrameKey]:
    """Return the frames of those images that belong to the context's video, and note how they were chosen.

    An image belongs to the video that the file names for it. Without one, its folder is the name of the video, or its
    own name begins with that, such as clip_00005.png.
    """
    videos = {key: _video_of(image, context) for key, image in images.items()}
    chosen = context.select_videos(set(videos.values()))
    if not chosen and not context.is_shared and all(_is_loose(image) for image in images.values()):
        chosen = set(videos.values())
    selected = [key for key, video in videos.items() if video in chosen]
    if len(selected) < len(images):
        by_name = next((key for key in selected if _is_loose(images[key]) and videos[key]), None)
        if by_name is not None:
            context.ignore(f"images not named like {images[by_name].path!r}", "they are of another video")
    return {key: _frame_of(images[key], context) for key in selected}


def stem_of(path: str) -> str:
    """Return the name of an image without folders and suffix; a name may lack the suffix, as in frame_000005."""
    return _ROBOFLOW.sub("", _SUFFIX.sub("", PurePosixPath(path.replace("\\", "/")).name))


def _frame_of(image: ListedImage, context: ReadContext) -> FrameKey:
    """Return the name of an image, or its index in the file where the video's images do not have that name."""
    stem = stem_of(image.path)
    if image.index is None or (context.frame_names is not None and stem in context.frame_names):
        return stem
    return image.index


def _is_loose(image: ListedImage) -> bool:
    """Return True for an image without a named video and without a folder."""
    return not image.video and "/" not in image.path.replace("\\", "/")


def _video_of(image: ListedImage, context: ReadContext) -> str:
    if image.video:
        return image.video
    parts = PurePosixPath(image.path.replace("\\", "/")).parts[:-1]
    if parts:
        return next((part for part in reversed(parts) if stands_for(part, context.video)), "/".join(parts))
    stem = stem_of(image.path)
    beginning = _NUMBER.sub("", stem)
    if beginning != stem and stands_for(beginning, context.video):
        return beginning
    if context.is_shared and context.frame_names is not None and stem in context.frame_names and beginning:
        return context.video  # a name that hardly two videos have
    return ""
