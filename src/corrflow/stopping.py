"""Orderly stop: SIGINT, SIGTERM and SIGHUP end a command within two seconds, and what was finished is kept.

The first signal raises `Stopped` in the main thread, or at the end of a block of `stop_deferred`. A library may hold
the main thread in a long call, or swallow the exception. A watchdog thread therefore finishes the files that are open
after GRACE_SECONDS, and ends the process after LIMIT_SECONDS. A second signal ends the process at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

GRACE_SECONDS = 0.8
LIMIT_SECONDS = 1.7

REPEAT_SECONDS = 0.3
"""Seconds within which a repeated signal counts as the first: shells, `timeout` and init systems send two at a time."""

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal asked this command to stop."""


@dataclass
class _State:
    """State of this process.

    number:   first signal; 0 before it
    at:       its time by time.monotonic()
    raised:   True once `Stopped` was raised, which happens once
    deferred: depth of the blocks that hold `Stopped` back
    sockets:  what the watchdog hears signals through; kept open until the process ends
    """

    number: int = 0
    at: float = 0.0
    raised: bool = False
    deferred: int = 0
    watching: bool = False
    sockets: tuple[socket.socket, ...] = ()

    def receive(self, number: int) -> None:
        if not self.number:
            self.at, self.number = time.monotonic(), number

    def raise_once(self) -> None:
        if self.number and not self.raised and not self.deferred:
            self.raised = True
            raise Stopped


_state = _State()
_finishers: list[Callable[[], None]] = []


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Catch signals while the context lasts, and after a signal until the process ends.

    A signal that is ignored stays ignored, as SIGHUP is under nohup. A nested context does nothing.
    """
    if _state.watching or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.watching, _state.deferred = True, _state.deferred + 1
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    _state.sockets = receiver, sender
    # None: a handler that Python did not install.
    caught = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    previous_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, lambda number, _: _on_signal(number)) for number in caught}
    watchdog = threading.Thread(target=_watch, args=(receiver,), name="corrflow-watchdog", daemon=True)
    watchdog.start()
    try:
        _state.deferred -= 1
        _state.raise_once()
        yield
    finally:
        _state.deferred += 1
        if not _state.number:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_fd)
            sender.send(b"\0")
            watchdog.join()
            receiver.close()
            sender.close()
            _state.watching = False
        _state.deferred -= 1


@contextmanager
def stop_deferred(expected: bool = False) -> Iterator[None]:
    """Hold `Stopped` back until the end of the block, which has to end soon after `stop_requested`.

    expected: True where a signal is the regular end, so that nothing is raised at the end either
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.deferred += 1
    try:
        yield
    finally:
        _state.deferred -= 1
        _state.raised |= bool(expected and _state.number)
    _state.raise_once()


def stop_requested() -> bool:
    """Return True once a signal has come. Any thread may ask."""
    return bool(_state.number)


def check_stop() -> None:
    """Raise `Stopped` in the main thread once a signal has come, also where a library swallowed the exception."""
    if _state.number and not _state.deferred:
        _state.raised = True
        raise Stopped


def stop_signal() -> int:
    """Return the number of the first signal; SIGINT without one."""
    return _state.number or int(signal.SIGINT)


def seconds_left() -> float | None:
    """Return the seconds until this process ends; None before a signal."""
    if not _state.number:
        return None
    return max(0.0, _state.at + LIMIT_SECONDS - 0.1 - time.monotonic())


def add_finisher(finish: Callable[[], None]) -> None:
    """Let a stop call `finish`, which finishes files; from any thread, perhaps several times."""
    _finishers.append(finish)


def remove_finisher(finish: Callable[[], None]) -> None:
    """Remove what `add_finisher` added, once its files are finished."""
    _finishers.remove(finish)


def finish_files() -> None:
    """Finish the files that are still open, and wait for that."""
    for finish in list(_finishers):
        with suppress(Exception):
            finish()


def stop_exit_code() -> int:
    """Return the exit code after a signal; further signals have no effect on what is left, which the watchdog ends."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS if _state.number else ():
            signal.signal(number, signal.SIG_IGN)  # Python's last steps would take the default action
    return 128 + (_state.number or int(signal.SIGINT))


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start child processes in this block: they never receive the signals, and their parent ends them by SIGKILL."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    with stop_deferred():
        resource_tracker.ensure_running()  # its start, with the first child, would admit signals again
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def shut_down_workers(executor: ProcessPoolExecutor, broken: bool = False) -> None:
    """End the processes of a pool after their jobs; after a signal, or if one has died, at once.

    broken: True after BrokenProcessPool. The others may then wait for ever for a lock that died with its process, and
            `end_with_parent` lets them ignore the SIGTERM that the pool sends them.
    """
    if broken or stop_requested():
        for process in list((executor._processes or {}).values()):
            process.kill()
    executor.shutdown(wait=not stop_requested(), cancel_futures=True)


def end_with_parent() -> None:
    """End this worker process when its parent is gone, however that ended, and not by a signal that the parent gets."""
    import multiprocessing.connection

    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="corrflow-watch", daemon=True).start()


@contextmanager
def signals_kept() -> Iterator[None]:
    """Restore the handlers of the signals after a block in which a library sets its own."""
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in previous.items():
                if handler is not None:
                    signal.signal(number, handler)


def _on_signal(number: int) -> None:
    _state.receive(number)
    _state.raise_once()


def _watch(receiver: socket.socket) -> None:
    """Wait for the first signal, whatever the main thread does, and end the process in time."""
    while (received := receiver.recv(1)[0]) not in _SIGNALS:
        if not received:
            return
    _state.receive(received)
    finishing = False
    while (elapsed := time.monotonic() - _state.at) < LIMIT_SECONDS:
        if elapsed > GRACE_SECONDS and not finishing:
            finishing = True
            threading.Thread(target=finish_files, name="corrflow-finisher", daemon=True).start()
        due = LIMIT_SECONDS if finishing else GRACE_SECONDS
        if select.select([receiver], [], [], max(0.01, due - elapsed))[0]:
            repeated = receiver.recv(1)[0] in _SIGNALS
            if repeated and time.monotonic() - _state.at > REPEAT_SECONDS:
                break
    _end_now()


def _end_now() -> None:
    """End this process and its workers without any further step."""
    with suppress(Exception):
        if (processes := sys.modules.get("multiprocessing.process")) is not None:
            for child in list(processes._children):
                child.kill()
    os._exit(128 + _state.number)
