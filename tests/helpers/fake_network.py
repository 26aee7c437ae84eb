"""Receivers of network outputs: a UDP socket, and a broker for MQTT."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from threading import Event, Thread


@contextmanager
def receiver() -> Iterator[socket.socket]:
    """Open a UDP socket on a free port of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.settimeout(10)
        yield opened


class TinyBroker:
    """Broker with as much of MQTT 3.1.1 as one client that publishes needs.

    answer:   return code of CONNACK; None for no answer
    messages: (topic, payload) of every message
    """

    def __init__(self, answer: int | None = 0, reads: bool = True) -> None:
        self._answer, self._reads = answer, reads
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.messages: Queue[tuple[str, bytes]] = Queue()
        self.logins: Queue[bytes] = Queue()
        self._stop = Event()
        Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._stop.set()
        self._socket.close()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection, connection.makefile("rb") as stream:
            while not self._stop.is_set() and (head := stream.read(1)):
                length = shift = 0
                while True:
                    (byte,) = stream.read(1)
                    length, shift = length | (byte & 127) << shift, shift + 7
                    if byte < 128:
                        break
                body = stream.read(length)
                if head[0] >> 4 == 1:
                    self.logins.put(body)
                    if self._answer is not None:
                        connection.sendall(bytes([0x20, 2, 0, self._answer]))
                    if not self._reads:
                        self._stop.wait(30)
                elif head[0] >> 4 == 3:
                    (size,) = struct.unpack_from(">H", body)
                    self.messages.put((body[2 : 2 + size].decode(), body[2 + size :]))
