"""Access to the page: its address, its token, and the socket that listens."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from corrflow.errors import InputError

DEFAULT_ADDRESS = "127.0.0.1:8080"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ALL_ADDRESSES = ("0.0.0.0", "::")
_MAX_URLS = 4
_SIOCGIFADDR = 0x8915  # Linux: address of a network interface


@dataclass(frozen=True)
class Access:
    """Address to listen at, and the token that requests need; no token is needed if it is empty."""

    host: str
    port: int
    token: str = ""

    @property
    def urls(self) -> tuple[str, ...]:
        """Addresses for the browser, with the token; several where the page listens at all addresses."""
        hosts = _local_hosts() if self.host in _ALL_ADDRESSES else (self.host,)
        query = f"?token={self.token}" if self.token else ""
        return tuple(f"http://{f'[{host}]' if ':' in host else host}:{self.port}/{query}" for host in hosts)

    @property
    def cookie(self) -> str:
        """Name of the cookie with the token. Browsers share cookies between the ports of a host."""
        return f"corrflow_{hashlib.sha256(self.token.encode()).hexdigest()[:12]}"

    def admits(self, token: str) -> bool:
        """Compare a token in constant time."""
        return not self.token or hmac.compare_digest(self.token.encode(), token.encode())

    def listen(self) -> socket.socket:
        """Open the listening socket. Raises InputError if the address is taken or not of this machine."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(64)
        except OSError as error:
            listener.close()
            raise InputError(
                f"expected to listen on {self.host}:{self.port}, got an error ({error.strerror or error}); choose"
                " another port, or an address of this machine"
            ) from None
        return listener


def parse_access(text: str, token: str = "", always_token: bool = False) -> Access:
    """Parse HOST:PORT, HOST, :PORT or PORT, "[::1]:8080" for IPv6; the defaults are 127.0.0.1 and 8080.

    token:        8 or more letters; a new token is made if it is empty
    always_token: need a token at this machine's own addresses as well

    Raises InputError for any other text.
    """
    if ":" not in text.replace("::", "") and not text.isdigit():
        text += ":"  # a host alone
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]*):?(\d{0,5})", text) if not text.isdigit() else None
    host, digits = (match[1], match[2]) if match is not None else ("", text)
    if (match is None and not text.isdigit()) or int(digits or 8080) > 65535:
        raise InputError(f"expected --serve HOST:PORT, got {text!r}; write {DEFAULT_ADDRESS}, or 0.0.0.0:8080 for all")
    if token and not re.fullmatch(r"[A-Za-z0-9._~-]{8,200}", token):
        raise InputError(
            "expected a token of 8 to 200 letters, digits, or . _ ~ -, got another; leave it out to get a new one"
        )
    host = host.strip("[]") or "127.0.0.1"
    needs_token = always_token or host not in LOOPBACK
    return Access(host, int(digits or 8080), token or (secrets.token_urlsafe(16) if needs_token else ""))


def _local_hosts() -> tuple[str, ...]:
    """Return addresses at which other machines may reach this one, else its name."""
    hosts = []
    with suppress(ImportError, OSError, AttributeError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        import fcntl

        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(asker.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                hosts.append(socket.inet_ntoa(answer[20:24]))
    return tuple(host for host in hosts if not host.startswith("127."))[:_MAX_URLS] or (socket.gethostname(),)
