"""Connections of the page's server: their number, the time that they may be silent, and what is logged of them.

A limit on connections alone would let silent ones keep everybody else out. A new connection beyond the limit therefore
takes the place of the connection that has been silent longest.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Limit for a request to arrive, from the connection or from the last answer on."""

READ_SECONDS = 15.0
"""Limit for a client to read what waits for it."""

_SEND_BYTES = 2**18  # of the system's buffer, which otherwise grows to megabytes of frames that are out of date

BACKLOG = 32
"""Connections that are accepted at a time; they exceed the limit for a moment."""

_MAX_CONNECTIONS = 128
_DESCRIPTOR_SHARE = 4  # at most a quarter of the process's descriptors, which the camera and the outputs need too
_LOG_PERIOD, _LOG_RECORDS = 60.0, 5


def max_connections() -> int:
    """Return the limit on connections, which leaves most of this process's descriptors to the session."""
    limit = 1024
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(8, min(_MAX_CONNECTIONS, limit // _DESCRIPTOR_SHARE)) if limit > 0 else _MAX_CONNECTIONS


class BoundedConnection(H11Protocol):
    """HTTP/1.1 connection that is dropped when it is silent, or reads nothing, for too long."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._silent_since = 0.0

    @property
    def is_silent(self) -> bool:
        """True while no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, and drop the one that has been silent longest if there are too many."""
        super().connection_made(transport)
        with suppress(OSError):  # the client may have gone
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        self._expect_head()
        others = [one for one in self.connections if not one.transport.is_closing()]
        if len(others) > max_connections():
            silent = [one for one in others if isinstance(one, BoundedConnection) and one.is_silent]
            min(silent, key=lambda one: one._silent_since).transport.abort()  # at least this one is silent

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for timer in (self._head_timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._expect_head()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Give the client some time to read."""
        super().pause_writing()
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _expect_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._silent_since = self.loop.time()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._drop_silent)

    def _drop_silent(self) -> None:
        if self.is_silent:
            self.transport.abort()  # closing would wait for the client to read


class _BoundedRate(logging.Filter):
    """Filter that admits a few records in a period, one of them with its traceback, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self._begin, self._count = float("-inf"), 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for what is left out."""
        cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
        if cancelled or str(record.msg).startswith("Cancel "):  # connections that are cut at the end are no error
            return False
        now = time.monotonic()
        if now - self._begin > _LOG_PERIOD:
            left_out, self._begin, self._count = self._count - _LOG_RECORDS, now, 0
            if left_out > 0:
                record.msg, record.args = f"{record.getMessage()} ({left_out} messages before were left out)", ()
        elif record.exc_info and record.exc_info[1] is not None:
            record.msg, record.args = f"{record.getMessage()} ({record.exc_info[1]!r})"[:500], ()
            record.exc_info = record.exc_text = None
        self._count += 1
        return self._count <= _LOG_RECORDS


_rate = _BoundedRate()


def bound_log() -> None:
    """Bound the rate of messages of the server and of its event loop. Repeated calls do nothing more."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(_rate)
