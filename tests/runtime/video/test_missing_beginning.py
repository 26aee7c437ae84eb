"""Videos without a beginning: frames keep the numbers of the file, and no prompt moves to another frame."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import BlockingIOError, MemoryError
from PIL import Image
from typer.testing import CliRunner

import corrflow
from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.commands.batch_cli import app as batch_app
from corrflow.runtime.commands.track_cli import app
from corrflow.runtime.formats.registry import FORMATS
from corrflow.runtime.video.ffmpeg_files import shortage_reported
from corrflow.runtime.video.frame_reader import FrameReader
from corrflow.runtime.video.open_source import open_source

pytestmark = pytest.mark.faults

LOST = 3


@pytest.fixture
def clip(moving_square, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Folder with clip.avi of eight frames, whose first three cannot be decoded, and mask.png of frame 3."""
    monkeypatch.chdir(tmp_path)
    frames, masks = moving_square
    with av.open("sound.avi", "w") as container:
        stream = container.add_stream("mjpeg", rate=24)
        stream.height, stream.width, stream.pix_fmt = 66, 98, "yuvj420p"
        for frame in frames[:8]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode(None))
    data = bytearray(Path("sound.avi").read_bytes())
    with av.open("sound.avi") as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for packet in packets[:LOST]:
        at = data.find(packet)
        data[at : at + len(packet)] = bytes(len(packet))
    Path("clip.avi").write_bytes(data)
    Path("sound.avi").unlink()
    Image.fromarray(masks[LOST].astype(np.uint8)).save("mask.png")
    return "clip.avi"


def track(model: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["--model", str(model), *arguments, "--", "clip.avi"])
    return done.exit_code, done.output


def test_frames_have_the_numbers_and_times_of_the_file(clip: str) -> None:
    with open_source(clip) as source:
        frames = list(source)
    assert [frame.index for frame in frames] == [*range(LOST, 8)]
    assert [frame.name for frame in frames] == [f"{index:05d}" for index in range(LOST, 8)]
    assert [frame.time for frame in frames] == pytest.approx([index / 24 for index in range(LOST, 8)])
    assert source.notes == [
        "clip.avi: 3 frames at the beginning cannot be decoded, and the first that can is frame 3 of the file, "
        "counted from 0"
    ]


def test_a_mask_of_frame_0_is_refused_in_one_sentence(clip: str, small_artifact: Path) -> None:
    code, error = track(small_artifact, "--init", "mask.png", "--masks", "out")
    assert code == 2 and "error: expected the frame 0" in error and "--start 3" in error
    assert "3 frames at the beginning cannot be decoded" in error
    assert not Path("out").exists()
    with pytest.raises(InputError, match="--start 3"):
        next(corrflow.track(clip, masks="mask.png", model=small_artifact))


def test_tracking_starts_at_the_frame_that_the_user_names(clip: str, small_artifact: Path) -> None:
    code, error = track(small_artifact, "--init", "mask.png", "--masks", "out", "--jsonl", "out.jsonl", "--start", "3")
    assert code == 0, error
    assert sorted(os.listdir("out")) == [f"{index:05d}.png" for index in range(LOST, 8)]
    assert np.array_equal(np.array(Image.open("out/00003.png")), np.array(Image.open("mask.png")))
    assert [json.loads(line)["frame"] for line in Path("out.jsonl").read_text().splitlines()] == [*range(LOST, 8)]
    assert track(small_artifact, "--init", "mask.png", "--masks", "late", "--start", "5")[0] == 0
    assert sorted(os.listdir("late")) == ["00005.png", "00006.png", "00007.png"]
    code, error = track(small_artifact, "--init", "mask.png", "--masks", "past", "--start", "9")
    assert code == 2 and "frame 9" in error


def test_an_annotation_file_states_its_frame(clip: str, small_artifact: Path) -> None:
    assert track(small_artifact, "--init", "mask.png", "--start", "3", "--coco", "labels.json")[0] == 0
    code, error = track(small_artifact, "--init", "labels.json", "--masks", "again")
    assert code == 0 and len(os.listdir("again")) == 8 - LOST, error
    labels = json.loads(Path("labels.json").read_text())
    for image in labels["images"]:
        image["frame_index"] -= LOST
        image["file_name"] = f"{image['frame_index']:05d}.png"
    labels["images"] = labels["images"][:1]
    labels["annotations"] = labels["annotations"][:1]
    Path("first.json").write_text(json.dumps(labels))
    code, error = track(small_artifact, "--init", "first.json", "--masks", "shifted")
    assert code == 2 and "expected objects of frame 3" in error


def test_a_batch_uses_labels_by_the_numbers_of_the_file(clip: str, small_artifact: Path) -> None:
    Path("labels/clip").mkdir(parents=True)
    for index in (0, LOST + 2):
        Path(f"labels/clip/{index:05d}.png").write_bytes(Path("mask.png").read_bytes())
    formats = [word for name, entry in FORMATS.items() if entry.write for word in ("--format", name)]
    words = [clip, "--labels", "labels", "--out", "results", "--model", str(small_artifact), "--workers", "1", *formats]
    done = CliRunner().invoke(batch_app, words)
    assert done.exit_code == 0, done.output
    assert "frame 3 is the first of the video that can be decoded" in done.output
    assert sorted(os.listdir("results/clip/masks")) == [f"{index:05d}.png" for index in range(LOST, 8)]
    assert np.array_equal(np.array(Image.open("results/clip/masks/00005.png")), np.array(Image.open("mask.png")))


def test_the_label_page_begins_with_the_first_frame_that_can_be_decoded(clip: str) -> None:
    reader = FrameReader(clip)
    assert reader.read(0).index == LOST and reader.read(5).index == 5
    reader.close()


@pytest.mark.parametrize("kind", [MemoryError, builtins.MemoryError, BlockingIOError])
def test_a_lack_of_memory_is_no_damaged_picture(kind: type[Exception]) -> None:
    error = kind() if kind is builtins.MemoryError else kind(12, "no memory")
    message = r"expected enough (memory|threads) to decode clip\.avi"
    with pytest.raises(CorrflowError, match=message), shortage_reported(Path("clip.avi")):
        raise error


LIMITED = """
import resource, sys
from corrflow.errors import CorrflowError
from corrflow.runtime.video.open_source import open_source
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]), used + int(sys.argv[2])))
indices = []
try:
    with open_source(sys.argv[1]) as source:
        indices += [frame.index for frame in source]
except CorrflowError as error:
    print(error)
    sys.exit(3)
print(indices)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory")
@pytest.mark.parametrize("megabytes", [24, 48, 96])
def test_a_video_under_a_limit_of_memory_is_whole_or_an_error(tmp_path: Path, megabytes: int) -> None:
    path = tmp_path / "large.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 1080, 1920, "yuv420p"
        for index in range(12):
            image = np.full((1080, 1920, 3), 9 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    run = [sys.executable, "-c", LIMITED, str(path), str(megabytes << 20)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    if done.returncode == 3:
        assert "expected enough" in done.stdout
    else:
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str([*range(12)])
