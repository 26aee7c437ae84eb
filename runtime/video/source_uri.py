"""Addresses of live sources: cameras, network streams, pipelines, the screen and standard input."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from corrflow.errors import InputError

Kind = Literal["camera", "pipeline", "network", "input", "screen"]

NETWORK_SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "rtp", "tcp", "srt", "rtmp")
RAW_FORMATS = {"bgr24": 3.0, "rgb24": 3.0, "gray": 1.0, "yuv420p": 1.5, "nv12": 1.5, "yuyv422": 2.0}
_MAX_SIDE = 8192
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(.*)", re.DOTALL)
_URL_IN_TEXT = re.compile(r"""([A-Za-z][A-Za-z0-9+.-]*://)([^\s"'<>]*)""")
_SECRET = re.compile(r"""(?i)\b([\w-]*(?:pw|pwd|pass\w*|token|secret|key|auth)\s*=\s*)("[^"]*"|'[^']*'|[^\s&"']+)""")


@dataclass(frozen=True)
class Address:
    """Live source.

    kind:   camera (V4L2 device or OpenCV's number), pipeline (GStreamer), network, input (standard input) or screen
    target: device, complete pipeline, or URL; "" for input and screen
    size:   requested (width, height); None for the source's default
    rate:   requested frames per second; 0 for the source's default
    pixels: FFmpeg's name of the raw pixel format on standard input; "" for an encoded stream
    """

    kind: Kind
    target: str
    size: tuple[int, int] | None = None
    rate: int = 0
    pixels: str = ""

    @property
    def name(self) -> str:
        """Short name for file names, without secrets of a URL."""
        if self.kind == "network":
            try:
                host = urlsplit(self.shown).hostname or ""
            except ValueError:
                host = ""
            return re.sub(r"[^\w.-]+", "-", host).strip(".-") or "stream"
        if self.kind == "camera":
            return "camera" + re.sub(r"\D", "", self.target)
        return {"pipeline": "pipeline", "input": "stdin", "screen": "screen"}[self.kind]

    @property
    def shown(self) -> str:
        """Target without its secrets, for messages."""
        url = _URL.fullmatch(self.target) if self.kind == "network" else None
        return (_public(url) if url else redacted(self.target)) or self.name


def redacted(text: str) -> str:
    """Return a text without the secrets of its URLs: user names, passwords, and the values of their queries.

    A password may contain any character, so in doubt more of an address is left out.
    """
    return _SECRET.sub(r"\1...", _URL_IN_TEXT.sub(_public, text))


def _public(url: re.Match[str]) -> str:
    """Return a URL of a scheme and the rest without its secrets."""
    scheme, rest = url.groups()
    begin = min((rest.find(mark) for mark in "?#" if mark in rest), default=len(rest))
    place, mark, query = rest[:begin].rpartition("@")[2], rest[begin : begin + 1], rest[begin + 1 :]
    if "@" in query:  # of a password with a question mark
        return f"{scheme}..."
    values = "&".join(f"{part.partition('=')[0]}=..." if "=" in part else "..." for part in query.split("&"))
    return f"{scheme}{place}{mark}{values if mark else ''}"


def live_address(text: str) -> Address | None:
    """Parse the address of a live source; return None for a file, a folder or a pattern.

    0, 1, ...:                          camera by number
    /dev/video0, v4l2:///dev/video0:    camera by device
    csi://0:                            CSI camera of a Jetson, through GStreamer
    rtsp://, http://, udp://, ...:      network stream
    screen:                             this machine's screen
    -:                                  standard input: MJPEG, MPEG-TS, ...; raw images with ?raw=bgr24&size=640x480
    "videotestsrc ! ...":               GStreamer pipeline; "! appsink" is added if missing

    `?size=1280x720&rate=30` after a camera requests a size and a frame rate. Raises InputError for an invalid address.
    """
    text = text.strip()
    if " ! " in text:
        return Address("pipeline", text if "appsink" in text else f"{text} ! {_APPSINK}")
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() in NETWORK_SCHEMES:
        try:
            host = urlsplit(text).netloc
        except ValueError:  # half an IPv6 address
            host = ""
        if not host:
            raise InputError(
                f"expected an address such as {scheme}://host:port/path, got {redacted(text)!r}; name the host"
            )
        return Address("network", text)
    body, _, query = text.partition("?")
    if re.fullmatch(r"[0-9]{1,3}", body) or re.fullmatch(r"/dev/video[0-9]+", body):
        return Address("camera", body, *_size_and_rate(text, query))
    if scheme.lower() == "v4l2" and separator:
        device = rest.partition("?")[0]
        device = device if device.startswith("/") else f"/dev/{device}"
        if not re.fullmatch(r"/dev/[\w/.-]+", device):
            raise InputError(f"expected a device such as v4l2:///dev/video0, got {text!r}; name one")
        return Address("camera", device, *_size_and_rate(text, query))
    if scheme.lower() == "csi" and separator:
        number = rest.partition("?")[0]
        if not re.fullmatch(r"[0-9]{1,2}", number):
            raise InputError(f"expected a CSI camera such as csi://0, got {text!r}; give its number")
        size, rate = _size_and_rate(text, query)
        return Address("pipeline", csi_pipeline(int(number), size or (1280, 720), rate or 30))
    if body == "screen":
        return Address("screen", "", None, _size_and_rate(text, query)[1])
    if body == "-":
        return _standard_input(text, query)
    if separator and re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme.lower()) and scheme.lower() != "file":
        raise InputError(
            f"expected a source that starts with v4l2, csi, {', '.join(NETWORK_SCHEMES)}, got {scheme!r}; use one of"
            " those"
        )
    return None


_APPSINK = "appsink drop=true max-buffers=1 sync=false"


def csi_pipeline(number: int, size: tuple[int, int], rate: int) -> str:
    """Return the GStreamer pipeline of a Jetson's CSI camera, with BGR frames of which only the newest is queued."""
    width, height = size
    return (
        f"nvarguscamerasrc sensor-id={number} ! video/x-raw(memory:NVMM), width={width}, height={height},"
        f" framerate={rate}/1 ! nvvidconv ! video/x-raw, format=BGRx ! videoconvert ! video/x-raw, format=BGR !"
        f" {_APPSINK}"
    )


def _standard_input(text: str, query: str) -> Address:
    raw = dict(parse_qsl(query)).get("raw", "")
    size, rate = _size_and_rate(text, query, ("raw",))
    if raw and raw not in RAW_FORMATS:
        raise InputError(f"expected raw images as {', '.join(RAW_FORMATS)}, got {raw!r}; convert them to one of those")
    if bool(raw) != bool(size):
        raise InputError(
            f"expected raw images with their size, such as '-?raw=bgr24&size=640x480', got {text!r}; give both, or"
            " '-' alone for an encoded stream"
        )
    return Address("input", "", size, rate, raw)


def _size_and_rate(text: str, query: str, others: tuple[str, ...] = ()) -> tuple[tuple[int, int] | None, int]:
    size, rate = None, 0
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "size" and (match := re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", value)):
            size = int(match[1]), int(match[2])
            if all(16 <= side <= _MAX_SIDE for side in size):
                continue
        elif name == "rate" and re.fullmatch(r"[0-9]{1,3}", value) and int(value):
            rate = int(value)
            continue
        elif name in others:
            continue
        raise InputError(
            f"expected size=WIDTHxHEIGHT (16 to {_MAX_SIDE}) or rate=FRAMES behind the ? of {text!r}, got"
            f" {name}={value}; correct it"
        )
    return size, rate
