"""Shards for training: tar files of JPEG frames in a folder or on the web, read in shuffled order.

An epoch visits all shards in random order, `WINDOW` shards at a time, and samples `CLIPS` clips from each. The shard of
clip n is a function of the seed, n and the number of shards. So a run resumes within an epoch at once, and processes
need no communication. Of shards on the web, only the current and the next ones are on disk.

The tar files have WebDataset's format: files whose names agree up to the first dot are one sample, here one video.
"""

from __future__ import annotations

import itertools
import json
import mmap
import re
import tarfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.file_budget import FileBudget
from corrflow.train.data.clips import sampling_probabilities
from corrflow.train.data.download import Downloads, is_url, public_name
from corrflow.train.data.frames import decode_image, is_image

WINDOW = 16
"""Number of shards from which clips are sampled at a time."""
CLIPS = 1024
"""Number of clips from each shard in an epoch."""
MAX_SHARDS = 10**6
_BYTES_OF_ENTRY = 2000  # of a tar file in memory


def shard_names(data: str) -> list[str] | None:
    """Return the paths or URLs of the shards in `data`, or None for a folder of videos.

    data: a folder of .tar files, a .tar file, an http or https URL, or a file or URL with {000..123} or {a,b}. Raises
    InputError for a wrong range.
    """
    if is_url(data) or re.search(r"\{.*\}.*\.tar$", data):
        return _expand_braces(data)
    path = Path(data)
    if path.suffix == ".tar" and path.is_file():
        return [data]
    return sorted(str(shard) for shard in path.glob("*.tar")) or None


def _expand_braces(pattern: str) -> list[str]:
    """Return all names of a pattern with {first..last} or {one,other}, in order."""
    choices: list[list[str]] = []
    for index, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", part)
        if index % 2 == 0:
            choices.append([part])
        elif span:
            first, last = int(span[1]), int(span[2])
            if not first <= last < first + MAX_SHARDS:
                raise InputError(
                    f"expected {{first..last}} of at most {MAX_SHARDS} numbers, got {part} in {public_name(pattern)}"
                )
            choices.append([f"{number:0{len(span[1])}d}" for number in range(first, last + 1)])
        else:
            choices.append(part.split(","))
    return ["".join(parts) for parts in itertools.product(*choices)]


class ShardOrder:
    """Assignment of the clips of a run to shards; see the module's docstring."""

    def __init__(self, shards: int, seed: int, window: int = WINDOW, clips: int = CLIPS) -> None:
        self.shards, self.seed, self.window, self.clips = shards, seed, window, clips
        self._epoch_order = lru_cache(2)(self._shuffled_epoch)
        self._window_order = lru_cache(4)(self._shuffled_window)

    def shard_of(self, number: int) -> int:
        """Return the shard of clip `number`."""
        epoch, position = divmod(number, self.shards * self.clips)
        window, position = divmod(position, self.window * self.clips)
        shards = self.window_shards(epoch, window)
        return shards[self._window_order(epoch, window, len(shards))[position] // self.clips]

    def window_shards(self, epoch: int, window: int) -> list[int]:
        """Return the shards of a window."""
        return self._epoch_order(epoch)[window * self.window : (window + 1) * self.window]

    def window_of(self, number: int) -> tuple[int, int]:
        """Return the epoch of a clip, and its window in the epoch."""
        epoch, position = divmod(number, self.shards * self.clips)
        return epoch, position // (self.window * self.clips)

    def upcoming_shards(self, epoch: int, window: int) -> list[int]:
        """Return the shards of a window and of the next window."""
        following = self.window_shards(epoch, window + 1) or self.window_shards(epoch + 1, 0)
        return self.window_shards(epoch, window) + following

    def _shuffled_epoch(self, epoch: int) -> list[int]:
        return np.random.default_rng([self.seed, epoch, 2]).permutation(self.shards).tolist()

    def _shuffled_window(self, epoch: int, window: int, shards: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, 3, window]).permutation(shards * self.clips)


@dataclass(frozen=True)
class Sample:
    """Video of a shard.

    places: [frames, 2] int64, offset and size in bytes of each frame
    """

    places: np.ndarray
    frames_per_second: float | None = None


