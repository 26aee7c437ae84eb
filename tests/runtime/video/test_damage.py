"""Damaged videos: what FFmpeg decodes is delivered, and the damage is told; a strict source ends at the first."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from corrflow.errors import SourceEndedEarly
from corrflow.runtime.types import Frame
from corrflow.runtime.video.open_source import open_source
from corrflow.runtime.video.video_clock import VideoClock

FRAMES = 48


def write_video(path: Path, codec: str, options: dict[str, str] | None = None, start: int = 0) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options or {})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = 12
        y, x = np.mgrid[:64, :96]
        for index in range(FRAMES):
            image = np.stack([x + 3 * index, y + 2 * index, x * y // 8 + 5 * index], -1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def zero_packets(path: Path, numbers: list[int]) -> Path:
    """Overwrite packets of a file, counted in stored order, with zeros."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for number in numbers:
        at = data.find(packets[number])
        assert at > 0
        data[at : at + len(packets[number])] = bytes(len(packets[number]))
    damaged = path.with_name(f"damaged{path.suffix}")
    damaged.write_bytes(data)
    return damaged


def read(path: Path, strict: bool = False) -> tuple[list[Frame], list[str]]:
    with open_source(str(path), strict) as source:
        return list(source), source.notes


KINDS = [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.avi", "mjpeg"), ("a.mkv", "libx264")]


@pytest.mark.parametrize(("name", "codec"), KINDS, ids=str)
@pytest.mark.parametrize("numbers", [[20], [20, 21, 30], [FRAMES - 2]], ids=str)
def test_damaged_packets_are_skipped_and_told(tmp_path: Path, name: str, codec: str, numbers: list[int]) -> None:
    path = zero_packets(write_video(tmp_path / name, codec), numbers)
    frames, notes = read(path)
    assert len(frames) == FRAMES - len(numbers)
    assert all(a.time < b.time for a, b in pairwise(frames))
    assert frames[-1].time == pytest.approx((FRAMES - 1) / 24, abs=0.06)
    assert len(notes) == 1 and f"{len(numbers)} damaged packet" in notes[0] and path.name in notes[0]
    with pytest.raises(SourceEndedEarly):
        read(path, strict=True)


def test_sound_frames_are_the_same_behind_a_damaged_packet(tmp_path: Path) -> None:
    """The file is decoded twice, because several threads lose frames near the damage."""
    whole, _ = read(write_video(tmp_path / "a.avi", "mjpeg"))
    frames, _ = read(zero_packets(tmp_path / "a.avi", [20]))
    for expected, frame in zip(whole[:20] + whole[21:], frames, strict=True):
        assert np.array_equal(expected.image, frame.image)


def test_damaged_beginning_is_told_with_the_number_of_missing_frames(tmp_path: Path) -> None:
    frames, notes = read(zero_packets(write_video(tmp_path / "a.avi", "mjpeg"), [0, 1, 2]))
    assert len(frames) == FRAMES - 3 and (frames[0].index, frames[0].time) == (3, 3 / 24)
    assert len(notes) == 1 and "3 frames at the beginning" in notes[0]


def test_recording_that_starts_between_key_frames_is_told(tmp_path: Path) -> None:
    write_video(tmp_path / "a.ts", "libx264", {"bf": "0"})
    data = (tmp_path / "a.ts").read_bytes()
    tables, middle = data[: 3 * 188], len(data) // 188 // 6 * 188
    (tmp_path / "late.ts").write_bytes(tables + data[middle:])
    frames, notes = read(tmp_path / "late.ts")
    assert FRAMES // 2 < len(frames) < FRAMES and "at the beginning" in notes[0] and frames[0].index > 0


def test_raw_stream_without_its_first_key_frame_is_told(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.h264", "libx264", {"bf": "0"}).read_bytes()
    start = data.index(b"\0\0\1\x65")  # the first key frame
    (tmp_path / "late.h264").write_bytes(data[:start] + data[data.index(b"\0\0\1\x41", start) - 1 :])
    frames, notes = read(tmp_path / "late.h264")
    assert frames[0].index == FRAMES - 1 - len(frames) and "at the beginning" in notes[0]


def test_lost_part_of_a_transport_stream_costs_no_other_frame(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.ts", "libx264").read_bytes()
    middle = len(data) // 188 // 2 * 188
    (tmp_path / "lost.ts").write_bytes(data[:middle] + data[middle + 188 :])
    frames, notes = read(tmp_path / "lost.ts")
    assert len(frames) >= FRAMES - 2 and len(notes) == 1 and "1 incomplete packet" in notes[0]


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_joined_recordings_are_one_film_whose_times_rise(tmp_path: Path, suffix: str) -> None:
    data = write_video(tmp_path / f"a.{suffix}", "libx264" if suffix == "ts" else "mpeg2video").read_bytes()
    (tmp_path / f"b.{suffix}").write_bytes(data + data)
    frames, notes = read(tmp_path / f"b.{suffix}")
    assert len(frames) >= 2 * FRAMES - 2
    steps = [b.time - a.time for a, b in pairwise(frames)]
    assert min(steps) > 0.02 and max(steps) < 0.2
    assert any("start again at frame" in note for note in notes)


def test_jump_of_the_clock_is_kept_in_the_times(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", "libx264", {"bf": "0"})
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "b.mkv"), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            gap = 50_000_000 if number >= 20 else 0
            assert packet.pts is not None and packet.dts is not None
            packet.pts, packet.dts, packet.stream = packet.pts + gap, packet.dts + gap, stream
            container.mux(packet)
    frames, _ = read(tmp_path / "b.mkv")
    assert len(frames) == FRAMES and frames[20].time - frames[19].time > 40_000


def test_frames_stored_out_of_order_around_a_jump_are_put_right() -> None:
    clock = VideoClock(0.04)
    stamps = [5.0, 5.04, 5.08, 90_005.12, 5.16, 90_005.2, 90_005.24, 5.28, 90_005.32, 90_005.36]
    times = [clock.time(stamp) for stamp in stamps]
    assert times[:4] == pytest.approx([0, 0.04, 0.08, 90_000.12])
    assert np.diff(times[3:]) == pytest.approx([0.04] * 6)
    assert clock.restarts == []


def test_time_stamps_that_start_again_long_after_the_first_keep_no_gap() -> None:
    clock = VideoClock(0.04)
    times = [clock.time(stamp) for stamp in [3600.0, 3600.04, 3600.08, 0.0, 0.04, 0.08]]
    assert times == pytest.approx([0.04 * index for index in range(6)]) and clock.restarts == [3]
