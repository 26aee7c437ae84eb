"""corrflow-prepare: conversion of folders of videos to shards of small JPEG frames, in WebDataset's tar format.

    OUT/shard-000000.tar          samples, each a video or up to 300 frames of a long video:
        00000017-000.json         {"name", "frames_per_second", "frames", "first_frame"}
        00000017-000.00000.jpg    frames in order
    OUT/records/shard-000000.json counts and skipped files of a shard; written last, as completion record
    OUT/plan.json                 source files and settings
    OUT/report.json               sum of all records

A shard is a function of its videos and of the plan, so a resumed run writes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.output_paths import check_apart, check_folder_of
from corrflow.run_lock import lock_run
from corrflow.stopping import end_with_parent, shut_down_workers, signals_blocked
from corrflow.train.data.frames import UNREADABLE, FrameSampling, find_videos, small_frames

FORMAT_VERSION = 1
SAMPLE_FRAMES = 300
"""Largest number of frames of a sample; readers load whole samples into memory."""
PLAN, REPORT, RECORDS = "plan.json", "report.json", "records"
DECODER_DIED = "its decoder process died twice"


@dataclass(frozen=True)
class Video:
    """JPEG frames of one video.

    damage: reason why later frames are missing, or "" for a complete video
    """

    frames: list[bytes]
    damage: str = ""


@dataclass
class ShardRecord:
    """Counts of a shard, and videos that are missing or incomplete.

    skipped:   {name: reason} of videos without any frame
    truncated: {name: reason} of videos that end at damage
    """

    videos: int = 0
    frames: int = 0
    bytes: int = 0
    sha256: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    truncated: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Contents of all shards.

    shards:      for each shard, the paths of its videos below `source`
    max_seconds: duration after which a video is cut off
    """

    source: Path
    shards: list[list[str]]
    sampling: FrameSampling
    max_seconds: float

    def description(self) -> dict[str, object]:
        """Return the plan for JSON; sizes and modification times represent the files' contents."""
        digest = hashlib.sha256()
        for names in self.shards:
            for name in names:
                status = (self.source / name).stat()
                digest.update(json.dumps([name, status.st_size, status.st_mtime_ns]).encode() + b"\n")
            digest.update(b"\n")
        return {
            "format": FORMAT_VERSION,
            "shards": len(self.shards),
            "videos": sum(map(len, self.shards)),
            "files": digest.hexdigest(),
            "max_seconds": self.max_seconds,
            **asdict(self.sampling),
        }


