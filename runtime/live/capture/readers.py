"""Readers of one open camera or stream each. They may block and fail; `capture` handles both."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol

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
            require_gstreamer(address.target)
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


def require_gstreamer(pipeline: str) -> None:
    """Raise InputError with the pipeline in the message if this OpenCV has no GStreamer."""
    lines = (line.split(":", 1)[1] for line in cv2.getBuildInformation().splitlines() if "GStreamer:" in line)
    if not any("YES" in line for line in lines):
        raise InputError(
            f'expected an OpenCV with GStreamer for the pipeline "{redacted(pipeline)}", got one without; PyPI\'s'
            " opencv-python has none: uninstall it where the system brings an OpenCV of its own (JetPack does)"
        )


class StreamReader:
    """Network stream or standard input, through FFmpeg. Damaged frames are left out."""

    def __init__(self, address: Address, timeout: float) -> None:
        self._shown = address.shown
        # nobuffer drops the frames that the format was detected from: stale for a camera, needed from a pipe.
        nobuffer = "" if address.kind == "input" else "nobuffer+"
        options = {"fflags": f"{nobuffer}discardcorrupt", "flags": "low_delay"}
        form = None
        target: object = address.target
        if address.kind == "network" and address.target.startswith("rtsp"):
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
