"""UDP output: one JSON line for each frame, as a datagram."""

from __future__ import annotations

import re
import socket

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.jsonl import frame_record, json_line
from corrflow.runtime.types import FrameResult

MAX_DATAGRAM = 65507
"""Bytes of a datagram. A longer line is sent without masks, and with `"masks": false`."""


def parse_udp(text: str) -> tuple[str, int]:
    """Parse HOST:PORT, or "[::1]:9000" for IPv6, to (host, port). Raises InputError."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", text.removeprefix("udp://"))
    if match is None or not 1 <= int(match[3]) <= 65535:
        raise InputError(f"expected --udp HOST:PORT, got {text!r}; write 127.0.0.1:9000, or [::1]:9000")
    return match[1] or match[2], int(match[3])


class UdpSink(Sink):
    """Sender of one datagram for each frame; a receiver that refuses a datagram is an error."""

    def __init__(self, host: str, port: int) -> None:
        """Open a socket. Raises CorrflowError for a host without an address."""
        self._shown = f"{host}:{port}"
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            self._socket.connect(address)  # only a connected socket reports a missing receiver
        except OSError as error:
            raise CorrflowError(f"expected an address for {self._shown}, got {error.strerror or error}") from None

    def write(self, result: FrameResult) -> None:
        data = json_line(frame_record(result))
        if len(data) > MAX_DATAGRAM:
            data = json_line(frame_record(result, masks=False) | {"masks": False})
        try:
            self._socket.send(data)
        except OSError as error:
            raise CorrflowError(f"{self._shown} cannot be sent to ({error.strerror or error})") from None

    def close(self) -> None:
        self._socket.close()
