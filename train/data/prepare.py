"""corrflow-prepare: folders of videos into shards of small JPEG frames, in the tar form of WebDataset.

    OUT/shard-000000.tar           samples, one video or up to 300 frames of a long one each:
        00000017-000.json          {"name", "frames_per_second", "frames", "first_frame"}
        00000017-000.00000.jpg     its frames, in order
    OUT/receipts/shard-000000.json what is in a shard, and what was left out of it; written last: it is whole then
    OUT/plan.json                  what the shards are made of, and how
    OUT/report.json                all receipts together

A shard is a function of its videos and of the plan, so a run that was killed goes on to the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2

from corrflow.atomic_files import write_whole
from corrflow.errors import InputError
from corrflow.run_lock import lock_run
from corrflow.train.data.frames import UNREADABLE, FrameSampling, find_videos, small_frames

FORMAT_VERSION = 1
SAMPLE_FRAMES = 300
"""Most frames of a sample, so that whoever reads one whole needs little memory."""
PLAN, REPORT, RECEIPTS = "plan.json", "report.json", "receipts"
DIED = "the process that decoded it died, twice"


@dataclass(frozen=True)
class Video:
    """The frames of one video as JPEG files; `damage` says why there are no more, "" where that is all of it."""

    frames: list[bytes]
    damage: str = ""


@dataclass
class Receipt:
    """What is in a shard.

    left_out: {name: reason} of the videos of which nothing is in it; cut: of those that are there up to their damage
    """

    videos: int = 0
    frames: int = 0
    bytes: int = 0
    sha256: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    cut: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What the shards are made of: the names below `source` of each one's videos, and how frames are made small.

    longest: seconds of a video that are taken
    """

    source: Path
    shards: list[list[str]]
    how: FrameSampling
    longest: float

    def description(self) -> dict[str, object]:
        """JSON-ready; sizes and times of change stand for the files' content."""
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
            "longest": self.longest,
            **asdict(self.how),
        }


