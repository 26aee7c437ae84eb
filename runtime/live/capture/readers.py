"""Readers: one open camera or stream each. They may block and they may fail; `capture` sees to both."""

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
from corrflow.runtime.video.source import NOMINAL_FRAMES_PER_SECOND, FrameSource, reason_text
from corrflow.runtime.video.source_uri import Address

MOST_PIXELS = 8192 * 8192


class ReaderFailed(CorrflowError):
    """A camera or a stream cannot be opened or read any further; trying again may help."""


class Reader(Protocol):
    """An open source. Only the thread that opened it calls it."""

    def read(self) -> np.ndarray | None:
        """The next picture [H, W, 3] uint8, BGR; None at the regular end. Raises ReaderFailed."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


def open_reader(address: Address, timeout: float) -> Reader:
    """Open a live source; may block for longer than `timeout` seconds where a driver does not know of time.

    Raises ReaderFailed where trying again may help, InputError where it cannot.
    """
    if address.kind in ("camera", "pipeline"):
        return OpenCvReader(address)
    return ScreenReader(address.rate or 15) if address.kind == "screen" else StreamReader(address, timeout)


class OpenCvReader:
    """A camera or a GStreamer pipeline, through OpenCV."""

    def __init__(self, address: Address) -> None:
        if address.kind == "camera" and "OPENCV_LOG_LEVEL" not in os.environ:
            cv2.utils.logging.setLogLevel(
                cv2.utils.logging.LOG_LEVEL_SILENT
            )  # it tells at length of every driver that it tries in vain
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
            # Drivers queue frames; an old one would be shown first after every pause.
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
    """Raise InputError with the pipeline in it where this OpenCV has no GStreamer."""
    lines = (line.split(":", 1)[1] for line in cv2.getBuildInformation().splitlines() if "GStreamer:" in line)
    if not any("YES" in line for line in lines):
        raise InputError(
            f'expected an OpenCV with GStreamer for the pipeline "{pipeline}", got one without; PyPI\'s opencv-python'
            " has none: uninstall it where the system brings an OpenCV of its own (JetPack does)"
        )


class StreamReader:
    """Whatever FFmpeg opens: network streams and standard input. Damaged pictures are left out."""

    def __init__(self, address: Address, timeout: float) -> None:
        self._shown = address.shown
        # nobuffer throws away what was looked at to tell the format: old pictures of a camera, wanted ones of a pipe.
        nobuffer = "" if address.kind == "input" else "nobuffer+"
        options = {"fflags": f"{nobuffer}discardcorrupt", "flags": "low_delay"}
        form = None
        target: object = address.target
        if address.kind == "network" and address.target.startswith("rtsp"):
            options["rtsp_transport"] = "tcp"  # over UDP a lost packet smears the picture until the next key frame
        elif address.kind == "input":
            # A descriptor of our own without a buffer: Python's would be locked by a blocked read when it exits.
            target = open(os.dup(0), "rb", buffering=0)  # noqa: SIM115  # the container's until it is closed
            if address.pixels and address.size is not None:
                form = "rawvideo"
                options |= {"pixel_format": address.pixels, "video_size": f"{address.size[0]}x{address.size[1]}"}
        if address.kind in ("network", "input"):
            # Enough to tell the format; the rest of FFmpeg's default five seconds would be delay.
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
                    " or Matroska, or name raw pictures as '-?raw=bgr24&size=640x480'"
                ) from None
            raise ReaderFailed(f"{self._shown} cannot be opened ({reason_text(error)})") from None
        if not self._container.streams.video:
            self._container.close()
            raise ReaderFailed(f"{self._shown} has no video in it")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is not None:
            self._stream.codec_context.thread_count = 1  # threads of frames would each hold one back
        self._pictures = self._decode()

    def read(self) -> np.ndarray | None:
        return next(self._pictures, None)

    def close(self) -> None:
        self._pictures.close()
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
                for picture in packet.decode():
                    if not picture.is_corrupt and 0 < picture.width * picture.height <= MOST_PIXELS:
                        yield np.asarray(picture.to_ndarray(format="bgr24"), np.uint8)
            except (FFmpegError, ValueError):
                continue  # a damaged packet; the next key frame is whole again


class ScreenReader:
    """This machine's first screen, a given number of times a second.

    FFmpeg's own grabber is of no use here: PyAV and OpenCV bring an X library each, and it crashes between them.
    """

    def __init__(self, rate: int) -> None:
        try:
            import mss
            from mss.exception import ScreenShotError
        except ImportError:
            raise InputError(
                "expected the package mss for the source screen, got none; pip install 'corrflow[live]'"
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
            picture = self._screens.grab(self._monitor)
        except self._failure as error:
            raise ReaderFailed(f"the screen cannot be read ({error})") from None
        return np.ascontiguousarray(
            np.frombuffer(picture.raw, np.uint8).reshape(picture.height, picture.width, 4)[..., :3]
        )

    def close(self) -> None:
        self._screens.close()


class PacedReader:
    """A file or a folder played at its own pace, as if a camera filmed it."""

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
        # A late frame does not hurry the ones behind it.
        self._due = max(self._due, now) + self._interval
        return frame.image

    def close(self) -> None:
        self._source.close()
