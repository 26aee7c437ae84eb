"""Ctrl-C at the worst moment ends reading ahead and writing behind at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import faulthandler, threading, time
from corrflow.runtime.formats.background_writer import write_behind
from corrflow.runtime.video.prefetch import read_ahead

armed, notify, put = False, threading.Condition.notify, None


def strike(self, n=1):  # between waking a thread and removing it from the list of those that wait
    global armed
    if armed and threading.current_thread() is threading.main_thread() and self._waiters:
        armed = False
        self._waiters[0].release()
        raise KeyboardInterrupt
    return notify(self, n)


threading.Condition.notify = strike
written = []


class Sink:
    def write(self, result):
        written.append(result)


faulthandler.dump_traceback_later(10, exit=True)
try:
    with write_behind([Sink()]) as write, read_ahead(iter(range(10**9))) as ahead:
        for number, frame in enumerate(ahead):
            armed = armed or number == 20
            write(frame)
            if number == 25:
                raise KeyboardInterrupt  # nothing waits on a Condition any more
except KeyboardInterrupt:
    print("ended", written == list(range(len(written))), len(written) >= 20)
"""


def test_an_interrupt_loses_no_wake_up_and_no_result(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.split() == ["ended", "True", "True"], done.stdout + done.stderr