def plan_shards(source: Path, how: FrameSampling, videos_per_shard: int, longest: float) -> Plan:
    """Share the videos below `source` out to shards of about equal size, each a mixture of all folders.

    Raises InputError where there are none.
    """
    if videos_per_shard < 1 or not longest > 0:
        raise InputError(
            f"expected at least one video a shard and a longest above 0, got {videos_per_shard} and {longest}"
        )
    names = [path.relative_to(source).as_posix() for path in find_videos(source)]
    # By their hashes: neighbours in a folder are alike, and training sees a few shards at a time.
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    count = -(-len(names) // videos_per_shard)
    return Plan(source, [names[shard::count] for shard in range(count)], how, longest)


def prepare(plan: Plan, out: Path, workers: int, progress: Callable[[int], None] = lambda videos: None) -> Receipt:
    """Write the shards that are not there yet; returns all receipts as one. progress: called with videos done.

    Raises InputError where `out` holds shards of another plan, or another run is at work in it.
    """
    if workers < 1:
        raise InputError(f"expected at least 1 worker, got {workers}")
    try:
        (out / RECEIPTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected a folder to write to, got {out} ({error.strerror}); name another") from error
    with lock_run(out / ".lock"), _Decoders(workers) as decoders:
        _agree(plan, out)
        done, missing = 0, []
        for shard, names in enumerate(plan.shards):
            if _receipt_path(out, shard).is_file():
                done += len(names)
            else:
                missing.append(shard)
        progress(done)
        todo = [(shard, name) for shard in missing for name in plan.shards[shard]]
        decoded = decoders.decode([plan.source / name for _, name in todo], plan.how, plan.longest)
        for shard in missing:
            with _ShardFile(out, shard, plan) as file:
                for place, name in enumerate(plan.shards[shard]):
                    file.add(place, name, next(decoded))
                    done += 1
                    progress(done)
    total = Receipt()
    for shard in range(len(plan.shards)):
        receipt = Receipt(**json.loads(_receipt_path(out, shard).read_text()))
        total.videos, total.frames = total.videos + receipt.videos, total.frames + receipt.frames
        total.bytes += receipt.bytes
        total.left_out |= receipt.left_out
        total.cut |= receipt.cut
    total.left_out, total.cut = dict(sorted(total.left_out.items())), dict(sorted(total.cut.items()))
    written = {name: value for name, value in asdict(total).items() if name != "sha256"}
    write_whole(out / REPORT, json.dumps({"plan": plan.description(), **written}, indent=1) + "\n", only_writer=True)
    return total


def read_video(path: Path, how: FrameSampling, longest: float) -> Video:
    """All frames of a video, as far as they can be decoded and up to `longest` seconds."""
    frames: list[bytes] = []
    most = max(1, round(longest * how.frames_per_second))
    try:
        for frame in small_frames(path, how):
            frames.append(frame)
            if len(frames) == most:
                break
    except UNREADABLE as error:
        return Video(frames, " ".join(str(error).split()) or type(error).__name__)
    return Video(frames, "" if frames else "no frame in it")


class _ShardFile:
    """A shard being written: it and its receipt appear when the context ends without an error."""

    def __init__(self, out: Path, shard: int, plan: Plan) -> None:
        self.path, self.receipt_path = out / f"shard-{shard:06d}.tar", _receipt_path(out, shard)
        self.shard, self.rate, self.receipt = shard, plan.how.frames_per_second, Receipt()
        self.stride = len(plan.shards)

    def __enter__(self) -> _ShardFile:
        self._part = self.path.with_name(f".{self.path.name}.part")
        self._tar = tarfile.open(self._part, "w", format=tarfile.USTAR_FORMAT)
        return self

    def add(self, place: int, name: str, video: Video) -> None:
        """The shard's video number `place`, or the reason why it is not there."""
        if video.damage:
            known = self.receipt.cut if video.frames else self.receipt.left_out
            known[name] = video.damage + (f"; {len(video.frames)} frames kept" if video.frames else "")
        if not video.frames:
            return
        self.receipt.videos += 1
        self.receipt.frames += len(video.frames)
        number = place * self.stride + self.shard
        for part, first in enumerate(range(0, len(video.frames), SAMPLE_FRAMES)):
            frames = video.frames[first : first + SAMPLE_FRAMES]
            key = f"{number:08d}-{part:03d}"
            about = {"name": name, "frames_per_second": self.rate, "frames": len(frames), "first_frame": first}
            self._member(f"{key}.json", json.dumps(about).encode())
            for index, frame in enumerate(frames):
                self._member(f"{key}.{index:05d}.jpg", frame)

    def _member(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)  # owner 0, time 0: the same bytes every time
        entry.size = len(content)
        self._tar.addfile(entry, io.BytesIO(content))

    def __exit__(self, kind: object, *_: object) -> None:
        self._tar.close()
        if kind is not None:
            self._part.unlink(missing_ok=True)
            return
        if self.receipt.videos:
            self.receipt.bytes = self._part.stat().st_size
            with self._part.open("rb") as file:
                self.receipt.sha256 = _sha256(file)
            os.replace(self._part, self.path)
        else:
            self._part.unlink()
        write_whole(self.receipt_path, json.dumps(asdict(self.receipt)) + "\n", only_writer=True)


class _Decoders:
    """Processes that read videos. One that dies, as decoders do on some damaged files, costs that video alone."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> _Decoders:
        self._pool = self._new(self.workers)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def decode(self, paths: Sequence[Path], how: FrameSampling, longest: float) -> Iterator[Video]:
        """The videos in the order of their paths, a few ahead of whoever takes them."""
        waiting: deque[tuple[Path, Future[Video] | None]] = deque()
        rest = iter(paths)
        while True:
            while len(waiting) < 3 * self.workers and (path := next(rest, None)) is not None:
                waiting.append((path, self._submit(path, how, longest)))
            if not waiting:
                return
            path, future = waiting.popleft()
            try:
                yield self._result(path, future, how, longest)
            except BrokenProcessPool:
                # Any of those at work may have done it, so each is tried alone.
                self._pool.shutdown(cancel_futures=True)
                self._pool = self._new(self.workers)
                suspects = [path, *(other for other, _ in waiting)]
                waiting.clear()
                for suspect in suspects:
                    yield self._alone(suspect, how, longest)

    def _submit(self, path: Path, how: FrameSampling, longest: float) -> Future[Video] | None:
        try:
            return self._pool.submit(read_video, path, how, longest)
        except BrokenProcessPool:
            return None

    @staticmethod
    def _result(path: Path, future: Future[Video] | None, how: FrameSampling, longest: float) -> Video:
        if future is None:
            raise BrokenProcessPool
        return future.result()

    def _alone(self, path: Path, how: FrameSampling, longest: float) -> Video:
        with self._new(1) as pool:
            try:
                return pool.submit(read_video, path, how, longest).result()
            except BrokenProcessPool:
                return Video([], DIED)

    @staticmethod
    def _new(workers: int) -> ProcessPoolExecutor:
        # Spawned, not forked: FFmpeg and OpenCV have threads, and a fork would copy their locks.
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """In each process that decodes: end with the one that asked, which also is who answers Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _agree(plan: Plan, out: Path) -> None:
    """Write the plan, or hold it against the one that is there."""
    described = plan.description()
    path = out / PLAN
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except ValueError:
            found = {}
        changed = sorted(name for name in {*found, *described} if found.get(name) != described.get(name))
        if changed:
            raise InputError(
                f"{out} holds shards made from other files or settings (other {', '.join(changed)}); give the same ones"
                " to go on with it, or name another folder"
            )
    elif any(out.glob("*.tar")):
        raise InputError(f"expected a new folder or one of corrflow-prepare, got {out}, which holds other shards")
    else:
        write_whole(path, json.dumps(described, indent=1) + "\n", only_writer=True)


def _receipt_path(out: Path, shard: int) -> Path:
    return out / RECEIPTS / f"shard-{shard:06d}.json"


def _sha256(file: io.BufferedReader) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
