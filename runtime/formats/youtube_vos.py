"""YouTube-VOS folders: JPEG frames, palette masks, and meta.json with the frames of each object."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.image_folders import save_image
from corrflow.runtime.formats.mask_png import MaskFolderSink
from corrflow.runtime.types import FrameResult


class YouTubeVosSink(Sink):
    """Writer of JPEGImages/NAME, Annotations/NAME and meta.json, as in the YouTube-VOS data set."""

    def __init__(self, folder: str | Path, name: str) -> None:
        """Create the folders.

        name: name of the video

        Raises InputError where nothing can be written to the folder.
        """
        self._folder, self._name = Path(folder), name
        self._masks = MaskFolderSink(self._folder / "Annotations" / name, is_wide=False)
        self._path = self._folder / "meta.json"
        check_writable(self._path)
        self._output = AtomicFile(self._path)
        # The visible objects of each frame; in a file, so that memory does not grow with the video.
        self._visible_output = AtomicFile(self._folder / "visible")
        self._visible = open(self._visible_output.part, "w+", encoding="utf-8")  # noqa: SIM115, open until close()
        self._categories: dict[int, str] = {}

    def write(self, result: FrameResult) -> None:
        save_image(os.path.join(self._folder, "JPEGImages", self._name, f"{result.frame.name}.jpg"), result.frame.image)
        self._masks.write(result)
        masks = [obj for obj in result.objects if obj.points is None]
        # An object that no frame shows has no place in the data set, whose loaders look for its first frame.
        self._categories |= {obj.id: obj.category or obj.name or "object" for obj in masks if obj.visible}
        with write_errors(self._path):
            self._visible.write(json.dumps([result.frame.name, [obj.id for obj in masks if obj.visible]]) + "\n")

    def close(self) -> None:
        if self._visible.closed:
            return
        with write_errors(self._path), ExitStack() as stack:
            stack.callback(self._visible_output.finish, keep=False)
            with self._visible, self._output as part, open(part, "w", encoding="utf-8") as file:
                file.write(f'{{"videos": {{{json.dumps(self._name)}: {{"objects": {{')
                for number, (identity, category) in enumerate(self._categories.items()):
                    file.write(
                        f'{", " if number else ""}"{identity}": {{"category": {json.dumps(category)}, "frames": ['
                    )
                    self._visible.seek(0)
                    separator = ""
                    for name, visible in map(json.loads, self._visible):
                        if identity in visible:
                            file.write(separator + json.dumps(name))
                            separator = ", "
                    file.write("]}")
                file.write("}}}}")
