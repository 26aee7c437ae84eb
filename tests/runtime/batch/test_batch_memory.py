"""Memory is bounded by the number of workers: nothing of ours grows with the length of a video."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from corrflow.bench import machine
from corrflow.bench.batch import repeat
from corrflow.bench.clips import write_demo
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.batch.frame_cache import FrameCache
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.passes import PropagationPass
from corrflow.runtime.batch.process_item import Job, process_item
from corrflow.runtime.formats import tapvid
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.registry import FORMATS, open_sink
from corrflow.runtime.live.outputs.destinations import LiveSource
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import Frame, FrameResult, ObjectResult

SHAPE = (16, 24)
PACKAGE = Path(tapvid.__file__).parent


def tracked(frames: int, points: int = 2) -> Iterator[FrameResult]:
    """Yield results with a mask and points, each a new object as from a tracker."""
    generator = np.random.default_rng(0)
    names = tuple(f"point{number}" for number in range(points))
    for index in range(frames):
        mask = np.zeros(SHAPE, np.uint8)
        mask[4:10, 5:15] = 1
        places, sure = generator.random((points, 2)).astype(np.float32), np.full(points, 0.8, np.float32)
        objects = (
            ObjectResult(1, "", 0.9, True, (5, 4, 15, 10)),
            ObjectResult(2, "", 0.8, True, None, places, names, sure),
        )
        image = generator.integers(0, 255, (*SHAPE, 3), np.uint8)
        yield FrameResult(mask, objects, Frame(image, index, index / 25, f"{index:05d}"))


def sink_of(name: str, folder: Path) -> Sink:
    return open_sink(name, folder / FORMATS[name].result, LiveSource("clip", Fraction(25)))


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def held_by_us() -> int:
    """Return the bytes that lines of the package allocated and did not free.

    The functions of `polygons` have no state. NumPy keeps freed arrays of theirs for reuse, which are now more and now
    less, as polygons have more and fewer corners.
    """
    gc.collect()
    filters = [tracemalloc.Filter(True, f"{PACKAGE}/*"), tracemalloc.Filter(False, f"{PACKAGE}/*polygons.py")]
    snapshot = tracemalloc.take_snapshot().filter_traces(filters)
    return sum(trace.size for trace in snapshot.traces)


def flush(sink: Sink) -> None:
    """Write what waits in buffers, which is now more and now less."""
    for part in vars(sink).values():
        if hasattr(part, "flush"):
            part.flush()


# The report keeps a bounded number of images, which test_batch_report.py tests.
@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"report"}))
def test_no_format_holds_more_after_more_frames(tmp_path: Path, name: str) -> None:
    amounts: list[int] = []
    with traced(), sink_of(name, tmp_path) as sink:
        for result in tracked(450):
            sink.write(result)
            if result.frame.index in (149, 449):
                del result
                flush(sink)
                amounts.append(held_by_us())
    assert amounts[1] - amounts[0] < 2 * 300


@pytest.mark.parametrize("name", ["coco", "tapvid", "youtube-vos"])
def test_a_file_that_is_put_together_at_the_end_is_so_piece_by_piece(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tapvid, "_BLOCK", 32)
    peaks: list[int] = []
    for frames in (1600, 3200):
        sink = sink_of(name, tmp_path / str(frames))
        for result in tracked(frames, points=20):
            sink.write(result)
        with traced():
            sink.close()
            peaks.append(tracemalloc.get_traced_memory()[1])
    assert peaks[1] - peaks[0] < 40_000


@pytest.mark.parametrize(
    ("name", "bytes_a_frame"),
    # Written through HDF5, whose caches are not Python's; and the index of an MP4 file, which waits until its end.
    [("deeplabcut-h5", 25), ("sleap", 25), ("overlay", 160)],
)
def test_libraries_hold_no_more_than_the_index_of_a_file(tmp_path: Path, name: str, bytes_a_frame: int) -> None:
    if machine.resident() is None:
        pytest.skip("memory is read as Linux tells it")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from corrflow.bench import machine\n"
        "from test_batch_memory import sink_of, tracked\n"
        "sink, rows = sink_of(sys.argv[2], Path(sys.argv[3])), []\n"
        "for result in tracked(6000):\n"
        "    sink.write(result)\n"
        "    if result.frame.index in (1999, 5999): rows.append(machine.resident())\n"
        "sink.close(); print(rows[1] - rows[0])\n"
    )
    words = [sys.executable, "-c", program, str(Path(__file__).parent), name, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) / 4000 < bytes_a_frame


def test_what_waits_on_disk_holds_nothing_in_memory(tmp_path: Path) -> None:
    image, soft = np.zeros((4, 4), np.uint8), np.ones((1, 2, 2), np.float32)
    with FrameCache(tmp_path / "frames") as cache, traced():
        made = PropagationPass(tmp_path / "pass", soft.shape)
        for number in range(2000):
            if number == 500:
                before = held_by_us()
            cache.append(Frame(image, number, 0.0, ""))
            made.append(soft * number)
        assert held_by_us() - before < 3000  # 8 bytes for each would be 24,000
        assert len(cache) == len(made) == 2000
        made.close()
        again = PropagationPass(tmp_path / "pass", soft.shape)
        assert held_by_us() - before < 3000
        for number in (0, 1999, 7):
            assert cache[number].index == number and again[number][0, 0, 0] == number
        again.close()


@pytest.mark.parametrize("both_ways", [False, True], ids=["forward", "both ways"])
def test_tracking_a_long_video_holds_what_a_short_one_does(
    tmp_path: Path, small_artifact: Path, both_ways: bool
) -> None:
    """From the source to the files, with labels on the first frame or on the first and the last."""
    frames = 500
    clip, mask = write_demo(tmp_path, (32, 48), 60)
    repeat(clip, tmp_path / "long.mp4", frames)
    for index in (0, frames - 1) if both_ways else (0,):
        path = tmp_path / "labels" / "long" / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), mask.astype(np.uint8) * 255)
    (tmp_path / "out" / ".staging").mkdir(parents=True)
    job = Job(tmp_path / "labels", tmp_path / "out", tmp_path / "out" / ".staging", ("davis", "jsonl"), "test")
    backend = open_backend("auto", load_artifact(small_artifact), 1)
    amounts: list[int] = []

    def note(done: int, announced: int | None) -> None:
        if done % 25 == 0:  # a snapshot takes as long as ten frames
            amounts.append(held_by_us())

    with traced():
        assert process_item(job, Item("long", tmp_path / "long.mp4"), Tracker(backend), note).frames == frames
    backend.close()
    third = len(amounts) // 3
    # The least of many: frames wait in queues, now one and now two.
    assert min(amounts[2 * third :]) - min(amounts[third // 2 : third]) < 4 * frames // 2
