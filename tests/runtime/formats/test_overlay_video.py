"""Overlay videos: the shape of pixels, the sound and the times of the source are kept, or it is told what is not."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from corrflow.runtime.formats.registry import open_sink
from corrflow.runtime.types import Frame, FrameResult
from corrflow.runtime.video.open_source import open_source

SIZE = (48, 64)


def write_source(path: Path, frames: int = 25, sound: str = "", seconds: float = 1.0, **options: object) -> Path:
    """Write a film of 25 frames/s with a tone."""
    rate = 48000 if "opus" in sound else 44100
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        if ratio := options.get("ratio"):
            stream.codec_context.sample_aspect_ratio = ratio
        if rotation := options.get("rotation"):
            stream.set_display_rotation(rotation)
        audio = container.add_stream(sound, rate=rate, layout="mono") if sound else None
        for index in range(frames):
            image = np.full((*SIZE, 3), 5 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
        if audio is not None:
            length = audio.codec_context.frame_size or 1024
            kind = audio.codec_context.format.name
            for block in range(int(seconds * rate / length)):
                tone = np.sin(np.arange(block * length, (block + 1) * length) * 2 * np.pi * 440 / rate)
                values = (8000 * tone).astype(np.int16) if kind.startswith("s16") else (tone / 4).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(values[None], format=kind, layout="mono")
                frame.sample_rate, frame.pts = rate, block * length
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def results(frames: Iterator[Frame]) -> Iterator[FrameResult]:
    for frame in frames:
        yield FrameResult(np.zeros(frame.image.shape[:2], np.uint8), (), frame)


def overlay(source: Path, target: Path, frames: int | None = None) -> list[str]:
    """Write the overlay of a source; return the notes."""
    with open_source(str(source)) as opened, open_sink("overlay", target, opened) as sink:
        for result in results(itertools.islice(opened, frames)):
            sink.write(result)
    return opened.notes


def duration(path: Path, kind: str) -> float:
    """Return the end of the last packet of a kind in seconds; 0 without such a stream."""
    with av.open(str(path)) as container:
        stream = container.streams.best(kind)  # type: ignore[arg-type]
        if stream is None:
            return 0.0
        ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.size and p.pts is not None]
        return float(max(ends) * stream.time_base)  # type: ignore[operator]


@pytest.mark.parametrize("suffix", ["mp4", "m4v", "mov", "mkv"])
@pytest.mark.parametrize(("rotation", "shown"), [(0, Fraction(16, 15)), (90, Fraction(15, 16))])
def test_shape_of_pixels_is_kept(tmp_path: Path, suffix: str, rotation: int, shown: Fraction) -> None:
    source = write_source(tmp_path / "a.mp4", ratio=Fraction(16, 15), rotation=rotation)
    overlay(source, tmp_path / f"o.{suffix}")
    with av.open(str(tmp_path / f"o.{suffix}")) as container:
        assert container.streams.video[0].sample_aspect_ratio == shown


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("source", ["a.mp4", "a.mkv", "a.ts"])
def test_sound_is_kept_in_time_with_the_frames(tmp_path: Path, suffix: str, source: str) -> None:
    path = write_source(tmp_path / source, sound="aac", seconds=3.0)
    assert overlay(path, tmp_path / f"o.{suffix}") == []
    assert duration(tmp_path / f"o.{suffix}", "video") == pytest.approx(1.0, abs=0.05)
    assert duration(tmp_path / f"o.{suffix}", "audio") == pytest.approx(1.0, abs=0.08), "up to the last frame"
    with av.open(str(tmp_path / f"o.{suffix}")) as container:
        tones = [frame.to_ndarray() for frame in container.decode(audio=0)]
    assert np.abs(np.concatenate(tones, 1)[0, 4096:32768]).mean() > 0.1, "the tone can be decoded"


def test_interrupted_overlay_keeps_the_sound_up_to_its_last_frame(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.mp4", 50, sound="aac", seconds=2.0)
    overlay(path, tmp_path / "o.mp4", 20)
    assert duration(tmp_path / "o.mp4", "audio") == pytest.approx(0.8, abs=0.05)


def test_sound_that_the_container_does_not_take_is_told(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.mov", sound="pcm_mulaw")
    notes = overlay(path, tmp_path / "o.mp4")
    assert len(notes) == 1 and "sound is left out" in notes[0] and "pcm_mulaw" in notes[0]
    assert duration(tmp_path / "o.mp4", "video") == pytest.approx(1.0, abs=0.05)
    assert overlay(path, tmp_path / "o.mov") == [] and duration(tmp_path / "o.mov", "audio") > 0.9


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    "jumps", [{7: 14 * 3600.0}, {7: -3600.0}, {7: 14 * 3600.0, 15: -14 * 3600.0}, {1: 1e7}], ids=str
)
def test_jumps_of_the_clock_leave_no_gap_and_are_told(tmp_path: Path, suffix: str, jumps: dict[int, float]) -> None:
    with open_source(str(write_source(tmp_path / "a.mp4"))) as source:
        shift = 0.0
        with open_sink("overlay", tmp_path / f"o.{suffix}", source) as sink:
            for result in results(iter(source)):
                shift += jumps.get(result.frame.index, 0.0)
                frame = Frame(result.frame.image, result.frame.index, result.frame.time + shift, "")
                sink.write(FrameResult(result.mask, (), frame))
    with av.open(str(tmp_path / f"o.{suffix}")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([index / 25 for index in range(25)], abs=2e-3)
    assert len(source.notes) == 1 and "clock jumps" in source.notes[0]


def test_pause_of_minutes_is_kept(tmp_path: Path) -> None:
    with open_source(str(write_source(tmp_path / "a.mp4", 3))) as source:
        with open_sink("overlay", tmp_path / "o.mp4", source) as sink:
            for result in results(iter(source)):
                frame = Frame(result.frame.image, result.frame.index, 300.0 * result.frame.index, "")
                sink.write(FrameResult(result.mask, (), frame))
        assert source.notes == []
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert [frame.time for frame in container.decode(video=0)] == [0, 300, 600]


NAMES = [
    "2024-05-01T12:30:00.mp4",
    "file:x.mp4",
    "concat:a.mp4",
    "50%d.mp4",
    "%05d.mp4",
    "-x.mp4",
    "a[1].mp4",
    "a#b?.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_files_and_never_protocols_or_patterns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_source(tmp_path / "plain.mp4", 5, sound="aac")
    monkeypatch.chdir(tmp_path)
    Path("plain.mp4").rename(name)
    assert overlay(Path(name), Path(f"o{name}")) == []
    assert duration(tmp_path / f"o{name}", "video") == pytest.approx(0.2, abs=0.02)


ENCODE = """
import sys
from fractions import Fraction
from corrflow.runtime.formats.overlay_video import VideoSink
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.demo_clip import DemoSource
with VideoSink(sys.argv[1], Fraction(24)) as sink:
    for frame in DemoSource(30, (66, 98)):
        sink.write(FrameResult((frame.image[..., 0] > 100).astype("uint8"), (), frame))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_equal_results_are_equal_files_whatever_the_memory_holds(tmp_path: Path) -> None:
    for fill in ("0", "85", "170"):
        run = [sys.executable, "-c", ENCODE, str(tmp_path / f"{fill}.mp4")]
        subprocess.run(run, check=True, env={**os.environ, "MALLOC_PERTURB_": fill}, timeout=60)
    assert len({path.read_bytes() for path in tmp_path.glob("*.mp4")}) == 1
