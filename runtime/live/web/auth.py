"""Who may use the page: an address, a token for every address that others can reach, and a socket to listen on."""

from __future__ import annotations

import hmac
import re
import secrets
import socket
from dataclasses import dataclass
from importlib.util import find_spec

from corrflow.errors import InputError

DEFAULT_ADDRESS = "127.0.0.1:8080"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Access:
    """Where to listen, and the token that is asked for; empty where there is none, on this machine alone."""

    host: str
    port: int
    token: str = ""

    @property
    def url(self) -> str:
        """What to open in a browser, with the token in it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def admits(self, given: str) -> bool:
        """Whether this is the token; takes equally long for every wrong one."""
        return not self.token or hmac.compare_digest(self.token.encode(), given.encode())

    def listen(self) -> socket.socket:
        """A socket that listens here; raises InputError where the address is taken or not this machine's."""
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


def parse_access(text: str, token: str = "") -> Access:
    """HOST:PORT, HOST, :PORT or PORT, "[::1]:8080" for IPv6; the host is 127.0.0.1 and the port 8080 unless given.

    Any host but this machine's own gets a token, a new one where none is given. Raises InputError.
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
    return Access(host, int(digits or 8080), token or ("" if host in LOOPBACK else secrets.token_urlsafe(16)))


def check_server() -> None:
    """Raise InputError where the libraries of the page are not installed."""
    missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise InputError(f"expected {', '.join(missing)} for --serve, got none; pip install 'corrflow[live]'")