def plan_shards(source: Path, sampling: FrameSampling, videos_per_shard: int, max_seconds: float) -> Plan:
    """Assign the videos below `source` to shards of about equal size, each a mixture of all folders.

    Raises InputError if there are no videos.
    """
    if videos_per_shard < 1 or not max_seconds > 0:
        raise InputError(
            f"expected at least one video per shard and --max-seconds above 0, got {videos_per_shard} and {max_seconds}"
        )
    names = [path.relative_to(source).as_posix() for path in find_videos(source)]
    # Sorted by hash, because neighbours in a folder are similar and training reads few shards at a time.
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    count = -(-len(names) // videos_per_shard)
    return Plan(source, [names[shard::count] for shard in range(count)], sampling, max_seconds)


def prepare(plan: Plan, out: Path, workers: int, progress: Callable[[int], None] = lambda videos: None) -> ShardRecord:
    """Write the missing shards; return the sum of all records.

    progress: called with the number of completed videos. Raises InputError if `out` contains shards of another plan or
    is in use by another run.
    """
    if workers < 1:
        raise InputError(f"expected at least 1 worker, got {workers}")
    try:
        if not any(out.glob("*.tar")):  # which `_check_plan` judges
            check_folder_of(out, PLAN, RECORDS)
        check_apart([], folders=[out], trees=[plan.source])
        (out / RECORDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected a folder to write to, got {out} ({error.strerror}); name another") from error
    with lock_run(out / ".lock"), _Decoders(workers) as decoders:
        _check_plan(plan, out)
        done, missing = 0, []
        for shard, names in enumerate(plan.shards):
            if _record_path(out, shard).is_file():
                done += len(names)
            else:
                missing.append(shard)
        progress(done)
        todo = [(shard, name) for shard in missing for name in plan.shards[shard]]
        decoded = decoders.decode([plan.source / name for _, name in todo], plan.sampling, plan.max_seconds)
        for shard in missing:
            with _ShardFile(out, shard, plan) as file:
                for place, name in enumerate(plan.shards[shard]):
                    file.add(place, name, next(decoded))
                    done += 1
                    progress(done)
    total = ShardRecord()
    for shard in range(len(plan.shards)):
        record = ShardRecord(**json.loads(_record_path(out, shard).read_text()))
        total.videos, total.frames = total.videos + record.videos, total.frames + record.frames
        total.bytes += record.bytes
        total.skipped |= record.skipped
        total.truncated |= record.truncated
    total.skipped = dict(sorted(total.skipped.items()))
    total.truncated = dict(sorted(total.truncated.items()))
    written = {name: value for name, value in asdict(total).items() if name != "sha256"}
    write_file(out / REPORT, json.dumps({"plan": plan.description(), **written}, indent=1) + "\n")
    return total


def read_video(path: Path, sampling: FrameSampling, max_seconds: float) -> Video:
    """Read the frames of a video up to damage or `max_seconds`."""
    frames: list[bytes] = []
    max_frames = max(1, round(max_seconds * sampling.frames_per_second))
    try:
        for frame in small_frames(path, sampling):
            frames.append(frame)
            if len(frames) == max_frames:
                break
    except UNREADABLE as error:
        return Video(frames, " ".join(str(error).split()) or type(error).__name__)
    return Video(frames, "" if frames else "the file contains no frame")


class _ShardFile:
    """Shard that is being written; its file and record appear when the context ends without an error."""

    def __init__(self, out: Path, shard: int, plan: Plan) -> None:
        self.path, self.record_path = out / f"shard-{shard:06d}.tar", _record_path(out, shard)
        self.shard, self.rate, self.record = shard, plan.sampling.frames_per_second, ShardRecord()
        self.stride = len(plan.shards)

    def __enter__(self) -> _ShardFile:
        self._part = self.path.with_name(f".{self.path.name}.part")
        self._tar = tarfile.open(self._part, "w", format=tarfile.USTAR_FORMAT)
        return self

    def add(self, place: int, name: str, video: Video) -> None:
        """Add video number `place` of the shard, or record its damage."""
        if video.damage:
            damaged = self.record.truncated if video.frames else self.record.skipped
            damaged[name] = video.damage + (f"; {len(video.frames)} frames written" if video.frames else "")
        if not video.frames:
            return
        self.record.videos += 1
        self.record.frames += len(video.frames)
        number = place * self.stride + self.shard
        for part, first in enumerate(range(0, len(video.frames), SAMPLE_FRAMES)):
            frames = video.frames[first : first + SAMPLE_FRAMES]
            key = f"{number:08d}-{part:03d}"
            description = {"name": name, "frames_per_second": self.rate, "frames": len(frames), "first_frame": first}
            self._add_file(f"{key}.json", json.dumps(description).encode())
            for index, frame in enumerate(frames):
                self._add_file(f"{key}.{index:05d}.jpg", frame)

    def _add_file(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)  # owner 0, time 0: the same bytes every time
        entry.size = len(content)
        self._tar.addfile(entry, io.BytesIO(content))

    def __exit__(self, kind: object, *_: object) -> None:
        self._tar.close()
        if kind is not None:
            self._part.unlink(missing_ok=True)
            return
        if self.record.videos:
            self.record.bytes = self._part.stat().st_size
            with self._part.open("rb") as file:
                self.record.sha256 = sha256_of(file)
            os.replace(self._part, self.path)
        else:
            self._part.unlink()
        write_file(self.record_path, json.dumps(asdict(self.record)) + "\n")


class _Decoders:
    """Decoder processes. A damaged file that kills its decoder costs only its own video."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> _Decoders:
        self._pool = self._new(self.workers)
        return self

    def __exit__(self, *_: object) -> None:
        shut_down_workers(self._pool)

    def decode(self, paths: Sequence[Path], sampling: FrameSampling, max_seconds: float) -> Iterator[Video]:
        """Yield the videos in the order of their paths; a few are decoded ahead."""
        waiting: deque[tuple[Path, Future[Video] | None]] = deque()
        rest = iter(paths)
        while True:
            while len(waiting) < 3 * self.workers and (path := next(rest, None)) is not None:
                waiting.append((path, self._submit(path, sampling, max_seconds)))
            if not waiting:
                return
            path, future = waiting.popleft()
            try:
                yield self._result(path, future, sampling, max_seconds)
            except BrokenProcessPool:
                # Any file that was being decoded may be the cause, so each is decoded alone.
                shut_down_workers(self._pool, broken=True)
                self._pool = self._new(self.workers)
                suspects = [path, *(other for other, _ in waiting)]
                waiting.clear()
                for suspect in suspects:
                    yield self._alone(suspect, sampling, max_seconds)

    def _submit(self, path: Path, sampling: FrameSampling, max_seconds: float) -> Future[Video] | None:
        try:
            with signals_blocked():  # a job may start a process
                return self._pool.submit(read_video, path, sampling, max_seconds)
        except BrokenProcessPool:
            return None

    @staticmethod
    def _result(path: Path, future: Future[Video] | None, sampling: FrameSampling, max_seconds: float) -> Video:
        if future is None:
            raise BrokenProcessPool
        return future.result()

    def _alone(self, path: Path, sampling: FrameSampling, max_seconds: float) -> Video:
        pool = self._new(1)
        try:
            with signals_blocked():
                video = pool.submit(read_video, path, sampling, max_seconds)
            return video.result()
        except BrokenProcessPool:
            return Video([], DECODER_DIED)
        finally:
            shut_down_workers(pool)

    @staticmethod
    def _new(workers: int) -> ProcessPoolExecutor:
        # Spawned, because a fork would copy the locks of the threads of FFmpeg and OpenCV.
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_init_decoder)


def _init_decoder() -> None:
    """Make a decoder process end with its parent."""
    end_with_parent()
    cv2.setNumThreads(1)


def _check_plan(plan: Plan, out: Path) -> None:
    """Write the plan, or compare it with the existing plan; raise InputError if they differ."""
    description = plan.description()
    path = out / PLAN
    if path.is_file():
        try:
            existing = json.loads(path.read_text())
        except ValueError:
            existing = {}
        changed = sorted(name for name in {*existing, *description} if existing.get(name) != description.get(name))
        if changed:
            raise InputError(
                f"{out} contains shards of other files or settings (other {', '.join(changed)}); repeat the"
                " same command to resume it, or name another folder"
            )
    elif any(out.glob("*.tar")):
        raise InputError(f"expected a new folder or one of corrflow-prepare, got {out}, which contains other shards")
    else:
        write_file(path, json.dumps(description, indent=1) + "\n")


def _record_path(out: Path, shard: int) -> Path:
    return out / RECORDS / f"shard-{shard:06d}.json"


def sha256_of(file: io.BufferedReader) -> str:
    """Return the SHA-256 of what is left of a file."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
