"""TODO."""

from __future__ import annotations

import json
import os
from pathlib import Path

from corrflow.atomic_files import finish, part_of, prepare_place, write_failed
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.image_folders import _save
from corrflow.runtime.formats.mask_png import MaskFolderSink
from corrflow.runtime.types import FrameResult


class YouTubeVosSink(Sink):
    """JPEGImages/NAME, Annotations/NAME and meta.json as the YouTube-VOS data set has them.

    Which object is seen on which frame waits in a file until the end.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        """name: of the video. Raises InputError where nothing can be written into the folder."""
        self._folder, self._name = Path(folder), name
        self._masks = MaskFolderSink(self._folder / "Annotations" / name)
        self._path = self._folder / "meta.json"
        prepare_place(self._path)
        self._seen_path = part_of(self._path.with_name("seen"))
        self._seen = self._seen_path.open("w+", encoding="utf-8")
        self._categories: dict[int, str] = {}

    def write(self, result: FrameResult) -> None:
        _save(os.path.join(self._folder, "JPEGImages", self._name, f"{result.frame.name}.jpg"), result.frame.image)
        self._masks.write(result)
        drawn = [track for track in result.objects if track.points is None]
        self._categories |= {track.id: track.name or "object" for track in drawn}
        try:
            self._seen.write(json.dumps([result.frame.name, [track.id for track in drawn if track.visible]]) + "\n")
        except OSError as error:
            raise write_failed(self._path, error) from None

    def close(self) -> None:
        if self._seen.closed:
            return
        try:
            with self._seen, part_of(self._path).open("w", encoding="utf-8") as file:
                file.write(f'{{"videos": {{{json.dumps(self._name)}: {{"objects": {{')
                for number, (identity, category) in enumerate(self._categories.items()):
                    file.write(
                        f'{", " if number else ""}"{identity}": {{"category": {json.dumps(category)}, "frames": ['
                    )
                    self._seen.seek(0)
                    before = ""
                    for name, visible in map(json.loads, self._seen):
                        if identity in visible:
                            file.write(before + json.dumps(name))
                            before = ", "
                    file.write("]}")
                file.write("}}}}")
            finish(self._path)
        except OSError as error:
            raise write_failed(self._path, error) from None
        finally:
            self._seen_path.unlink(missing_ok=True)