class Shard:
    """Memory-mapped tar file.

    Raises CorrflowError for a file that is no tar file, is truncated, or has no sample of at least `length` frames.
    """

    def __init__(self, path: Path, name: str, length: int) -> None:
        self.name = name
        samples = read_index(path, name)
        self.samples = [sample for sample in samples if len(sample.places) >= length]
        if not self.samples:
            longest = max((len(sample.places) for sample in samples), default=0)
            raise CorrflowError(
                f"expected a sample of at least {length} frames in {name}, got {longest} at most in {len(samples)}"
                " samples; make shards with corrflow-prepare"
            )
        self._probabilities = sampling_probabilities(np.array([len(sample.places) for sample in self.samples]))
        with path.open("rb") as file:
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def sample(
        self, length: int, generator: np.random.Generator, taken: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """Return `length` consecutive frames [h, w, 3] uint8, BGR of a random sample; taken: as in `Videos.sample`."""
        sample = self.samples[generator.choice(len(self.samples), p=self._probabilities)]
        first = int(generator.integers(len(sample.places) - length + 1))
        places = sample.places[first : first + length].tolist()
        return [self._frame(*places[index]) for index in (range(length) if taken is None else taken)]

    def _frame(self, start: int, size: int) -> np.ndarray:
        frame = decode_image(self._bytes[start : start + size])
        if frame is None:
            raise CorrflowError(f"a frame at byte {start} of {self.name} is damaged; make or download that shard again")
        return frame


def read_index(path: Path, name: str) -> list[Sample]:
    """Read the samples of a tar file from its headers; raise CorrflowError for damage."""
    places: dict[str, list[tuple[str, int, int]]] = {}
    rates: dict[str, float] = {}
    try:
        budget = FileBudget.of(path)
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                budget.take(_BYTES_OF_ENTRY, "entries")
                # The next header would be at or before this one, for ever.
                if entry.size < 0:
                    raise tarfile.ReadError(f"a file of {entry.size} bytes")
                if not entry.isreg():
                    continue
                member = PurePosixPath(entry.name)
                key = str(member.parent / member.name.split(".")[0])
                if entry.offset_data + entry.size > size:
                    raise tarfile.ReadError("the tar file ends within a file")
                if is_image(Path(entry.name)):
                    places.setdefault(key, []).append((entry.name, entry.offset_data, entry.size))
                elif member.suffix == ".json" and entry.size < 1 << 16 and (file := tar.extractfile(entry)):
                    rates[key] = _rate(file.read())
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise CorrflowError(f"expected a tar file in {name}, got {error}; make or download that shard again") from error
    return [
        Sample(np.array([place[1:] for place in sorted(frames)], np.int64), rates.get(key) or None)
        for key, frames in places.items()
    ]


def _rate(description: bytes) -> float:
    """Return the frame rate in a sample's description, or 0 for descriptions by other software."""
    try:
        return float(json.loads(description)["frames_per_second"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0.0


class ShardFiles(Protocol):
    """Access to the files of shards."""

    def path(self, index: int) -> Path:
        """Return the existing file of shard `index`; raise CorrflowError if it cannot be provided."""
        ...

    def retain(self, indices: Sequence[int]) -> None:
        """Release all other shards, which are not needed soon."""
        ...


class LocalFiles:
    """Shards on this machine."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def path(self, index: int) -> Path:
        """Return the file of shard `index`; raise CorrflowError if it is missing."""
        path = Path(self.names[index])
        if not path.is_file():
            raise CorrflowError(f"expected a shard at {path}, found none; check --data")
        return path

    def retain(self, indices: Sequence[int]) -> None:
        """Do nothing."""


class ShardedVideos:
    """Videos in shards; safe for several threads. See the module's docstring for the order of clips."""

    def __init__(
        self,
        names: Sequence[str],
        files: ShardFiles,
        length: int,
        frames_per_second: float,
        order: ShardOrder,
    ) -> None:
        self.names, self.files, self.length, self.order = names, files, length, order
        self.frames_per_second = frames_per_second
        self._opened: dict[int, Future[Shard]] = {}
        self._lock = threading.Lock()
        self._opener = ThreadPoolExecutor(4, thread_name_prefix="shards")
        self._windows: list[tuple[int, int]] = []  # current and previous window

    def __enter__(self) -> ShardedVideos:
        """Open the first shard, so that mistakes which concern all shards are reported at once, as InputError."""
        try:
            self._open(self.order.shard_of(0)).result()
        except CorrflowError as error:
            self.__exit__()
            raise InputError(str(error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._opener.shutdown(cancel_futures=True)
        with self._lock:
            self._opened.clear()
        self.files.retain([])

    def sample(
        self, number: int, length: int, generator: np.random.Generator, taken: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """Return frames as `Videos.sample` defines."""
        future = self._open(self.order.shard_of(number))
        self._prefetch(number)
        return future.result().sample(length, generator, taken)

    def _prefetch(self, number: int) -> None:
        """Open the next shards and release old ones; threads may still sample from the previous window."""
        window = self.order.window_of(number)
        with self._lock:
            if window in self._windows:
                return
            self._windows = [*self._windows[-1:], window]
            wanted = {index for window in self._windows for index in self.order.upcoming_shards(*window)}
            for index in self._opened.keys() - wanted:
                del self._opened[index]
        self.files.retain(sorted(wanted))
        for index in self.order.upcoming_shards(*window):
            self._open(index)

    def _open(self, index: int) -> Future[Shard]:
        with self._lock:
            future = self._opened.get(index)
            if future is None or (future.done() and future.exception() is not None):
                future = self._opened[index] = self._opener.submit(self._read, index)
            return future

    def _read(self, index: int) -> Shard:
        shard = Shard(self.files.path(index), public_name(self.names[index]), self.length)
        rates = {sample.frames_per_second for sample in shard.samples} - {None, self.frames_per_second}
        if rates:
            raise CorrflowError(
                f"expected shards of {self.frames_per_second:g} frames a second, got {rates.pop():g} in"
                f" {shard.name}; set --fps to that rate"
            )
        return shard


def open_shards(
    names: Sequence[str], length: int, frames_per_second: float, seed: int, folder: Path, timeout: float
) -> ShardedVideos:
    """Open the shards that `shard_names` returned; raise InputError for a mixture of files and URLs.

    folder, timeout: as in `Downloads`, for URLs
    """
    remote = {is_url(name) for name in names}
    if len(remote) != 1:
        raise InputError("expected shards that are all local files or all on the web, got both; name one kind")
    files: ShardFiles = Downloads(names, folder, timeout) if remote.pop() else LocalFiles(names)
    return ShardedVideos(names, files, length, frames_per_second, ShardOrder(len(names), seed))
