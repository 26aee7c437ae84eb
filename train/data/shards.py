"""Training from shards: tar files of JPEG frames in a folder or on the web, a few at a time, in a shuffled order.

An epoch goes through all shards in a random order, `WINDOW` of them together, and draws `CLIPS` clips from each. Which
shard clip n is from depends on the seed, n and the number of shards alone, and what is drawn from it on its content. So
a run goes on in the middle of an epoch at once, processes need not agree on anything, and the data may be larger than
every disk: of shards from the web those at hand and the next ones are kept, no more.

The tar form is WebDataset's: files that are alike up to their names' first dot are one sample, here one video.
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
from corrflow.train.data.clips import chances
from corrflow.train.data.download import Downloads, is_url, public_name
from corrflow.train.data.frames import decoded, is_picture

WINDOW = 16
"""Shards that clips are drawn from at a time."""
CLIPS = 1024
"""Clips drawn from a shard in an epoch."""
MOST_NAMES = 10**6


def shard_names(data: str) -> list[str] | None:
    """Paths or URLs of the shards that `data` names, or None where it names a folder of videos.

    data: a folder with .tar files, one such file, an http or https address, or either of the two with {000..123} or
    {a,b} in it. Raises InputError where there are none.
    """
    if is_url(data) or re.search(r"\{.*\}.*\.tar$", data):
        return _expanded(data)
    path = Path(data)
    if path.suffix == ".tar" and path.is_file():
        return [data]
    return sorted(str(shard) for shard in path.glob("*.tar")) or None


def _expanded(pattern: str) -> list[str]:
    """Every name that a pattern with {first..last} or {one,other} stands for, in order."""
    choices: list[list[str]] = []
    for index, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", part)
        if index % 2 == 0:
            choices.append([part])
        elif span:
            first, last = int(span[1]), int(span[2])
            if not first <= last < first + MOST_NAMES:
                raise InputError(f"expected {{first..last}} of at most {MOST_NAMES} numbers, got {part} in {pattern}")
            choices.append([f"{number:0{len(span[1])}d}" for number in range(first, last + 1)])
        else:
            choices.append(part.split(","))
    return ["".join(chosen) for chosen in itertools.product(*choices)]


class Order:
    """Which shard each clip of a run is from; see the module's beginning."""

    def __init__(self, shards: int, seed: int, window: int = WINDOW, clips: int = CLIPS) -> None:
        self.shards, self.seed, self.window, self.clips = shards, seed, window, clips
        self._epoch = lru_cache(2)(self._shuffled_epoch)
        self._mixed = lru_cache(4)(self._shuffled_window)

    def shard_of(self, number: int) -> int:
        epoch, position = divmod(number, self.shards * self.clips)
        window, position = divmod(position, self.window * self.clips)
        together = self.together(epoch, window)
        return together[self._mixed(epoch, window, len(together))[position] // self.clips]

    def together(self, epoch: int, window: int) -> list[int]:
        """The shards that are drawn from in the same window."""
        return self._epoch(epoch)[window * self.window : (window + 1) * self.window]

    def window_of(self, number: int) -> tuple[int, int]:
        """The epoch of a clip, and the window in it."""
        epoch, position = divmod(number, self.shards * self.clips)
        return epoch, position // (self.window * self.clips)

    def from_on(self, epoch: int, window: int) -> list[int]:
        """The shards of a window and of the one after it."""
        return self.together(epoch, window) + (self.together(epoch, window + 1) or self.together(epoch + 1, 0))

    def _shuffled_epoch(self, epoch: int) -> list[int]:
        return np.random.default_rng([self.seed, epoch, 2]).permutation(self.shards).tolist()

    def _shuffled_window(self, epoch: int, window: int, shards: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, 3, window]).permutation(shards * self.clips)


@dataclass(frozen=True)
class Sample:
    """One video of a shard. places: [frames, 2] int64, first byte and bytes of each of its frames."""

    places: np.ndarray
    frames_per_second: float | None = None


class Shard:
    """A tar file, opened by memory map. Raises CorrflowError where it is none, is cut, or has no sample long enough."""

    def __init__(self, path: Path, name: str, length: int) -> None:
        self.name = name
        samples = read_index(path, name)
        self.samples = [sample for sample in samples if len(sample.places) >= length]
        if not self.samples:
            longest = max((len(sample.places) for sample in samples), default=0)
            raise CorrflowError(
                f"expected a sample of at least {length} pictures in {name}, got {longest} at most in {len(samples)}"
                " samples; make shards with corrflow-prepare"
            )
        self._chances = chances(np.array([len(sample.places) for sample in self.samples]))
        with path.open("rb") as file:
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def draw(self, length: int, generator: np.random.Generator) -> list[np.ndarray]:
        """`length` neighbouring frames [h, w, 3] uint8, BGR of one sample."""
        sample = self.samples[generator.choice(len(self.samples), p=self._chances)]
        first = int(generator.integers(len(sample.places) - length + 1))
        return [self._picture(start, size) for start, size in sample.places[first : first + length].tolist()]

    def _picture(self, start: int, size: int) -> np.ndarray:
        picture = decoded(self._bytes[start : start + size])
        if picture is None:
            raise CorrflowError(f"a picture at byte {start} of {self.name} is damaged; make or fetch that shard anew")
        return picture


