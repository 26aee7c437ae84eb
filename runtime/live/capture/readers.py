"""Readers of one open camera or stream each. They may block and fail; `capture` handles both."""

from __future__ import annotations

import atexit
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import IO, NoReturn, Protocol

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND
from corrflow.runtime.video.source import FrameSource, reason_text
from corrflow.runtime.video.source_uri import Address, redacted

MAX_PIXELS = 8192 * 8192


class ReaderFailed(CorrflowError):
    """Camera or stream that cannot be opened or read now; a later attempt may succeed."""


class Reader(Protocol):
    """Open source, used by the thread that opened it."""

    def read(self) -> np.ndarray | None:
        """Return the next frame [H, W, 3] uint8, BGR; None at the regular end. Raises ReaderFailed."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


def open_reader(address: Address, timeout: float) -> Reader:
    """Open a live source; a driver without timeouts may block longer than `timeout` seconds.

    Raises ReaderFailed if a later attempt may succeed, otherwise InputError.
    """
    if address.kind == "pipeline" and not opencv_has_gstreamer():
        return PipelineReader(address, timeout)
    if address.kind in ("camera", "pipeline"):
        return OpenCvReader(address)
    return ScreenReader(address.rate or 15) if address.kind == "screen" else StreamReader(address, timeout)


class OpenCvReader:
    """Camera or GStreamer pipeline, through OpenCV."""

    def __init__(self, address: Address) -> None:
        if address.kind == "camera" and "OPENCV_LOG_LEVEL" not in os.environ:
            # OpenCV would log every driver that it tries without success.
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        if address.kind == "pipeline":
            self._capture = cv2.VideoCapture(address.target, cv2.CAP_GSTREAMER)
        elif address.target.isdigit():
            self._capture = cv2.VideoCapture(int(address.target))
        else:
            self._capture = cv2.VideoCapture(address.target, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise ReaderFailed(f"expected a camera at {address.shown}, got none that opens; is it plugged in and free?")
        if address.kind == "camera":
            # Drivers queue frames; after a pause an old frame would come first.
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            if address.size is not None:
                self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, address.size[0])
                self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, address.size[1])
            if address.rate:
                self._capture.set(cv2.CAP_PROP_FPS, address.rate)
        self._shown = address.shown

    def read(self) -> np.ndarray | None:
        try:
            good, image = self._capture.read()
        except cv2.error as error:
            raise ReaderFailed(f"{self._shown} cannot be read ({error.err})") from None
        if not good or image is None:
            raise ReaderFailed(f"{self._shown} stopped delivering frames")
        image = np.asarray(image, np.uint8)
        return image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)

    def close(self) -> None:
        self._capture.release()


def opencv_has_gstreamer() -> bool:
    """Return True where OpenCV was built with GStreamer: JetPack's is, PyPI's is not."""
    lines = (line.split(":", 1)[1] for line in cv2.getBuildInformation().splitlines() if "GStreamer:" in line)
    return any("YES" in line for line in lines)


class StreamReader:
    """Network stream, standard input or a pipe, through FFmpeg. Damaged frames are left out."""

    def __init__(self, address: Address, timeout: float, pipe: _Pipe | None = None) -> None:
        """Open a stream. pipe: in the YUV4MPEG format; None to open the address."""
        self._shown = address.shown
        # nobuffer drops the frames that the format was detected from: stale for a camera, needed from a pipe.
        nobuffer = "nobuffer+" if address.kind == "network" else ""
        options = {"fflags": f"{nobuffer}discardcorrupt", "flags": "low_delay"}
        form = None
        target: object = address.target
        if pipe is not None:
            target, form = pipe, "yuv4mpegpipe"
        elif address.kind == "network" and address.target.startswith("rtsp"):
            options["rtsp_transport"] = "tcp"  # over UDP a lost packet damages all frames until the next key frame
        elif address.kind == "input":
            # An unbuffered descriptor of its own: a blocked read would lock Python's stdin at exit.
            target = open(os.dup(0), "rb", buffering=0)  # noqa: SIM115  # the container closes it
            if address.pixels and address.size is not None:
                form = "rawvideo"
                options |= {"pixel_format": address.pixels, "video_size": f"{address.size[0]}x{address.size[1]}"}
        if address.kind in ("network", "input"):
            # Enough to detect the format; FFmpeg's default of five seconds would delay every frame.
            options |= {"probesize": "500000", "analyzeduration": "500000"}
        try:
            self._container: InputContainer = av.open(  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
                target,  # pyright: ignore[reportArgumentType]
                format=form,
                options=options,
                timeout=(timeout, timeout) if address.kind == "network" else None,
                metadata_errors="replace",
            )
        except (FFmpegError, OSError, ValueError) as error:
            if address.kind == "input":
                raise InputError(
                    f"expected video on standard input, got something else ({reason_text(error)}); send MJPEG, MPEG-TS"
                    " or Matroska, or name raw images as '-?raw=bgr24&size=640x480'"
                ) from None
            raise ReaderFailed(f"{self._shown} cannot be opened ({reason_text(error)})") from None
        if not self._container.streams.video:
            self._container.close()
            raise ReaderFailed(f"{self._shown} has no video in it")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is not None:
            self._stream.codec_context.thread_count = 1  # every frame thread would delay by one frame
        self._frames = self._decode()

    def read(self) -> np.ndarray | None:
        return next(self._frames, None)

    def close(self) -> None:
        self._frames.close()
        self._container.close()

    def _decode(self):
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (FFmpegError, OSError) as error:
                raise ReaderFailed(f"{self._shown} cannot be read ({reason_text(error)})") from None
            if packet is None or packet.size == 0:
                return
            if packet.is_corrupt:
                continue
            try:
                for frame in packet.decode():
                    if not frame.is_corrupt and 0 < frame.width * frame.height <= MAX_PIXELS:
                        yield np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
            except (FFmpegError, ValueError):
                continue  # a damaged packet; the next key frame is complete again


GST_LAUNCH = "gst-launch-1.0"

_APPSINK = re.compile(r"\bappsink\b(?:\s+[\w-]+\s*=\s*\S+)*")
"""Last element of a pipeline for OpenCV, with its properties."""

_TO_PIPE = (
    "queue leaky=downstream max-size-buffers=1 ! videoconvert ! video/x-raw,format=I420,colorimetry=bt601 ! y4menc !"
    " fdsink fd=1 sync=false"
)
"""Replacement of appsink: frames with their size, of which only the newest is queued. FFmpeg expects BT.601."""


class _Pipe:
    """Output of a process, unbuffered: read raises OSError where nothing comes for `timeout` seconds."""

    def __init__(self, output: IO[bytes], timeout: float) -> None:
        self._output, self._timeout = output, timeout

    def read(self, count: int) -> bytes:
        if not select.select([self._output], [], [], self._timeout)[0]:
            raise TimeoutError(f"nothing for {self._timeout:g} s")
        return self._output.read(count)


class PipelineReader:
    """GStreamer pipeline in a process of its own, for an OpenCV without GStreamer."""

    def __init__(self, address: Address, timeout: float) -> None:
        """Start the pipeline. Raises InputError where GStreamer or one of its elements is missing."""
        self._shown = address.shown
        program = shutil.which(GST_LAUNCH)
        if program is None:
            raise InputError(
                f'expected an OpenCV with GStreamer or {GST_LAUNCH} for the pipeline "{self._shown}", got neither;'
                " install gstreamer1.0-tools and gstreamer1.0-plugins-good"
            )
        try:
            elements = shlex.split(_APPSINK.sub(_TO_PIPE, address.target))
        except ValueError as error:
            raise InputError(f'expected a GStreamer pipeline, got "{self._shown}" ({error}); correct it') from None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [program, "-q", *elements],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
        )
        # A pipeline without frames would not notice that nobody reads them any more.
        atexit.register(self._process.kill)
        assert self._process.stdout is not None
        try:
            self._stream = StreamReader(address, timeout, _Pipe(self._process.stdout, timeout))
        except ReaderFailed as error:
            reason = self._reason() or str(error)
            self._end()
            self._raise_failed(reason)
        except BaseException:
            self._end()
            raise

    def read(self) -> np.ndarray | None:
        image = self._stream.read()
        if image is None:
            self._raise_failed(self._reason())
        return image

    def close(self) -> None:
        self._stream.close()
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        atexit.unregister(self._process.kill)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _reason(self) -> str:
        """Return what GStreamer said first, once it has ended; empty while it runs, and where it ended in silence."""
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return ""
        self._log.seek(0)
        text = self._log.read(4096).decode(errors="replace")
        lines = [line for line in text.splitlines() if line.startswith(("WARNING: ", "ERROR: "))]
        return redacted(lines[0].partition(": ")[2]) if lines else ""

    def _raise_failed(self, reason: str) -> NoReturn:
        if reason.startswith(("erroneous pipeline", "pipeline could not be constructed")):
            raise InputError(
                f'expected a GStreamer pipeline that runs on this machine, got "{self._shown}" ({reason}); correct it,'
                " or install the package with the missing element"
            ) from None
        raise ReaderFailed(f"{self._shown} delivers no frames ({reason or 'it ended'})") from None


class ScreenReader:
    """Capture of this machine's first screen, `rate` times a second.

    FFmpeg's own grabber crashes, because PyAV and OpenCV bring an X library each.
    """

    def __init__(self, rate: int) -> None:
        try:
            import mss
            from mss.exception import ScreenShotError
        except ImportError:
            raise InputError(
                "expected the package mss for the source screen, got none; pip install 'corrflow[screen]'"
            ) from None
        self._failure: type[Exception] = ScreenShotError
        try:
            self._screens = mss.MSS()
            self._monitor = self._screens.monitors[1]
        except (ScreenShotError, OSError, IndexError) as error:
            raise InputError(
                f"expected a screen to look at, got none ({error}); start it in a session with one"
            ) from None
        self._interval, self._due = 1 / rate, time.monotonic()

    def read(self) -> np.ndarray | None:
        now = time.monotonic()
        time.sleep(max(0.0, self._due - now))
        self._due = max(self._due, now) + self._interval
        try:
            image = self._screens.grab(self._monitor)
        except self._failure as error:
            raise ReaderFailed(f"the screen cannot be read ({error})") from None
        return np.ascontiguousarray(np.frombuffer(image.raw, np.uint8).reshape(image.height, image.width, 4)[..., :3])

    def close(self) -> None:
        self._screens.close()


class PacedReader:
    """File or folder, read at its own frame rate like a camera."""

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self._frames: Iterator = iter(source)
        self._interval = float(1 / (source.frames_per_second or Fraction(NOMINAL_FRAMES_PER_SECOND)))
        self._due = time.monotonic()

    def read(self) -> np.ndarray | None:
        frame = next(self._frames, None)
        if frame is None:
            return None
        now = time.monotonic()
        if self._due > now:
            time.sleep(self._due - now)
        # A late frame does not shorten the next intervals.
        self._due = max(self._due, now) + self._interval
        return frame.image

    def close(self) -> None:
        self._source.close()
