"""Training clips: videos decoded once into a compact cache of small JPEG frames, and clips drawn from it.

A clip is a pure function of the seed and its number, so a resumed run sees what an unbroken one would have seen,
however many processes share its clips out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from corrflow.atomic_files import whole_file, write_whole
from corrflow.errors import CorrflowError, InputError
from corrflow.train.config import TrainConfig
from corrflow.train.data.frames import UNREADABLE, FrameSampling, decoded, small_frames

FORMAT_VERSION = 1


@dataclass(frozen=True)
class CacheKey:
    """What a cache was made from; another key is another cache.

    sources: name, size in bytes and time of change of every file, in order
    """

    sources: tuple[tuple[str, int, int], ...]
    frames_per_second: float
    short_side: int
    version: int = FORMAT_VERSION

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class ClipCache:
    """Frames of many videos as JPEG in one file, opened by memory map.

    names:  V video names
    starts: [V + 1] int64, first frame of each video
    skipped: {name: reason} of the files that could not be read
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            self.offsets, self.starts = index["offsets"], index["starts"]
        description = json.loads((folder / "index.json").read_text())
        self.names: list[str] = description["names"]
        self.skipped: dict[str, str] = description["skipped"]
        # An empty file cannot be mapped; it is there when nothing could be decoded.
        self._bytes = np.memmap(folder / "frames.bin", np.uint8, mode="r") if self.names else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self.names)

    def frame(self, index: int) -> np.ndarray:
        """Frame `index` of the whole cache: [h, w, 3] uint8, BGR."""
        picture = decoded(self._bytes[self.offsets[index] : self.offsets[index + 1]])
        if picture is None:
            raise CorrflowError(f"frame {index} of the clip cache {self.folder} is damaged; delete that folder")
        return picture