def read_index(path: Path, name: str) -> list[Sample]:
    """The samples of a tar file, from its headers; raises CorrflowError where it is damaged."""
    places: dict[str, list[tuple[str, int, int]]] = {}
    rates: dict[str, float] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                if not entry.isreg():
                    continue
                member = PurePosixPath(entry.name)
                key = str(member.parent / member.name.split(".")[0])
                if entry.offset_data + entry.size > size:
                    raise tarfile.ReadError("it ends in the middle of a file")
                if is_picture(Path(entry.name)):
                    places.setdefault(key, []).append((entry.name, entry.offset_data, entry.size))
                elif member.suffix == ".json" and entry.size < 1 << 16 and (file := tar.extractfile(entry)):
                    rates[key] = _rate(file.read())
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise CorrflowError(f"expected a tar file in {name}, got {error}; make or fetch that shard anew") from error
    return [
        Sample(np.array([place[1:] for place in sorted(frames)], np.int64), rates.get(key) or None)
        for key, frames in places.items()
    ]


def _rate(description: bytes) -> float:
    """The frames a second that a sample's description names, or 0: other people's say other things."""
    try:
        return float(json.loads(description)["frames_per_second"])
    except (ValueError, KeyError, TypeError):
        return 0.0


class Files(Protocol):
    """Where shards come from."""

    def path(self, index: int) -> Path:
        """The file of shard `index`, there when this returns."""
        ...

    def keep(self, indices: Sequence[int]) -> None:
        """Only these will be asked for soon."""
        ...


class LocalFiles:
    """Shards that are files here."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def path(self, index: int) -> Path:
        path = Path(self.names[index])
        if not path.is_file():
            raise CorrflowError(f"expected a shard at {path}, found none; check --data")
        return path

    def keep(self, indices: Sequence[int]) -> None: ...


class ShardedVideos:
    """Clips from shards; may be asked by several threads. See the module's beginning for which clip is from where."""

    def __init__(
        self,
        names: Sequence[str],
        files: Files,
        length: int,
        frames_per_second: float,
        order: Order,
    ) -> None:
        self.names, self.files, self.length, self.order = names, files, length, order
        self.frames_per_second = frames_per_second
        self._opened: dict[int, Future[Shard]] = {}
        self._lock = threading.Lock()
        self._opener = ThreadPoolExecutor(4, thread_name_prefix="shards")
        self._windows: list[tuple[int, int]] = []  # that were drawn from last

    def __enter__(self) -> ShardedVideos:
        """Open a shard that will be needed, so that whatever is wrong with all of them is said before anything else."""
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
        self.files.keep([])

    def draw(self, number: int, length: int, generator: np.random.Generator) -> list[np.ndarray]:
        """As `Videos` says."""
        future = self._open(self.order.shard_of(number))
        self._look_ahead(number)
        return future.result().draw(length, generator)

    def _look_ahead(self, number: int) -> None:
        """Open what comes next, and let go of what is past; where windows meet, threads still draw from the last."""
        window = self.order.window_of(number)
        with self._lock:
            if window in self._windows:
                return
            self._windows = [*self._windows[-1:], window]
            wanted = {index for window in self._windows for index in self.order.from_on(*window)}
            for index in self._opened.keys() - wanted:
                del self._opened[index]
        self.files.keep(sorted(wanted))
        for index in self.order.from_on(*window):
            self._open(index)

    def _open(self, index: int) -> Future[Shard]:
        with self._lock:
            known = self._opened.get(index)
            if known is None or (known.done() and known.exception() is not None):
                known = self._opened[index] = self._opener.submit(self._read, index)
            return known

    def _read(self, index: int) -> Shard:
        shard = Shard(self.files.path(index), public_name(self.names[index]), self.length)
        rates = {sample.frames_per_second for sample in shard.samples} - {None, self.frames_per_second}
        if rates:
            raise CorrflowError(
                f"expected shards of {self.frames_per_second:g} frames a second, got {rates.pop():g} in"
                f" {shard.name}; give --fps as they were prepared"
            )
        return shard


def open_shards(
    names: Sequence[str], length: int, frames_per_second: float, seed: int, folder: Path, timeout: float
) -> ShardedVideos:
    """Shards by their names, as `shard_names` gives them. folder, timeout: see `Downloads`; for URLs alone."""
    remote = {is_url(name) for name in names}
    if len(remote) != 1:
        raise InputError("expected shards that are all files here or all on the web, got both; name one kind")
    files: Files = Downloads(names, folder, timeout) if remote.pop() else LocalFiles(names)
    return ShardedVideos(names, files, length, frames_per_second, Order(len(names), seed))
