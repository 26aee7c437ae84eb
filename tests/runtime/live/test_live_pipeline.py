"""GStreamer pipelines in a process of its own: for an OpenCV without GStreamer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from corrflow.errors import InputError
from corrflow.runtime.live.capture import readers
from corrflow.runtime.live.capture.readers import GST_LAUNCH, PipelineReader, ReaderFailed, open_reader
from corrflow.runtime.video.source_uri import Address, live_address

# Two frames of 32x16: a grey of 81, and red in BT.601.
FRAMES = """
import sys
sys.stdout.buffer.write(b"YUV4MPEG2 W32 H16 F30:1 Ip A1:1 C420\\n")
for planes in ((81, 128, 128), (81, 90, 240)):
    y, u, v = (bytes([value]) for value in planes)
    sys.stdout.buffer.write(b"FRAME\\n" + y * 512 + u * 128 + v * 128)
"""


@pytest.fixture(autouse=True)
def opencv_without_gstreamer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "opencv_has_gstreamer", lambda: False)


@pytest.fixture
def gst_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a program of this Python code in GStreamer's place; it writes its arguments to the path returned."""

    def install(code: str) -> Path:
        program, arguments = tmp_path / GST_LAUNCH, tmp_path / "arguments"
        head = (
            f"#!{shutil.which('python3')}\nimport sys\nopen({str(arguments)!r}, 'w').write('\\n'.join(sys.argv[1:]))\n"
        )
        program.write_text(head + code)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return arguments

    return install


def address_of(text: str) -> Address:
    address = live_address(text)
    assert address is not None
    return address


def test_frames_come_in_bgr_and_their_own_size(gst_launch: Callable[[str], Path]) -> None:
    arguments = gst_launch(FRAMES)
    reader = open_reader(address_of("videotestsrc ! video/x-raw, width=32 ! appsink drop=true max-buffers=1"), 5.0)
    assert isinstance(reader, PipelineReader)
    first, second = reader.read(), reader.read()
    assert first is not None and second is not None and first.shape == second.shape == (16, 32, 3)
    # 81 of 16..235 is 76 of 0..255; the second is pure red, which is the last channel.
    assert np.abs(first.astype(int) - 76).max() <= 1 and np.abs(second.astype(int) - [0, 0, 255]).max() <= 3
    with pytest.raises(ReaderFailed, match="it ended"):
        reader.read()
    reader.close()
    quiet, *elements = arguments.read_text().split("\n")
    pipeline = " ".join(elements)
    assert quiet == "-q" and pipeline.startswith("videotestsrc ! video/x-raw, width=32 ! queue leaky=downstream")
    assert "appsink" not in pipeline and "drop=true" not in pipeline and pipeline.endswith("fdsink fd=1 sync=false")


def test_a_csi_camera_needs_no_opencv_with_gstreamer(gst_launch: Callable[[str], Path]) -> None:
    arguments = gst_launch(FRAMES)
    reader = open_reader(address_of("csi://1?size=640x480&rate=60"), 5.0)
    assert reader.read() is not None
    reader.close()
    pipeline = arguments.read_text().replace("\n", " ")
    assert "nvarguscamerasrc sensor-id=1 !" in pipeline and "fdsink fd=1" in pipeline


def test_a_wrong_pipeline_is_refused_and_a_camera_that_fails_may_come_back(gst_launch: Callable[[str], Path]) -> None:
    complain = "sys.exit(sys.stderr.write({!r}) and 1)\n"
    gst_launch(complain.format('ERROR: pipeline could not be constructed: no element "nvarguscamerasrc"\n'))
    with pytest.raises(InputError, match='no element "nvarguscamerasrc"'):
        open_reader(address_of("csi://0"), 5.0)
    gst_launch(complain.format("ERROR: from element v4l2src0: Cannot identify device '/dev/video7'.\nAnd more\n"))
    with pytest.raises(ReaderFailed, match="Cannot identify device '/dev/video7'"):
        open_reader(address_of("v4l2src device=/dev/video7 ! videoconvert"), 5.0)


def test_a_silent_pipeline_ends_at_the_timeout_with_its_process(gst_launch: Callable[[str], Path]) -> None:
    gst_launch("import time\ntime.sleep(60)\n")
    begin = time.monotonic()
    with pytest.raises(ReaderFailed, match="delivers no frames"):
        open_reader(address_of("videotestsrc ! videoconvert"), 0.3)
    assert time.monotonic() - begin < 10
    # One that stops after two frames: reading ends as well, and closing ends the process.
    gst_launch(FRAMES + "sys.stdout.flush()\nimport time\ntime.sleep(60)\n")
    reader = open_reader(address_of("videotestsrc ! videoconvert"), 0.5)
    assert isinstance(reader, PipelineReader)
    with pytest.raises(ReaderFailed, match="cannot be read"):
        while True:
            reader.read()
    reader.close()
    assert reader._process.poll() is not None


def test_without_gstreamer_the_pipeline_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        InputError, match=r'for the pipeline "nvarguscamerasrc sensor-id=0 .*install gstreamer1.0-tools'
    ):
        open_reader(address_of("csi://0"), 1.0)


@pytest.mark.skipif(shutil.which(GST_LAUNCH) is None, reason="GStreamer's tools are not installed")
def test_a_real_pipeline_delivers_its_colours() -> None:
    reader = open_reader(address_of("videotestsrc pattern=red ! video/x-raw, width=320, height=240"), 10.0)
    image = reader.read()
    reader.close()
    assert image is not None and image.shape == (240, 320, 3)
    assert np.abs(image.astype(int) - [0, 0, 255]).max() <= 6
