"""Sources: what opens, in which order and at what time frames come, and how damage is told from soundness."""

from __future__ import annotations

import random
import struct
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corrflow.errors import InputError, SourceEndedEarly
from corrflow.runtime.types import Frame
from corrflow.runtime.video import video_file as video_source
from corrflow.runtime.video.open_source import open_source

FRAMES = 40
RATE = Fraction(25)


def image(index: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Render a moving pattern, so that prediction and reordered frames are really used."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x + 3 * index, y + 2 * index, x * y // 8 + 5 * index], -1).astype(np.uint8)


def make_video(
    path: Path,
    frame_count: int = FRAMES,
    size: tuple[int, int] = (64, 96),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    audio_seconds: int = 0,
    times_in_ms: list[int] | None = None,
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        if times_in_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        if codec == "libx264":
            stream.options = {"x264-params": "mbtree=0"}  # with it, equal frames now and then have other bytes
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream("aac", rate=44100) if audio_seconds else None
        for index in range(len(times_in_ms) if times_in_ms else frame_count):
            frame = av.VideoFrame.from_ndarray(image(index, *size), format="bgr24")
            if times_in_ms:
                frame.pts, frame.time_base = times_in_ms[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            for block in range(audio_seconds * 43):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                sound.sample_rate, sound.pts = 44100, block * 1024
                container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the same forty frames in every container that states its size in its own way."""
    folder = tmp_path_factory.mktemp("videos")
    return {
        "mp4": make_video(folder / "faststart.mp4", options={"movflags": "faststart"}),
        "mp4-moov-last": make_video(folder / "plain.mp4"),
        "mp4-fragmented": make_video(folder / "fragmented.mp4", options={"movflags": "frag_keyframe+empty_moov"}),
        "mkv": make_video(folder / "clip.mkv"),
        "avi": make_video(folder / "clip.avi", codec="mpeg4"),
        "ts": make_video(folder / "clip.ts"),
        "h264": make_video(folder / "clip.h264"),
    }


def drain(spec: Path | str, strict: bool = False) -> tuple[list[Frame], str]:
    """Read every frame, and the sentence of SourceEndedEarly or ""."""
    frames: list[Frame] = []
    with open_source(str(spec), strict) as source:
        try:
            for frame in source:
                frames.append(frame)
        except SourceEndedEarly as error:
            return frames, str(error)
    return frames, ""


def cut_position(data: bytes, share: float) -> int:
    """Return the position that keeps a share of a file; of an AVI, of its frames after the long header."""
    start, end = (data.find(b"movi"), data.rfind(b"idx1")) if data[:4] == b"RIFF" else (0, len(data))
    return start + int((end - start) * share)


def is_prefix(frames: list[Frame], whole: list[Frame]) -> bool:
    return len(frames) <= len(whole) and all(
        np.array_equal(a.image, b.image) for a, b in zip(frames, whole, strict=False)
    )


def refusal(spec: Path | str) -> str:
    """Return the sentence with which a source is refused, which must be one line."""
    with pytest.raises(InputError) as caught:
        open_source(str(spec))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("expected")
    return str(caught.value)


def write_pictures(folder: Path, names: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), np.full((8, 10, 3), (index, 20, 30), np.uint8))
    return folder


def test_pictures_come_in_natural_order_with_their_stems_as_names(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "clip", ["frame10.png", "frame2.PNG", "frame1.bmp", "frame03.tif"])
    (folder / "._frame1.png").write_bytes(b"not a image")
    (folder / "notes.txt").write_text("no image either")
    with open_source(str(folder)) as source:
        frames = list(source)
        assert (source.name, source.frame_count, source.frames_per_second) == ("clip", 4, None)
    assert [frame.name for frame in frames] == ["frame1", "frame2", "frame03", "frame10"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.time for frame in frames] == pytest.approx([0, 1 / 24, 2 / 24, 3 / 24])


def test_pictures_are_blue_green_red_whatever_their_format(tmp_path: Path) -> None:
    colour = (200, 100, 50)
    for suffix in ("png", "bmp", "webp", "jpg", "jpeg", "tif", "tiff"):
        assert cv2.imwrite(str(tmp_path / f"{suffix}.{suffix}"), np.full((16, 16, 3), colour, np.uint8))
    Image.new("L", (16, 16), 77).save(tmp_path / "grey.png")
    frames, _ = drain(tmp_path)
    assert len(frames) == 8
    for frame in frames:
        expected = (77, 77, 77) if frame.name == "grey" else colour
        assert frame.image.dtype == np.uint8 and frame.image.shape == (16, 16, 3)
        assert np.abs(frame.image.astype(int) - expected).max() <= 4, frame.name  # JPEG and WebP lose a little


def test_glob_patterns_and_single_pictures_are_sources(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "clip", ["a1.png", "a2.png", "b1.png"])
    assert [frame.name for frame in drain(folder / "a*.png")[0]] == ["a1", "a2"]
    assert [frame.name for frame in drain(tmp_path / "**" / "b?.*")[0]] == ["b1"]
    assert [frame.name for frame in drain(folder / "b1.png")[0]] == ["b1"]


def test_folder_whose_name_looks_like_a_pattern_is_opened_as_a_folder(tmp_path: Path) -> None:
    assert len(drain(write_pictures(tmp_path / "take[1]*", ["a.png"]))[0]) == 1


def test_exif_orientation_turns_a_picture_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    Image.new("RGB", (20, 10)).save(tmp_path / "photo.jpg", exif=exif)
    assert drain(tmp_path / "photo.jpg")[0][0].image.shape == (20, 10, 3)


def test_pictures_that_share_a_stem_are_refused(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "clip", ["00000.jpg", "00000.png"])
    assert "*.jpg" in refusal(folder) or "*.png" in refusal(folder)
    assert len(drain(folder / "*.jpg")[0]) == 1


def test_picture_of_another_size_ends_the_source_after_the_good_frames(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "clip", ["1.png", "2.png", "3.png", "4.png"])
    Image.new("RGB", (11, 8)).save(folder / "3.png")
    frames, sentence = drain(folder)
    assert [frame.name for frame in frames] == ["1", "2"]
    assert "clip ends early: 2 of 4 frames decoded" in sentence and "11x8" in sentence and "10x8" in sentence


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_cut_picture_ends_the_source_after_the_good_frames(tmp_path: Path, suffix: str) -> None:
    for index in range(3):
        assert cv2.imwrite(str(tmp_path / f"{index}.{suffix}"), image(index))
    data = (tmp_path / f"1.{suffix}").read_bytes()
    (tmp_path / f"1.{suffix}").write_bytes(data[: len(data) // 2])
    frames, sentence = drain(tmp_path)
    assert len(frames) == 1 and f"1.{suffix} cannot be" in sentence


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no image"], ids=["empty", "cut", "text"])
def test_undecodable_first_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.png").write_bytes(content)
    assert "0.png" in refusal(tmp_path)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.mp4")
    assert "does not exist" in refusal("")
    assert "got none" in refusal(tmp_path / "*.png")
    (tmp_path / "empty").mkdir()
    assert "got none" in refusal(tmp_path / "empty")


def test_files_without_video_are_refused(tmp_path: Path, videos: dict[str, Path]) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.txt").write_text("FFmpeg would draw this as terminal art\n" * 50)
    (tmp_path / "noise.mp4").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode(None)])
    plain = videos["mp4-moov-last"].read_bytes()
    (tmp_path / "without_index.mp4").write_bytes(plain[: len(plain) // 2])
    for name in ("empty.mp4", "notes.txt", "noise.mp4", "list.m3u8", "sound.wav", "without_index.mp4"):
        assert name in refusal(tmp_path / name)


@pytest.mark.parametrize("kind", ["mp4", "mp4-moov-last", "mp4-fragmented", "mkv", "avi", "ts", "h264"])
def test_sound_video_delivers_every_frame_in_order(videos: dict[str, Path], kind: str) -> None:
    with open_source(str(videos[kind])) as source:
        assert source.frames_per_second == RATE
        assert source.frame_count in (FRAMES, None)
        assert source.name == videos[kind].stem
        frames = list(source)
    assert len(frames) == FRAMES
    assert [frame.name for frame in frames[:2]] == ["00000", "00001"]
    # Matroska stores milliseconds, and the raw stream no times at all, so that they follow from the pace.
    assert [frame.time for frame in frames] == pytest.approx([i / 25 for i in range(FRAMES)], abs=1e-3)
    for frame in frames:
        assert frame.image.dtype == np.uint8 and frame.image.flags.c_contiguous
        wrong = np.abs(frame.image.astype(int) - image(frame.index)).mean()
        assert wrong < 40, "frames must be the ones that were encoded, up to coding loss"


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts"])
def test_longer_sound_track_raises_no_alarm(tmp_path: Path, suffix: str) -> None:
    frames, sentence = drain(make_video(tmp_path / f"clip.{suffix}", 10, audio_seconds=3))
    assert (len(frames), sentence) == (10, "")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_pace_keeps_its_times_and_raises_no_alarm(tmp_path: Path, suffix: str) -> None:
    times = [0, 40, 80, 120, 900, 940, 3000, 3040]
    frames, sentence = drain(make_video(tmp_path / f"clip.{suffix}", times_in_ms=times))
    assert [frame.time for frame in frames] == pytest.approx([time / 1000 for time in times], abs=1e-3)
    assert sentence == ""


def test_samples_hidden_by_an_edit_list_raise_no_alarm(tmp_path: Path, videos: dict[str, Path]) -> None:
    data = bytearray(videos["mp4"].read_bytes())
    movie_header, media_header, edit_list = (data.find(tag) for tag in (b"mvhd", b"mdhd", b"elst"))
    movie_scale, media_scale = (struct.unpack_from(">I", data, at + 16)[0] for at in (movie_header, media_header))
    struct.pack_into(">Ii", data, edit_list + 12, movie_scale // 2, media_scale // 2)  # half a second from 0.5 s on
    (tmp_path / "trimmed.mp4").write_bytes(data)
    frames, sentence = drain(tmp_path / "trimmed.mp4")
    assert len(frames) in (12, 13, 14) and sentence == ""


def test_file_whose_index_alone_is_cut_raises_no_alarm(tmp_path: Path, videos: dict[str, Path]) -> None:
    data = videos["avi"].read_bytes()
    (tmp_path / "clip.avi").write_bytes(data[: data.rfind(b"idx1") + 20])
    frames, sentence = drain(tmp_path / "clip.avi")
    assert (len(frames), sentence) == (FRAMES, "")


@pytest.mark.parametrize("size", [(63, 95), (17, 33)], ids=str)
def test_odd_sizes_are_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    frames, _ = drain(make_video(tmp_path / "odd.mp4", 3, size))
    assert frames[0].image.shape == (*size, 3)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_of_the_metadata_is_applied(tmp_path: Path, rotation: int) -> None:
    level = drain(make_video(tmp_path / "level.mp4", 2))[0]
    turned = drain(make_video(tmp_path / "turned.mp4", 2, rotation=rotation))[0]
    for a, b in zip(level, turned, strict=True):
        assert np.array_equal(np.rot90(a.image, rotation // 90), b.image)


def test_video_is_decoded_lazily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    convert = video_source.upright_image
    monkeypatch.setattr(video_source, "upright_image", lambda *frame: decoded.append(1) or convert(*frame))
    with open_source(str(make_video(tmp_path / "long.mp4", 200))) as source:
        assert len(decoded) == 1
        frames: Iterator[Frame] = iter(source)
        for _ in range(5):
            next(frames)
        assert len(decoded) == 5


def test_closed_source_delivers_no_more_frames(videos: dict[str, Path], tmp_path: Path) -> None:
    for spec in (videos["mp4"], write_pictures(tmp_path / "clip", ["1.png", "2.png"])):
        source = open_source(str(spec))
        next(iter(source))
        source.close()
        source.close()
        assert list(source) == []


@pytest.mark.parametrize("kind", ["mp4", "mp4-fragmented", "mkv", "avi"])
@pytest.mark.parametrize("share", [0.5, 0.75, 0.97])
def test_truncated_video_delivers_good_frames_then_says_it_ended_early(
    tmp_path: Path, videos: dict[str, Path], kind: str, share: float
) -> None:
    whole, _ = drain(videos[kind])
    data = videos[kind].read_bytes()
    cut = tmp_path / f"cut{videos[kind].suffix}"
    cut.write_bytes(data[: cut_position(data, share)])
    frames, sentence = drain(cut)
    assert 0 < len(frames) < FRAMES
    assert is_prefix(frames, whole), "frames behind the cut must not take the place of missing ones"
    assert f"{cut.name} ends early: {len(frames)}" in sentence and "\n" not in sentence
    assert kind == "mp4-fragmented" or f"of {FRAMES} frames" in sentence


@pytest.mark.parametrize("kind", ["mp4", "mp4-fragmented", "mkv", "avi"])
def test_download_whose_rest_is_still_zeros_is_told_from_a_sound_file(
    tmp_path: Path, videos: dict[str, Path], kind: str
) -> None:
    whole, _ = drain(videos[kind])
    data = videos[kind].read_bytes()
    partial = tmp_path / f"partial{videos[kind].suffix}"
    end = cut_position(data, 0.6)
    partial.write_bytes(data[:end] + bytes(len(data) - end))
    frames, sentence = drain(partial)
    assert is_prefix(frames, whole) and 0 < len(frames) < FRAMES and "ends early" in sentence


def test_damage_in_the_middle_ends_a_strict_source(tmp_path: Path, videos: dict[str, Path]) -> None:
    whole, _ = drain(videos["mp4"])
    data = bytearray(videos["mp4"].read_bytes())
    middle = len(data) * 2 // 3
    data[middle : middle + 400] = random.Random(1).randbytes(400)
    (tmp_path / "damaged.mp4").write_bytes(data)
    frames, sentence = drain(tmp_path / "damaged.mp4", strict=True)
    assert 0 < len(frames) < FRAMES and is_prefix(frames, whole) and "ends early" in sentence


def test_size_change_within_a_video_ends_the_source(tmp_path: Path) -> None:
    first = make_video(tmp_path / "a.h264", 10).read_bytes()
    second = make_video(tmp_path / "b.h264", 10, size=(96, 128)).read_bytes()
    (tmp_path / "both.h264").write_bytes(first + second)
    frames, sentence = drain(tmp_path / "both.h264")
    assert len(frames) == 10 and "changes from 96x64 to 128x96" in sentence


def assert_frames_or_a_report(data: bytes, name: str) -> None:
    """Check that any content gives frames of one size, then an end or a sentence, and no other exception."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        try:
            frames, sentence = drain(path)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert frames and len({frame.image.shape for frame in frames}) == 1
            first = frames[0].index  # more than 0 behind a damaged beginning
            assert [frame.index for frame in frames] == list(range(first, first + len(frames)))
            assert all(a.time < b.time for a, b in pairwise(frames))
            assert "\n" not in sentence


MAGIC = [
    b"",
    b"\0\0\0\x18ftypisom",
    b"\x1aE\xdf\xa3",
    b"RIFF\0\1\0\0AVI LIST",
    b"FLV\1\5",
    b"GIF89a",
    b"G",
    b"\0\0\1\xba",
]


@settings(max_examples=60, deadline=None)
@given(
    magic=st.sampled_from(MAGIC), rest=st.binary(max_size=600), name=st.sampled_from(["a.mp4", "a.mkv", "a", "a.png"])
)
def test_random_bytes_give_no_other_error_than_a_report(magic: bytes, rest: bytes, name: str) -> None:
    assert_frames_or_a_report(magic + rest, name)


@pytest.mark.parametrize("kind", ["mp4", "mp4-moov-last", "mkv", "avi", "ts"])
def test_random_truncations_and_flips_give_no_other_error_than_a_report(videos: dict[str, Path], kind: str) -> None:
    generator = random.Random(kind)
    data = videos[kind].read_bytes()
    for _ in range(12):
        damaged = bytearray(data[: generator.randrange(1, len(data))])
        for _ in range(generator.randrange(4)):
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        assert_frames_or_a_report(bytes(damaged), f"fuzz.{kind[:3]}")


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_every_cut_delivers_a_prefix_of_the_whole(tmp_path: Path, videos: dict[str, Path], kind: str) -> None:
    whole, _ = drain(videos[kind])
    data = videos[kind].read_bytes()
    for end in range(len(data) // 12, len(data), len(data) // 12):
        path = tmp_path / f"{end}.{kind}"
        path.write_bytes(data[:end])
        try:
            frames, sentence = drain(path)
        except InputError:
            continue
        assert is_prefix(frames, whole)
        assert sentence or len(frames) == FRAMES
