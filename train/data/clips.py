"""Training clips, sampled from videos and images in a cache of small JPEG frames.

A clip is a pure function of the seed and the clip's number. So clips depend neither on interruptions of a run nor on
its number of processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from corrflow.atomic_files import AtomicFile, write_file
from corrflow.errors import CorrflowError, InputError
from corrflow.train.config import TrainConfig
from corrflow.train.data.frames import UNREADABLE, FrameSampling, decode_image, small_frames

FORMAT_VERSION = 1


@dataclass(frozen=True)
class CacheKey:
    """Identity of a cache.

    sources: path, size in bytes and modification time of every file, in order
    """

    sources: tuple[tuple[str, int, int], ...]
    frames_per_second: float
    short_side: int
    version: int = FORMAT_VERSION

    def digest(self) -> str:
        """Return 16 hexadecimal digits that identify the key."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class ClipCache:
    """JPEG frames of many videos in one memory-mapped file.

    names:   names of the V videos
    starts:  [V + 1] int64, first frame of each video
    skipped: {path: reason} of files that could not be read
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            self.offsets, self.starts = index["offsets"], index["starts"]
        description = json.loads((folder / "index.json").read_text())
        self.names: list[str] = description["names"]
        self.skipped: dict[str, str] = description["skipped"]
        # The file is empty if nothing could be decoded, and an empty file cannot be mapped.
        self._bytes = np.memmap(folder / "frames.bin", np.uint8, mode="r") if self.names else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self.names)

    def frame(self, index: int) -> np.ndarray:
        """Return frame `index` of the whole cache: [h, w, 3] uint8, BGR. Raises CorrflowError for a damaged frame."""
        frame = decode_image(self._bytes[self.offsets[index] : self.offsets[index + 1]])
        if frame is None:
            raise CorrflowError(f"frame {index} of the clip cache {self.folder} is damaged; delete that folder")
        return frame


def open_cache(
    items: list[Path],
    frames_per_second: float,
    short_side: int,
    cache_folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClipCache:
    """Open the cache of videos, image folders or images, and create it on first use.

    Files that cannot be decoded are listed in `skipped`. Raises InputError if no file can be decoded.
    """
    sources = tuple((str(item), item.stat().st_size, item.stat().st_mtime_ns) for item in items)
    folder = cache_folder / CacheKey(sources, frames_per_second, short_side).digest()
    if not (folder / "index.json").is_file():
        _write_cache(items, frames_per_second, short_side, folder, progress)
    cache = ClipCache(folder)
    if not len(cache):
        name, reason = next(iter(cache.skipped.items()))
        raise InputError(f"none of {len(items)} files could be decoded; the first, {name}: {reason}")
    return cache


def _write_cache(
    items: list[Path], rate: float, short_side: int, folder: Path, progress: Callable[[int, int], None]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    offsets, starts, names, skipped = [0], [0], [], {}
    with AtomicFile(folder / "frames.bin") as part, open(part, "wb") as file:
        for done, item in enumerate(items):
            progress(done, len(items))
            try:
                for encoded in small_frames(item, FrameSampling(rate, short_side)):
                    file.write(encoded)
                    offsets.append(offsets[-1] + len(encoded))
            except UNREADABLE as error:
                skipped[str(item)] = str(error)  # the frames before the damage stay in the cache
            if len(offsets) - 1 > starts[-1]:
                starts.append(len(offsets) - 1)
                names.append(item.name)
            elif str(item) not in skipped:
                skipped[str(item)] = "the file contains no frame"
    with AtomicFile(folder / "index.npz") as part, open(part, "wb") as file:
        np.savez(file, offsets=np.array(offsets, np.int64), starts=np.array(starts, np.int64))
    # Written last, so that a cache with this file is complete.
    write_file(folder / "index.json", json.dumps({"names": names, "skipped": skipped}))


class Videos(Protocol):
    """Source of the frames of clips."""

    def sample(
        self, number: int, length: int, generator: np.random.Generator, taken: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """Return `length` consecutive frames [h, w, 3] uint8, BGR of one video, a function of the arguments alone.

        number: clip number, which may determine the video
        taken:  numbers from 0 to length - 1 of the frames to decode and return; None for all
        """
        ...


class CachedVideos:
    """Videos of a cache with at least `length` frames. Raises InputError if there are none but some are required."""

    def __init__(self, cache: ClipCache, length: int, required: bool = True) -> None:
        self.cache = cache
        lengths = np.diff(cache.starts)
        self._long_enough = np.flatnonzero(lengths >= length)
        if not len(self._long_enough) and required:
            raise InputError(
                f"expected a video of at least {length} frames at --fps, got {int(lengths.max())} at most;"
                " use longer videos, a higher --fps or a smaller --frames"
            )
        self._probabilities = sampling_probabilities(lengths[self._long_enough])

    def sample(
        self, number: int, length: int, generator: np.random.Generator, taken: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """Return frames as `Videos.sample` defines."""
        video = generator.choice(self._long_enough, p=self._probabilities)
        first = generator.integers(self.cache.starts[video], self.cache.starts[video + 1] - length + 1)
        return [self.cache.frame(first + index) for index in (range(length) if taken is None else taken)]


def sampling_probabilities(lengths: np.ndarray) -> np.ndarray:
    """Return the probability of each video, proportional to the square root of its number of frames.

    Long videos show more than short ones, but less than in proportion to their length.
    """
    weight = np.sqrt(lengths.astype(np.float64))
    return weight / weight.sum() if len(weight) else weight


class ClipSampler:
    """Sampler of training clips.

    videos: source of frames, or a cache of videos
    images: cache of images, from which `config.image_share` of the clips are synthesised, or None
    """

    def __init__(self, videos: Videos | ClipCache, images: ClipCache | None, config: TrainConfig) -> None:
        self.images, self.config = images, config
        self.frames, self.crop = config.frames, config.crop
        self.image_share = config.image_share if images is not None else 0.0
        if isinstance(videos, ClipCache):
            videos = CachedVideos(videos, config.frames_needed, required=self.image_share < 1)
        self.videos = videos

    def clip(self, number: int) -> np.ndarray:
        """Return clip `number` of the run: [frames, crop, crop, 3] uint8, RGB."""
        generator = np.random.default_rng([self.config.seed, number])
        from_image = generator.random() < self.image_share
        clip = self._from_image(generator) if from_image else self._from_video(number, generator)
        return np.ascontiguousarray(clip[..., ::-1])

    def clips(self, numbers: Iterable[int]) -> np.ndarray:
        """Return the clips of `numbers`: [numbers, frames, crop, crop, 3] uint8, RGB."""
        return np.stack([self.clip(number) for number in numbers])

    def _from_video(self, number: int, generator: np.random.Generator) -> np.ndarray:
        frames = self.videos.sample(number, self.frames, generator)
        height, width = frames[0].shape[:2]
        side = min(height, width) * generator.uniform(self.config.min_crop_scale, 1.0)
        centre = generator.uniform((side / 2, side / 2), (width - side / 2, height - side / 2))
        matrix = _affine(centre, side, 0.0, 0.0, self.crop, mirrored=generator.random() < 0.5)
        if generator.random() < 0.5:
            frames.reverse()
        return np.stack([self._warp(frame, matrix) for frame in frames])

    def _from_image(self, generator: np.random.Generator) -> np.ndarray:
        """Synthesise a clip from one image by smooth random motion and change of light.

        Motion is translation, rotation, scale, shear and perspective; light is a gain of each channel. Frame 0 has the
        image's colours. The image is mirrored at its edges.
        """
        assert self.images is not None
        image = self.images.frame(int(generator.integers(self.images.starts[-1])))
        height, width = image.shape[:2]
        side = min(height, width) * generator.uniform(0.5, 0.9)
        centre = generator.uniform((side / 2, side / 2), (width - side / 2, height - side / 2))
        mirrored = generator.random() < 0.5
        # Per frame: up to about 16 pixels of a 256 crop, so that most matches are within a 13 x 13 window of cells.
        velocity = generator.normal(0, 0.03, 2).clip(-0.06, 0.06) * side
        rotation, growth, shear = generator.normal(0, (0.06, 0.04, 0.03)).clip(-0.15, 0.15)
        jitter = generator.normal(0, 0.006, (self.frames, 2)) * side
        # Per frame: up to a twentieth nearer at one edge of the crop, and as much farther at the opposite edge.
        tilt = generator.normal(0, 0.04, 2).clip(-0.1, 0.1)
        # Per frame: all channels brighter or darker by about 2 %, and each channel by 1 %, as under a cloud or a lamp.
        light = generator.normal(0, 0.02) + generator.normal(0, 0.01, 3)
        clip = []
        for t in range(self.frames):
            position, size = centre + velocity * t + jitter[t], side * np.exp(growth * t)
            matrix = _affine(position, size, rotation * t, shear * t, self.crop, mirrored)
            lit = image if t == 0 else _apply_gains(image, np.exp(light.clip(-0.06, 0.06) * t))
            clip.append(self._warp(lit, np.vstack([matrix, (0, 0, 1)]) @ _perspective(tilt * t, self.crop)))
        return np.stack(clip)

    def _warp(self, image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Warp to [crop, crop, 3] uint8 by a map [2, 3] or [3, 3] from crop pixels to image pixels."""
        size, flags = (self.crop, self.crop), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warp = cv2.warpAffine if len(matrix) == 2 else cv2.warpPerspective
        return warp(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _apply_gains(image: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Multiply each channel of [h, w, 3] uint8 by its gain, with a table of 256 values."""
    table = np.arange(256)[:, None] * gains
    return cv2.LUT(image, table.round().clip(0, 255).astype(np.uint8)[None])


def _perspective(tilt: np.ndarray, crop: int) -> np.ndarray:
    """Return the [3, 3] perspective map of crop pixels about the crop's centre.

    tilt: relative change of distance across the crop, horizontally and vertically
    """
    shift = np.eye(3)
    shift[:2, 2] = (crop - 1) / 2
    perspective = np.eye(3)
    perspective[2, :2] = tilt / crop
    return shift @ perspective @ np.linalg.inv(shift)


def _affine(
    centre: np.ndarray, side: float, rotation: float, shear: float, crop: int, mirrored: bool = False
) -> np.ndarray:
    """Return the [2, 3] map from crop pixels to a rotated, sheared square of `side` image pixels around `centre`."""
    scale = side / crop
    rotate = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    lean = np.array([[1.0, shear], [0.0, 1.0]])
    mirror = np.diag([-1.0 if mirrored else 1.0, 1.0])
    linear = scale * rotate @ lean @ mirror
    crop_centre = np.full(2, (crop - 1) / 2)
    return np.column_stack([linear, np.asarray(centre) - 0.5 - linear @ crop_centre])
