"""Images of frames beside the labels, where the tool of a format looks for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import cv2

from corrflow.atomic_files import AtomicFile, write_errors, write_file
from corrflow.runtime.formats.label_schema import LabelSchema
from corrflow.runtime.formats.registry import FORMATS, MASK_SUFFIXES
from corrflow.runtime.types import Frame

WITH_FRAMES = ("none", "all", "labelled", "suggested")
"""Values of --with-frames."""


class ImageWriter:
    """Writer of the images of chosen frames for every format that refers to images."""

    def __init__(self, results: Path, formats: Sequence[str], schema: LabelSchema, video: str, source: Path) -> None:
        """Prepare the folders.

        results: folder of a video's results
        video:   name of the video
        source:  file or folder of the video; the images of a folder are copied as they are
        """
        folders = (FORMATS[name].images for name in formats)
        places = dict.fromkeys(folder.format(video=video) for folder in folders if folder)
        self._folders = [results / place for place in places]
        self._schema = schema
        self._source = source if source.is_dir() else None

    def write(self, frame: Frame) -> None:
        """Write the image of a frame. Raises CorrflowError where the disk is full."""
        name = _inner_path(self._schema.image_name(frame))
        for folder in self._folders:
            path = folder / name
            original = self._source / frame.file_name if self._source is not None and frame.file_name else None
            if original is not None and original.suffix == path.suffix:
                with write_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with AtomicFile(path) as part:
                        shutil.copyfile(original, part)
                continue
            suffix = path.suffix.lower() if path.suffix.lower() in MASK_SUFFIXES else ".jpg"
            quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix in (".jpg", ".jpeg") else []
            write_file(path, cv2.imencode(suffix, frame.image, quality)[1].tobytes())


def _inner_path(name: str) -> str:
    """Return a path of the labels without anything that leaves the folder of images."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    return os.path.join(*[part for part in parts if ":" not in part] or ["image.jpg"])
