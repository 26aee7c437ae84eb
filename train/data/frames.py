"""Video files and image folders: search, decoding, and resizing to small JPEG frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from corrflow.errors import InputError

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
UNREADABLE = (OSError, ValueError, MemoryError, cv2.error)  # PyAV's errors derive from the first two


def is_image(path: Path) -> bool:
    """Check the suffix of a path."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def find_videos(folder: Path) -> list[Path]:
    """Find video files and image folders (one video each) below `folder`, sorted by name.

    Mask folders of DAVIS and YouTube-VOS are ignored, and DAVIS's Full-Resolution frames if there are 480p frames.
    Raises InputError if nothing is found.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder of videos or of image folders, got {folder}, which is no folder")
    found = [
        path
        for path in (folder, *folder.rglob("*"))
        if (path.is_dir() and any(is_image(child) for child in path.iterdir()))
        or (path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    ]
    found = [path for path in found if not _is_mask_folder_or_duplicate(path.relative_to(folder), folder)]
    if not found:
        raise InputError(
            f"expected videos ({', '.join(sorted(VIDEO_SUFFIXES))}) or folders of images in {folder}, found none;"
            " name the folder that contains them"
        )
    return sorted(found)


def _is_mask_folder_or_duplicate(path: Path, folder: Path) -> bool:
    """Detect folders of masks, and frames that exist in 480p as well."""
    for depth, part in enumerate(path.parts):
        if part.startswith("Annotations"):
            return True
        if (
            part == "Full-Resolution"
            and folder.joinpath(*path.parts[:depth], "480p", *path.parts[depth + 1 :]).exists()
        ):
            return True
    return False


def find_images(folder: Path) -> list[Path]:
    """Find image files below `folder`, sorted by name; raise InputError if there are none."""
    found = sorted(path for path in folder.rglob("*") if is_image(path))
    if not found:
        raise InputError(
            f"expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {folder}, found none;"
            " point --images at the folder that contains them"
        )
    return found


@dataclass(frozen=True)
class FrameSampling:
    """Sampling rate, size and compression of frames.

    frames_per_second: sampling rate
    short_side:        largest short side in pixels; larger frames are downscaled
    quality:           JPEG quality, 1 to 100
    folder_rate:       frame rate of image folders; None takes every image
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


def small_frames(item: Path, sampling: FrameSampling) -> Iterator[bytes]:
    """Yield the sampled frames of a video, of an image folder or of one image as small JPEG files.

    Raises one of UNREADABLE at damage, after the frames before it.
    """
    for frame in _read_frames(item, sampling.frames_per_second, sampling.folder_rate):
        yield _encode_jpeg(_downscale(frame, sampling.short_side), sampling.quality)


def decode_image(content: np.ndarray) -> np.ndarray | None:
    """Decode the bytes [n] uint8 of an image file to [h, w, 3] uint8, BGR; return None for damaged files."""
    try:
        return cv2.imdecode(content, cv2.IMREAD_COLOR)
    except cv2.error:  # an empty file
        return None


def _encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _read_frames(item: Path, rate: float, folder_rate: float | None) -> Iterator[np.ndarray]:
    """Yield frames [h, w, 3] uint8, BGR at about `rate` per second; see `FrameSampling` for folders."""
    if item.is_dir() or item.suffix.lower() in IMAGE_SUFFIXES:
        paths = [item] if item.is_file() else sorted(p for p in item.iterdir() if is_image(p))
        if folder_rate is not None and folder_rate > rate:
            # Image i is at i / folder_rate seconds; the first image at or after each tick of `rate` is taken.
            ticks = [int(i * rate / folder_rate + 1e-9) for i in range(len(paths))]
            paths = [p for i, p in enumerate(paths) if i == 0 or ticks[i] > ticks[i - 1]]
        for path in paths:
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise ValueError(f"{path.name} is not an image that can be decoded")
            yield image
        return
    import av

    with av.open(str(item)) as container:
        if not container.streams.video:
            raise ValueError("the file contains no video stream")
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


def _downscale(frame: np.ndarray, short_side: int) -> np.ndarray:
    height, width = frame.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return frame
    return cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