def open_cache(
    items: list[Path],
    frames_per_second: float,
    short_side: int,
    cache_folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClipCache:
    """The cache of these videos, folders of pictures or single pictures; made on first use.

    Files that cannot be decoded are left out and named in `skipped`; raises InputError where nothing is left.
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
    with whole_file(folder / "frames.bin") as part, part.open("wb") as file:
        for done, item in enumerate(items):
            progress(done, len(items))
            try:
                for encoded in small_frames(item, FrameSampling(rate, short_side)):
                    file.write(encoded)
                    offsets.append(offsets[-1] + len(encoded))
            except UNREADABLE as error:
                skipped[str(item)] = str(error)  # the frames before the damage are kept
            if len(offsets) - 1 > starts[-1]:
                starts.append(len(offsets) - 1)
                names.append(item.name)
            elif str(item) not in skipped:
                skipped[str(item)] = "no frame in it"
    with whole_file(folder / "index.npz") as part, part.open("wb") as file:
        np.savez(file, offsets=np.array(offsets, np.int64), starts=np.array(starts, np.int64))
    # Written last: a cache with this file is whole.
    write_whole(folder / "index.json", json.dumps({"names": names, "skipped": skipped}))


class Videos(Protocol):
    """Where the frames of clips come from."""

    def draw(self, number: int, length: int, generator: np.random.Generator) -> list[np.ndarray]:
        """`length` neighbouring frames [h, w, 3] uint8, BGR of one video for clip `number`, the same every time."""
        ...


class CachedVideos:
    """Clips from a cache: every one from any of the videos of at least `length` frames.

    Raises InputError where there is none and one is needed.
    """

    def __init__(self, cache: ClipCache, length: int, needed: bool = True) -> None:
        self.cache = cache
        lengths = np.diff(cache.starts)
        self._long_enough = np.flatnonzero(lengths >= length)
        if not len(self._long_enough) and needed:
            raise InputError(
                f"expected a video of at least {length} frames at --fps, got {int(lengths.max())} at most;"
                " use longer videos, a higher --fps or a smaller --frames"
            )
        self._probability = chances(lengths[self._long_enough])

    def draw(self, number: int, length: int, generator: np.random.Generator) -> list[np.ndarray]:
        video = generator.choice(self._long_enough, p=self._probability)
        first = generator.integers(self.cache.starts[video], self.cache.starts[video + 1] - length + 1)
        return [self.cache.frame(index) for index in range(first, first + length)]


def chances(lengths: np.ndarray) -> np.ndarray:
    """Probability of each video by its frames: a long one has more to show than a short one, not in proportion."""
    weight = np.sqrt(lengths.astype(np.float64))
    return weight / weight.sum() if len(weight) else weight


class ClipSampler:
    """Draws clips.

    videos: where frames come from, or a cache of videos; stills: cache of photographs or None; a share of the clips is
    made from the latter. The sizes, shares and the seed are those of the configuration.
    """

    def __init__(self, videos: Videos | ClipCache, stills: ClipCache | None, config: TrainConfig) -> None:
        self.stills, self.config = stills, config
        self.frames, self.crop = config.frames, config.crop
        self.image_share = config.image_share if stills is not None else 0.0
        if isinstance(videos, ClipCache):
            videos = CachedVideos(videos, self.frames, needed=self.image_share < 1)
        self.videos = videos

    def clip(self, number: int) -> np.ndarray:
        """Clip `number` of the run: [frames, crop, crop, 3] uint8, RGB; the same whatever came before."""
        generator = np.random.default_rng([self.config.seed, number])
        still = generator.random() < self.image_share
        clip = self._from_still(generator) if still else self._from_video(number, generator)
        return np.ascontiguousarray(clip[..., ::-1])

    def clips(self, numbers: Iterable[int]) -> np.ndarray:
        """The clips of these numbers: [numbers, frames, crop, crop, 3] uint8, RGB."""
        return np.stack([self.clip(number) for number in numbers])

    def _from_video(self, number: int, generator: np.random.Generator) -> np.ndarray:
        pictures = self.videos.draw(number, self.frames, generator)
        height, width = pictures[0].shape[:2]
        side = min(height, width) * generator.uniform(self.config.min_crop_scale, 1.0)
        centre = generator.uniform((side / 2, side / 2), (width - side / 2, height - side / 2))
        matrix = _affine(centre, side, 0.0, 0.0, self.crop, mirrored=generator.random() < 0.5)
        if generator.random() < 0.5:
            pictures.reverse()
        return np.stack([self._warp(picture, matrix) for picture in pictures])

    def _from_still(self, generator: np.random.Generator) -> np.ndarray:
        """A photograph under a smooth random motion and change of light, mirrored at its edges.

        Motion is translation, rotation, scale, shear and perspective; light is a gain of each channel. Frame 0 has the
        photograph's own colours.
        """
        assert self.stills is not None
        picture = self.stills.frame(int(generator.integers(self.stills.starts[-1])))
        height, width = picture.shape[:2]
        side = min(height, width) * generator.uniform(0.5, 0.9)
        centre = generator.uniform((side / 2, side / 2), (width - side / 2, height - side / 2))
        mirrored = generator.random() < 0.5
        # Per frame: up to about 16 pixels of a 256 crop, so that most matches lie in a 13 x 13 window of cells.
        velocity = generator.normal(0, 0.03, 2).clip(-0.06, 0.06) * side
        turn, growth, lean = generator.normal(0, (0.06, 0.04, 0.03)).clip(-0.15, 0.15)
        wobbles = generator.normal(0, 0.006, (self.frames, 2)) * side
        # Per frame: nearer by up to a twentieth at one edge of the crop, and as much farther at the other.
        tilt = generator.normal(0, 0.04, 2).clip(-0.1, 0.1)
        # Per frame: all channels brighter or darker by about 2 %, and each of them by 1 %, as under a cloud or a lamp.
        light = generator.normal(0, 0.02) + generator.normal(0, 0.01, 3)
        clip = []
        for t in range(self.frames):
            matrix = _affine(
                centre + velocity * t + wobbles[t], side * np.exp(growth * t), turn * t, lean * t, self.crop, mirrored
            )
            lit = picture if t == 0 else _scaled(picture, np.exp(light.clip(-0.06, 0.06) * t))
            clip.append(self._warp(lit, np.vstack([matrix, (0, 0, 1)]) @ _tilted(tilt * t, self.crop)))
        return np.stack(clip)

    def _warp(self, picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """[crop, crop, 3] uint8 by the map [2, 3] or [3, 3] from crop pixels to picture pixels."""
        size, flags = (self.crop, self.crop), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warp = cv2.warpAffine if len(matrix) == 2 else cv2.warpPerspective
        return warp(picture, matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _scaled(picture: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """[h, w, 3] uint8 with each channel times its gain, by a table of 256 values."""
    table = np.arange(256)[:, None] * gains
    return cv2.LUT(picture, table.round().clip(0, 255).astype(np.uint8)[None])


def _tilted(tilt: np.ndarray, crop: int) -> np.ndarray:
    """[3, 3] map of crop pixels under perspective about the crop's middle; tilt: change of distance across the crop."""
    middle = np.eye(3)
    middle[:2, 2] = (crop - 1) / 2
    perspective = np.eye(3)
    perspective[2, :2] = tilt / crop
    return middle @ perspective @ np.linalg.inv(middle)


def _affine(centre: np.ndarray, side: float, turn: float, lean: float, crop: int, mirrored: bool = False) -> np.ndarray:
    """[2, 3] map from crop pixels to picture pixels: a square of `side` around `centre`, turned and sheared."""
    scale = side / crop
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shear = np.array([[1.0, lean], [0.0, 1.0]])
    mirror = np.diag([-1.0 if mirrored else 1.0, 1.0])
    linear = scale * rotation @ shear @ mirror
    middle = np.full(2, (crop - 1) / 2)
    return np.column_stack([linear, np.asarray(centre) - 0.5 - linear @ middle])
