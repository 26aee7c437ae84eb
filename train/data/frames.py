"""Frames of videos: which files below a folder are videos, and their pictures, made small, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from corrflow.errors import InputError

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
UNREADABLE = (OSError, ValueError, MemoryError, cv2.error)  # PyAV's errors are of the first two


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def find_videos(folder: Path) -> list[Path]:
    """Video files below `folder`, and folders of pictures (one video each), in order of their names.

    Of the layouts of DAVIS and YouTube-VOS the frames alone are taken, once: no masks, and where there are frames in
    480p and in Full-Resolution, those in 480p. Raises InputError where there is neither.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder of videos or of picture folders, got {folder}, which is no folder")
    found = [
        path
        for path in (folder, *folder.rglob("*"))
        if (path.is_dir() and any(is_picture(child) for child in path.iterdir()))
        or (path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    ]
    found = [path for path in found if not _is_no_video_of_its_own(path.relative_to(folder), folder)]
    if not found:
        raise InputError(
            f"expected videos ({', '.join(sorted(VIDEO_SUFFIXES))}) or folders of pictures in {folder}, found none;"
            " name the folder that holds them"
        )
    return sorted(found)


def _is_no_video_of_its_own(path: Path, folder: Path) -> bool:
    """Whether this is a folder of masks, or frames that are also there in 480p."""
    for depth, part in enumerate(path.parts):
        if part.startswith("Annotations"):
            return True
        if (
            part == "Full-Resolution"
            and folder.joinpath(*path.parts[:depth], "480p", *path.parts[depth + 1 :]).exists()
        ):
            return True
    return False


def find_pictures(folder: Path) -> list[Path]:
    """Picture files below `folder` in order of their names; raises InputError where there are none."""
    found = sorted(path for path in folder.rglob("*") if is_picture(path))
    if not found:
        raise InputError(
            f"expected photographs ({', '.join(sorted(PICTURE_SUFFIXES))}) in {folder}, found none;"
            " point --images at the folder that holds them"
        )
    return found


@dataclass(frozen=True)
class FrameSampling:
    """How frames are made small.

    frames_per_second: rate at which they are taken
    short_side:        most pixels of the short side
    quality:           of the JPEG, 1 to 100
    folder_rate:       frames a second that folders of pictures hold; None takes every picture
    """

    frames_per_second: float
    short_side: int
    quality: int = 95
    folder_rate: float | None = None

    def __post_init__(self) -> None:
        limits = {
            "frames_per_second": (0.1, 240.0), "short_side": (16, 4096), "quality": (1, 100),
            "folder_rate": (0.1, 1000.0),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"expected {name.replace('_', ' ')} between {low} and {high}, got {value}")


def small_frames(item: Path, how: FrameSampling) -> Iterator[bytes]:
    """The frames of a video, of a folder of pictures or of a single picture, each as a small JPEG.

    Raises UNREADABLE where decoding fails, after the frames before the damage.
    """
    for picture in _decode(item, how.frames_per_second, how.folder_rate):
        yield _encoded(_shrink(picture, how.short_side), how.quality)


def decoded(content: np.ndarray) -> np.ndarray | None:
    """A picture [h, w, 3] uint8, BGR from the bytes of its file [n] uint8; None where they are damaged."""
    try:
        return cv2.imdecode(content, cv2.IMREAD_COLOR)
    except cv2.error:  # no bytes at all
        return None


def _encoded(picture: np.ndarray, quality: int) -> bytes:
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _decode(item: Path, rate: float, folder_rate: float | None) -> Iterator[np.ndarray]:
    """Pictures [h, w, 3] uint8, BGR at about `rate` a second; see `FrameSampling` for folders."""
    if item.is_dir() or item.suffix.lower() in PICTURE_SUFFIXES:
        pictures = [item] if item.is_file() else sorted(p for p in item.iterdir() if is_picture(p))
        if folder_rate is not None and folder_rate > rate:
            # Picture i is from i / folder_rate seconds on; the first at or after each tick of `rate` is taken.
            ticks = [int(i * rate / folder_rate + 1e-9) for i in range(len(pictures))]
            pictures = [p for i, p in enumerate(pictures) if i == 0 or ticks[i] > ticks[i - 1]]
        for path in pictures:
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if picture is None:
                raise ValueError(f"{path.name} is not a picture that can be decoded")
            yield picture
        return
    import av

    with av.open(str(item)) as container:
        if not container.streams.video:
            raise ValueError("no video stream in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        due = None
        for frame in container.decode(stream):
            time = frame.time if frame.time is not None else 0.0
            if due is None:
                due = time
            if time + 1e-6 < due:
                continue
            due = max(due + 1.0 / rate, time - 1.0 / rate)
            yield frame.to_ndarray(format="bgr24")


def _shrink(picture: np.ndarray, short_side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return picture
    return cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
