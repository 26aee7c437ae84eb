"""Folders of pictures that other tools read: one black and white mask for each object, cut-outs, and YouTube-VOS."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np

from corrflow.runtime.sinks import MaskFolderSink, Sink, finish, part_of, prepare_place, save_whole, write_failed
from corrflow.runtime.tracks import Frame, Tracks


class BinaryMaskSink(Sink):
    """OBJECT/FRAME.png for each mask object, by its id: [H, W] uint8, 255 on the object and 0 elsewhere."""

    def __init__(self, folder: str | Path) -> None:
        """Raises InputError where nothing can be written into the folder."""
        self._folder = Path(folder)
        prepare_place(self._folder / "mask.png")

    def write(self, frame: Frame, tracks: Tracks) -> None:
        for track in tracks.objects:
            if track.points is None:
                picture = (tracks.mask == track.id).astype(np.uint8) * 255
                _save(os.path.join(self._folder, str(track.id), f"{frame.name}.png"), picture)

    def close(self) -> None:
        pass


class CutoutSink(Sink):
    """OBJECT/FRAME.png for each mask object in sight: its box of the frame, transparent around the object."""

    def __init__(self, folder: str | Path) -> None:
        """Raises InputError where nothing can be written into the folder."""
        self._folder = Path(folder)
        prepare_place(self._folder / "cutout.png")

    def write(self, frame: Frame, tracks: Tracks) -> None:
        for track in tracks.objects:
            if track.box is not None:
                x0, y0, x1, y1 = track.box
                alpha = (tracks.mask[y0:y1, x0:x1] == track.id).astype(np.uint8) * 255
                picture = np.dstack([frame.image[y0:y1, x0:x1], alpha])  # BGRA
                _save(os.path.join(self._folder, str(track.id), f"{frame.name}.png"), picture)

    def close(self) -> None:
        pass


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

    def write(self, frame: Frame, tracks: Tracks) -> None:
        _save(os.path.join(self._folder, "JPEGImages", self._name, f"{frame.name}.jpg"), frame.image)
        self._masks.write(frame, tracks)
        drawn = [track for track in tracks.objects if track.points is None]
        self._categories |= {track.id: track.name or "object" for track in drawn}
        try:
            self._seen.write(json.dumps([frame.name, [track.id for track in drawn if track.visible]]) + "\n")
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


def _save(path: str, picture: np.ndarray) -> None:
    """A picture [H, W], [H, W, 3] BGR or [H, W, 4] BGRA, uint8, in the format of the path's suffix."""
    folder, name = os.path.split(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise write_failed(path, error) from None
    save_whole(path, cv2.imencode(os.path.splitext(name)[1], picture)[1].tobytes())  # JPEG at OpenCV's quality 95
