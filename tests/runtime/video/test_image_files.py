"""Image files: stacks and animations are films, deep images keep the bits that they use, and bombs are refused."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from corrflow.errors import InputError, SourceEndedEarly
from corrflow.runtime.types import Frame
from corrflow.runtime.video.image_file import check_chunks
from corrflow.runtime.video.open_source import open_source

COUNT = 6


def picture(index: int) -> Image.Image:
    array = np.full((24, 32, 3), 40, np.uint8)
    array[4:12, 2 * index : 2 * index + 8] = (250, 30, 20 * index)
    return Image.fromarray(array)


def read(path: Path) -> tuple[list[Frame], list[str]]:
    with open_source(str(path)) as source:
        return list(source), source.notes


def write_stack(path: Path, grey: bool = False, **options: Any) -> Path:
    frames = [picture(index).convert("L" if grey else "RGB") for index in range(COUNT)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


KINDS: dict[str, dict[str, Any]] = {
    "a.tif": {},
    "lzw.tiff": {"compression": "tiff_lzw"},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "big.tif": {"big_tiff": True},
    "a.webp": {"lossless": True, "duration": [40, 40, 200, 40, 40, 40]},
    "a.png": {"duration": [40, 40, 200, 40, 40, 40]},
    "a.apng": {"duration": [40, 40, 200, 40, 40, 40]},
    "a.gif": {"duration": [40, 40, 200, 40, 40, 40]},
}


@pytest.mark.parametrize("name", KINDS)
def test_file_of_several_frames_is_a_film_with_its_own_times(tmp_path: Path, name: str) -> None:
    options = KINDS[name] | ({"format": "PNG"} if name.endswith("apng") else {})
    frames, notes = read(write_stack(tmp_path / name, False, **options))
    assert len(frames) == COUNT and notes == []
    for frame in frames:
        expected = np.asarray(picture(frame.index))[..., ::-1]
        assert np.abs(frame.image.astype(int) - expected).mean() < 2, "of 256 colours in a GIF"
    if "duration" in KINDS[name]:
        assert [frame.time for frame in frames] == pytest.approx([0, 0.04, 0.08, 0.28, 0.32, 0.36])
    else:
        assert [frame.time for frame in frames] == pytest.approx([index / 24 for index in range(COUNT)])


def test_avif_sequence_is_a_film(tmp_path: Path) -> None:
    pytest.importorskip("PIL._avif")
    frames, _ = read(write_stack(tmp_path / "a.avif", duration=40))
    assert len(frames) == COUNT and frames[3].time == pytest.approx(0.12)


def test_single_images_are_still_one_frame(tmp_path: Path) -> None:
    for suffix in ("tif", "webp", "png", "gif", "bmp", "jpg"):
        picture(1).save(tmp_path / f"a.{suffix}")
        assert len(read(tmp_path / f"a.{suffix}")[0]) == 1


@pytest.mark.parametrize("name", ["a.tif", "a.webp", "a.png"])
def test_files_of_several_frames_in_a_folder_are_told(tmp_path: Path, name: str) -> None:
    picture(0).save(tmp_path / "0.png")
    write_stack(tmp_path / name)
    write_stack(tmp_path / f"b{name}")
    frames, notes = read(tmp_path)
    assert len(frames) == 3
    assert len(notes) == 1 and name in notes[0] and "several frames" in notes[0]


@pytest.mark.parametrize(
    ("description", "step"),
    [
        ("ImageJ=1.53\nimages=6\nframes=6\nfinterval=0.5\n", 0.5),
        ("ImageJ=1.53\nimages=6\nslices=6\nfps=10\n", 0.1),
        ('<?xml version="1.0"?><OME><Pixels SizeC="1" SizeT="6" SizeZ="1" TimeIncrement="250.0"'
         ' TimeIncrementUnit="ms"/></OME>', 0.25),
    ],
    ids=["interval", "rate", "OME"],
)  # fmt: skip
def test_times_of_microscopes_are_kept(tmp_path: Path, description: str, step: float) -> None:
    frames, _ = read(write_stack(tmp_path / "a.tif", grey=True, description=description))
    assert [frame.time for frame in frames] == pytest.approx([step * index for index in range(COUNT)])


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("ImageJ=1.53\nimages=6\nchannels=2\nframes=3\n", "2 channels"),
        ("ImageJ=1.53\nimages=6\nslices=2\nframes=3\n", "2 slices"),
    ],
)
def test_stack_that_is_no_film_is_refused(tmp_path: Path, description: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_source(str(write_stack(tmp_path / "a.tif", grey=True, description=description)))


def test_stack_with_frames_behind_one_page_is_refused(tmp_path: Path) -> None:
    picture(0).convert("L").save(tmp_path / "a.tif", description="ImageJ=1.53\nimages=9000\nframes=9000\n")
    with pytest.raises(InputError, match="9000 frames behind a single page"):
        open_source(str(tmp_path / "a.tif"))


def test_thumbnails_among_the_pages_are_no_frames(tmp_path: Path) -> None:
    pages = [picture(0), picture(0).resize((8, 6)), picture(1)]
    pages[1].encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert len(read(tmp_path / "a.tif")[0]) == 2


def test_page_of_another_size_ends_the_stack(tmp_path: Path) -> None:
    pages = [picture(0), picture(1), picture(2).resize((8, 6))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with open_source(str(tmp_path / "a.tif")) as source, pytest.raises(SourceEndedEarly, match=r"2 of 3 frames.*8x6"):
        list(source)


def deep(index: int, bits: int, peak: float = 1.0) -> np.ndarray:
    ramp = np.linspace(0, 2**bits - 1, 24 * 32).reshape(24, 32)
    return np.roll(ramp * peak, index, 1).astype(np.uint16)


def write_deep(place: str, folder: Path, images: list[np.ndarray]) -> Path:
    if place == "stack":
        pages = [Image.fromarray(image) for image in images]
        pages[0].save(folder / "deep.tif", save_all=True, append_images=pages[1:])
        return folder / "deep.tif"
    if place == "video":
        with av.open(str(folder / "deep.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.height, stream.width, stream.pix_fmt = 24, 32, "gray16le"
            for image in images:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="gray16le")))
            container.mux(stream.encode(None))
        return folder / "deep.mkv"
    (folder / "deep").mkdir()
    for index, image in enumerate(images):
        colour = np.repeat(image[..., None], 3, 2) if place == "colour" else image
        assert cv2.imwrite(str(folder / "deep" / f"{index:03d}.{'png' if place != 'tif' else 'tif'}"), colour)
    return folder / "deep"


@pytest.mark.parametrize("place", ["png", "tif", "colour", "stack", "video"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_images_are_stretched_by_the_bits_that_they_use(tmp_path: Path, place: str, bits: int) -> None:
    frames, notes = read(write_deep(place, tmp_path, [deep(index, bits) for index in range(3)]))
    for frame in frames:
        expected = deep(frame.index, bits) * (255 / (2**bits - 1))
        assert np.abs(frame.image - expected[..., None]).max() <= 1
    assert len(notes) == 1 and f" {bits} are used" in notes[0]


@pytest.mark.parametrize("place", ["png", "tif", "stack"])
def test_images_from_all_over_a_source_decide_so_that_nothing_flickers(tmp_path: Path, place: str) -> None:
    images = [deep(0, 12, 0.05), *(deep(0, 12, 0.5) for _ in range(20)), *(deep(0, 12) for _ in range(20))]
    frames, notes = read(write_deep(place, tmp_path, images))
    assert len(notes) == 1
    assert frames[20].image.max() == pytest.approx(127, abs=2) and frames[-1].image.max() == 255


def test_video_that_exceeds_its_first_frames_is_widened_once_and_told(tmp_path: Path) -> None:
    frames, notes = read(write_deep("video", tmp_path, [*(deep(0, 10) for _ in range(3)), deep(0, 12), deep(0, 10)]))
    assert [frame.image.max() for frame in frames] == [255, 255, 255, 255, 64]
    assert len(notes) == 2 and "from frame 3 on 12 bits are used" in notes[1]


@pytest.mark.parametrize("name", ["stack", "folder"])
@pytest.mark.parametrize("kind", ["float32", "int32"])
def test_numbers_of_other_types_are_stretched_and_told(tmp_path: Path, name: str, kind: str) -> None:
    scale = (np.float32, -2.0, 6.0) if kind == "float32" else (np.int32, -500, 70_000)
    images = [np.linspace(scale[1], scale[2], 24 * 32).reshape(24, 32).astype(scale[0]) for _ in range(3)]
    pages = [Image.fromarray(image) for image in images]
    if name == "stack":
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    else:
        for index, page in enumerate(pages):
            page.save(tmp_path / f"{index}.tif")
    frames, notes = read(tmp_path if name == "folder" else tmp_path / "a.tif")
    assert len(frames) == 3 and len(notes) == 1 and kind in notes[0]
    assert frames[2].image.min() == 0 and frames[2].image.max() == 255


def test_deep_colour_stacks_are_read(tmp_path: Path) -> None:
    images = [np.repeat(deep(index, 12)[..., None], 3, 2) for index in range(20)]
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), images)
    frames, _ = read(tmp_path / "a.tif")
    assert len(frames) == 20
    assert np.abs(frames[17].image - deep(17, 12)[..., None] * (255 / 4095)).max() <= 1


def png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def bombs() -> dict[str, bytes]:
    side = 40_000
    animated_webp = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + 2 * (16383).to_bytes(3, "little")
    gif = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    gif += b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00;"
    entries = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, side), (279, 1000)]
    page = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    tiff = b"II*\0\x08\0\0\0" + page
    pages = tiff + struct.pack("<I", len(tiff) + 4) + page + bytes(4)
    png = png_bomb(10, 10)
    return {
        "a.png": png_bomb(side, side),
        "part.png": png[:33] + b"\xff" + png[34:],
        "a.webp": b"RIFF" + struct.pack("<I", 4 + len(animated_webp)) + b"WEBP" + animated_webp,
        "a.gif": gif,
        "a.tif": tiff + bytes(4),
        "stack.tif": pages,
        "a.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, side, side, 1, 24, 0, 0, 1, 1, 0, 0),
    }


@pytest.mark.parametrize("name", bombs())
def test_small_file_that_states_a_huge_frame_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bombs()[name])
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            open_source(str(tmp_path / name))
        assert "\n" not in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.tif", "a.webp", "a.png", "a.gif"])
def test_damaged_files_give_frames_or_one_sentence(tmp_path: Path, name: str) -> None:
    data = write_stack(tmp_path / name).read_bytes()
    generator = random.Random(name)
    for _ in range(40):
        damaged = bytearray(data[: generator.randrange(1, len(data) + 1)])
        for _ in range(generator.randrange(6)):
            damaged[generator.randrange(min(len(damaged), 400))] = generator.randrange(256)
        (tmp_path / f"x{name}").write_bytes(damaged)
        try:
            frames = [frame.image.shape for frame in open_source(str(tmp_path / f"x{name}"))]
            assert len(set(frames)) == 1
        except (InputError, SourceEndedEarly) as error:
            assert "\n" not in str(error)


@pytest.mark.faults
def test_a_png_whose_chunk_states_gigabytes_is_refused_before_opencv_takes_them() -> None:
    content = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    at = content.index(b"IDAT") - 4
    damaged = content[:at] + b"\xa7\x00\x00\x89" + content[at + 4 :]
    with pytest.raises(ValueError, match=rf"a part of its {len(damaged)} bytes states {0xA7000089}"):
        check_chunks(damaged)
    check_chunks(content[:-20])  # ends early
    check_chunks(content)
