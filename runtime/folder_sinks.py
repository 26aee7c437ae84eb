"""Folders of pictures that other tools read: one black and white mask for each object, cut-outs, and YouTube-VOS."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from corrflow.runtime.sinks import MaskFolderSink, Sink, prepare_place, save_whole, write_failed
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
                _save(self._folder / str(track.id) / f"{frame.name}.png", picture)

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
                _save(self._folder / str(track.id) / f"{frame.name}.png", picture)

    def close(self) -> None:
        pass


class YouTubeVosSink(Sink):
    """JPEGImages/NAME, Annotations/NAME and meta.json as the YouTube-VOS data set has them."""

    def __init__(self, folder: str | Path, name: str) -> None:
        """name: of the video. Raises InputError where nothing can be written into the folder."""
        self._folder, self._name = Path(folder), name
        self._masks = MaskFolderSink(self._folder / "Annotations" / name)
        prepare_place(self._folder / "meta.json")
        self._objects: dict[int, tuple[str, list[str]]] = {}

    def write(self, frame: Frame, tracks: Tracks) -> None:
        _save(self._folder / "JPEGImages" / self._name / f"{frame.name}.jpg", frame.image)
        self._masks.write(frame, tracks)
        for track in tracks.objects:
            if track.points is None:
                frames = self._objects.setdefault(track.id, (track.name or "object", []))[1]
                if track.visible:
                    frames.append(frame.name)

    def close(self) -> None:
        objects = {str(id): {"category": name, "frames": frames} for id, (name, frames) in self._objects.items()}
        path = self._folder / "meta.json"
        save_whole(path, json.dumps({"videos": {self._name: {"objects": objects}}}).encode())


def _save(path: Path, picture: np.ndarray) -> None:
    """A picture [H, W], [H, W, 3] BGR or [H, W, 4] BGRA, uint8, in the format of the path's suffix."""
    try:
        path.parent.mkdir(exist_ok=True, parents=True)
    except OSError as error:
        raise write_failed(path, error) from None
    save_whole(path, cv2.imencode(path.suffix, picture)[1].tobytes())  # JPEG at OpenCV's quality 95
