"""Sinks: what is written reads back as it was, appears in one piece, and survives interruptions and full disks."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.jsonl import JsonLinesSink
from corrflow.runtime.formats.mask_png import MaskFolderSink
from corrflow.runtime.formats.overlay_video import VideoSink
from corrflow.runtime.formats.points_csv import KeypointCsvSink
from corrflow.runtime.types import Frame, FrameResult, ObjectResult
from corrflow.runtime.video.overlay import davis_palette, draw_overlay

RATE = Fraction(30000, 1001)

SINKS: dict[str, Callable[[Path], Sink]] = {
    "video.mp4": lambda path: VideoSink(path, RATE),
    "video.mkv": lambda path: VideoSink(path, RATE),
    "points.csv": KeypointCsvSink,
    "tracks.jsonl": JsonLinesSink,
}


def frame_at(index: int, size: tuple[int, int] = (48, 64)) -> Frame:
    image = np.full((*size, 3), (180, 90, 40 + index), np.uint8)
    return Frame(image, index, index / 25, f"{index:05d}")


def result_at(index: int, size: tuple[int, int] = (48, 64)) -> FrameResult:
    mask = np.zeros(size, np.uint8)
    mask[8:20, 10 + index : 30 + index] = 1
    mask[30:40, 5:15] = 200
    points = np.array([[12.345 + index, 7.891], [60.004, 2]], np.float32)
    return FrameResult(
        mask,
        (
            ObjectResult(1, "cat", 0.98765, True, (10 + index, 8, 30 + index, 20)),
            ObjectResult(
                7,
                'a "quoted", Käse',
                0.5,
                True,
                None,
                points,
                ("nose", "left, ear"),
                np.array([0.91234, 0.2], np.float32),
            ),
            ObjectResult(200, "", 0.1, False),
        ),
        frame_at(index, size),
    )


def write_clip(sink: Sink, count: int = 5, size: tuple[int, int] = (48, 64)) -> None:
    for index in range(count):
        sink.write(result_at(index, size))


def test_masks_come_back_exactly_with_the_davis_palette(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    masks = [generator.integers(0, 256, (33, 47), np.uint8) for _ in range(3)]
    with MaskFolderSink(tmp_path / "new" / "masks") as sink:
        for index, mask in enumerate(masks):
            sink.write(FrameResult(mask, (), frame_at(index, (33, 47))))
    assert sorted(os.listdir(tmp_path / "new" / "masks")) == ["00000.png", "00001.png", "00002.png"]
    for index, mask in enumerate(masks):
        with Image.open(tmp_path / "new" / "masks" / f"{index:05d}.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), mask)
            assert np.array_equal(np.array(image.getpalette(), np.uint8).reshape(-1, 3), davis_palette())


def test_csv_has_one_row_per_point_and_frame(tmp_path: Path) -> None:
    with KeypointCsvSink(tmp_path / "points.csv") as sink:
        write_clip(sink, 2)
    with (tmp_path / "points.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["frame", "time", "object", "point", "x", "y", "confidence"]
    assert rows[1] == ["0", "0.000000", "7", "nose", "12.35", "7.89", "0.9123"]
    assert rows[2] == ["0", "0.000000", "7", "left, ear", "60.00", "2.00", "0.2000"]
    assert rows[3][:4] == ["1", "0.040000", "7", "nose"]
    assert len(rows) == 5


def test_csv_of_masks_alone_has_its_header(tmp_path: Path) -> None:
    with KeypointCsvSink(tmp_path / "points.csv") as sink:
        sink.write(FrameResult(np.zeros((48, 64), np.uint8), (), frame_at(0)))
    assert (tmp_path / "points.csv").read_text() == "frame,time,object,point,x,y,confidence\n"


def test_json_lines_hold_every_object_of_every_frame(tmp_path: Path) -> None:
    with JsonLinesSink(tmp_path / "tracks.jsonl") as sink:
        write_clip(sink, 3)
    records = [json.loads(line) for line in (tmp_path / "tracks.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(record["frame"], record["name"]) for record in records] == [(0, "00000"), (1, "00001"), (2, "00002")]
    assert records[1]["time"] == 0.04
    assert records[1]["objects"] == [
        {"id": 1, "name": "cat", "confidence": 0.9877, "visible": True, "box": [11, 8, 31, 20], "points": {}},
        {
            "id": 7,
            "name": 'a "quoted", Käse',
            "confidence": 0.5,
            "visible": True,
            "box": None,
            "points": {"nose": [13.35, 7.89, 0.9123], "left, ear": [60.0, 2.0, 0.2]},
        },
        {"id": 200, "name": "", "confidence": 0.1, "visible": False, "box": None, "points": {}},
    ]


def test_numbers_that_are_not_finite_keep_the_tables_readable(tmp_path: Path) -> None:
    points = np.array([[np.nan, np.inf]], np.float32)
    objects = (ObjectResult(1, "", float("nan"), False, None, points, ("p",)),)
    result = FrameResult(np.zeros((48, 64), np.uint8), objects, frame_at(0))
    with JsonLinesSink(tmp_path / "t.jsonl") as lines, KeypointCsvSink(tmp_path / "t.csv") as table:
        lines.write(result)
        table.write(result)
    assert json.loads((tmp_path / "t.jsonl").read_text())["objects"][0]["points"] == {"p": [None, None, None]}
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == "0,0.000000,1,p,,,"


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("size", [(48, 64), (49, 65), (17, 16)], ids=str)
def test_video_has_every_frame_at_even_size_and_the_given_pace(
    tmp_path: Path, suffix: str, size: tuple[int, int]
) -> None:
    path = tmp_path / f"overlay.{suffix}"
    with VideoSink(path, Fraction(25)) as sink:
        write_clip(sink, 7, size)
        assert not path.exists()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(stream)]
    height, width = size
    assert len(frames) == 7
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)
    expected = draw_overlay(result_at(3, size))
    assert np.abs(frames[3][:height, :width].astype(int) - expected).mean() < 12  # thin coloured lines lose in 4:2:0
    # A corner free of overlay: the colours survive the way through the encoder's colour space.
    assert np.abs(frames[3][height - 2, width - 2].astype(int) - expected[-2, -2]).max() <= 6


def test_mp4_can_be_played_while_it_downloads(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "overlay.mp4", RATE) as sink:
        write_clip(sink)
    data = (tmp_path / "overlay.mp4").read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")


def test_video_of_another_suffix_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.mp4.*got .*clip\.gif.*rename it to \.mp4"):
        VideoSink(tmp_path / "clip.gif", RATE)
    with pytest.raises(InputError, match="more than 0 frames per second"):
        VideoSink(tmp_path / "clip.mp4", Fraction(0))


def test_frame_of_another_size_is_refused_and_the_video_keeps_the_rest(tmp_path: Path) -> None:
    with pytest.raises(CorrflowError, match="one size"), VideoSink(tmp_path / "clip.mp4", RATE) as sink:
        write_clip(sink, 3)
        write_clip(sink, 1, (60, 60))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3


@pytest.mark.parametrize("name", SINKS)
def test_interrupted_run_keeps_the_frames_so_far(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyboardInterrupt), SINKS[name](tmp_path / name) as sink:
        write_clip(sink, 4)
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == [name]
    if name.startswith("video"):
        with av.open(str(tmp_path / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 4
    else:
        assert len((tmp_path / name).read_text(encoding="utf-8").splitlines()) == (9 if name.endswith("csv") else 4)


@pytest.mark.parametrize("name", SINKS)
def test_nothing_appears_before_the_end_and_nothing_without_frames(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("the result of an earlier run")
    with SINKS[name](tmp_path / name):
        pass
    assert (tmp_path / name).read_text() == "the result of an earlier run"
    sink = SINKS[name](tmp_path / name)
    write_clip(sink)
    assert (tmp_path / name).read_text() == "the result of an earlier run"
    sink.close()
    assert (tmp_path / name).stat().st_size > 100
    sink.close()
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", [*SINKS, "masks"])
def test_place_that_cannot_be_written_to_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    make = SINKS.get(name, MaskFolderSink)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"expected to write to .*; choose another place") as caught:
        make(tmp_path / "file" / name)
    assert "\n" not in str(caught.value)
    if name in SINKS:
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match="it is a folder"):
            make(tmp_path / name)


WRITER = """
    import resource, signal, sys
    import numpy as np
    from fractions import Fraction
    from pathlib import Path
    from corrflow.errors import CorrflowError
    from corrflow.runtime.formats.jsonl import JsonLinesSink
    from corrflow.runtime.formats.mask_png import MaskFolderSink
    from corrflow.runtime.formats.overlay_video import VideoSink
    from corrflow.runtime.formats.points_csv import KeypointCsvSink
    from corrflow.runtime.types import *

    folder, mode = Path(sys.argv[1]), sys.argv[2]
    noise = np.random.default_rng(0)
    def frame(i): return Frame(noise.integers(0, 256, (96, 128, 3), np.uint8), i, i / 25, f"{i:05d}")
    points = np.zeros((40, 2), np.float32)
    track = ObjectResult(3, "long name", 1.0, True, None, points, tuple(map(str, range(40))))
    def result(i): return FrameResult(noise.integers(0, 256, (96, 128), np.uint8), (track,), frame(i))
    sinks = [VideoSink(folder / "v.mp4", Fraction(25)), KeypointCsvSink(folder / "p.csv"),
             JsonLinesSink(folder / "t.jsonl"), MaskFolderSink(folder / "masks")]
