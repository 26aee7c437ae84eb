"""Training clips: videos decoded once into a compact cache of small JPEG frames, and clips drawn from it.

A clip is a pure function of the seed and its number, so a resumed run sees what an unbroken one would have seen,
however many processes share its clips out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from corrflow.plugins.errors import CorrflowError, InputError
from corrflow.train.config import TrainConfig

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
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
        encoded = self._bytes[self.offsets[index] : self.offsets[index + 1]]
        picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        if picture is None:
            raise CorrflowError(f"frame {index} of the clip cache {self.folder} is damaged; delete that folder")
        return picture


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
        if (path.is_dir() and any(child.suffix.lower() in PICTURE_SUFFIXES for child in path.iterdir()))
        or (path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    ]
    found = [path for path in found if not _is_no_video_of_its_own(path.relative_to(folder), folder)]
    if not found:
        raise InputError(
            f"expected videos ({', '.join(sorted(VIDEO_SUFFIXES))}) or folders of pictures in {folder}, found none;"
            " point --data at the folder that holds them"
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
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    if not found:
        raise InputError(
            f"expected photographs ({', '.join(sorted(PICTURE_SUFFIXES))}) in {folder}, found none;"
            " point --stills at the folder that holds them"
        )
    return found


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
    partial = folder / f"frames.bin.{os.getpid()}.partial"
    with partial.open("wb") as file:
        for done, item in enumerate(items):
            progress(done, len(items))
            try:
                for picture in _decode(item, rate):
                    encoded = cv2.imencode(".jpg", _shrink(picture, short_side), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
                    file.write(encoded.tobytes())
                    offsets.append(offsets[-1] + encoded.size)
            except (OSError, ValueError, cv2.error) as error:
                skipped[str(item)] = str(error)  # the frames before the damage are kept
            if len(offsets) - 1 > starts[-1]:
                starts.append(len(offsets) - 1)
                names.append(item.name)
            elif str(item) not in skipped:
                skipped[str(item)] = "no frame in it"
    os.replace(partial, folder / "frames.bin")
    index = folder / f"index.{os.getpid()}.partial.npz"
    np.savez(index, offsets=np.array(offsets, np.int64), starts=np.array(starts, np.int64))
    os.replace(index, folder / "index.npz")
    # Written last: a cache with this file is whole.
    description = folder / f"index.json.{os.getpid()}.partial"
    description.write_text(json.dumps({"names": names, "skipped": skipped}))
    os.replace(description, folder / "index.json")


def _decode(item: Path, rate: float) -> Iterator[np.ndarray]:
    """Pictures [h, w, 3] uint8, BGR at about `rate` a second; a folder or a single picture gives every picture.

    Raises OSError or ValueError (PyAV's errors are both) where decoding fails.
    """
    if item.is_dir() or item.suffix.lower() in PICTURE_SUFFIXES:
        pictures = (
            [item] if item.is_file() else sorted(p for p in item.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
        )
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


class ClipSampler:
    """Draws clips.

    videos: cache of videos; stills: cache of photographs or None; a share of the clips is made from the latter.
    The sizes, shares and the seed are those of the configuration.
    """

    def __init__(self, videos: ClipCache, stills: ClipCache | None, config: TrainConfig) -> None:
        self.videos, self.stills, self.config = videos, stills, config
        self.frames, self.crop = config.frames, config.crop
        self.stills_share = config.stills_share if stills is not None else 0.0
        lengths = np.diff(videos.starts)
        self._long_enough = np.flatnonzero(lengths >= self.frames)
        if not len(self._long_enough) and self.stills_share < 1:
            raise InputError(
                f"expected a video of at least {self.frames} frames at --fps, got {int(lengths.max())} at most;"
                " use longer videos, a higher --fps or a smaller --frames"
            )
        # A long video has more to show than a short one, though not in proportion.
        weight = np.sqrt(lengths[self._long_enough].astype(np.float64))
        self._probability = weight / weight.sum() if len(weight) else weight

    def clip(self, number: int) -> np.ndarray:
        """Clip `number` of the run: [frames, crop, crop, 3] uint8, RGB; the same whatever came before."""
        generator = np.random.default_rng([self.config.seed, number])
        still = generator.random() < self.stills_share
        return np.ascontiguousarray((self._from_still if still else self._from_video)(generator)[..., ::-1])

    def clips(self, numbers: Iterable[int]) -> np.ndarray:
        """The clips of these numbers: [numbers, frames, crop, crop, 3] uint8, RGB."""
        return np.stack([self.clip(number) for number in numbers])

    def _from_video(self, generator: np.random.Generator) -> np.ndarray:
        video = generator.choice(self._long_enough, p=self._probability)
        first = generator.integers(self.videos.starts[video], self.videos.starts[video + 1] - self.frames + 1)
        pictures = [self.videos.frame(index) for index in range(first, first + self.frames)]
        height, width = pictures[0].shape[:2]
        side = min(height, width) * generator.uniform(self.config.smallest_view, 1.0)
        centre = generator.uniform((side / 2, side / 2), (width - side / 2, height - side / 2))
        matrix = _affine(centre, side, 0.0, 0.0, self.crop, mirrored=generator.random() < 0.5)
        if generator.random() < 0.5:
            pictures.reverse()
        return np.stack([self._warp(picture, matrix) for picture in pictures])

    def _from_still(self, generator: np.random.Generator) -> np.ndarray:
        """A photograph under a smooth random motion: translation, rotation, scale and shear, mirrored at its edges."""
        assert self.stills is not None
        picture = self.stills.frame(int(generator.integers(self.stills.starts[-1])))
        height, width = picture.shape[:2]
        side = min(height, width) * generator.uniform(0.5, 0.9)
        centre = generator.uniform((side / 2, side / 2), (width - side / 2, height - side / 2))
        mirrored = generator.random() < 0.5
        # Per frame: up to about 16 pixels of a 256 crop, so that most matches lie in a 13 x 13 window of cells.
        velocity = generator.normal(0, 0.03, 2).clip(-0.06, 0.06) * side
        turn, growth, lean = generator.normal(0, (0.06, 0.04, 0.03)).clip(-0.15, 0.15)
        clip = []
        for t in range(self.frames):
            wobble = generator.normal(0, 0.006, 2) * side
            matrix = _affine(
                centre + velocity * t + wobble, side * np.exp(growth * t), turn * t, lean * t, self.crop, mirrored
            )
            clip.append(self._warp(picture, matrix))
        return np.stack(clip)

    def _warp(self, picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        size, flags = (self.crop, self.crop), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(picture, matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _affine(centre: np.ndarray, side: float, turn: float, lean: float, crop: int, mirrored: bool = False) -> np.ndarray:
    """[2, 3] map from crop pixels to picture pixels: a square of `side` around `centre`, turned and sheared."""
    scale = side / crop
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shear = np.array([[1.0, lean], [0.0, 1.0]])
    mirror = np.diag([-1.0 if mirrored else 1.0, 1.0])
    linear = scale * rotation @ shear @ mirror
    middle = np.full(2, (crop - 1) / 2)
    return np.column_stack([linear, np.asarray(centre) - 0.5 - linear @ middle])