"""


def run_writer(folder: Path, mode: str, body: str) -> subprocess.CompletedProcess[str]:
    script = textwrap.dedent(WRITER) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", script, str(folder), mode], capture_output=True, text=True, timeout=60, check=False
    )


def test_killed_run_leaves_no_half_file_at_a_final_path(tmp_path: Path) -> None:
    body = """
        for i in range(20):
            now = result(i)
            for sink in sinks: sink.write(now)
        signal.raise_signal(signal.SIGKILL)
    """
    result = run_writer(tmp_path, "kill", body)
    assert result.returncode == -signal.SIGKILL, result.stderr
    visible = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert visible == ["masks"]
    for path in (tmp_path / "masks").iterdir():
        with Image.open(path) as image:
            image.load()


def test_full_disk_is_reported_in_one_sentence_and_leaves_no_broken_file(tmp_path: Path) -> None:
    # A limit on the size of files stands in for a full disk: writing beyond it fails in the same calls.
    body = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        for sink in sinks:
            try:
                with sink:
                    for i in range(200):
                        sink.write(result(i))
            except CorrflowError as error:
                print(type(error).__name__, error)
    """
    result = run_writer(tmp_path, "full", body)
    assert result.returncode == 0, result.stderr
    reports = result.stdout.splitlines()
    assert len(reports) == 4, result.stdout
    for report, name in zip(reports, ("v.mp4", "p.csv", "t.jsonl", "00000.png"), strict=True):
        assert report.startswith("CorrflowError expected to write") and name in report and "File too large" in report
    assert not (tmp_path / "v.mp4").exists()
    records = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    rows = (tmp_path / "p.csv").read_text().splitlines()
    assert [record["frame"] for record in records] == list(range(len(records))) and len(records) > 1
    assert (len(rows) - 1) % 40 == 0 and all(row.count(",") == 6 for row in rows)
    assert list((tmp_path / "masks").iterdir()) == []
