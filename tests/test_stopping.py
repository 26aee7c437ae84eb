"""Signals end a command in time, with what was finished, whatever its main thread does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from helpers.paths import ROOT

pytestmark = pytest.mark.alone  # seconds count
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
HEAD = "import time, sys, signal\nfrom corrflow.errors import errors_reported\nfrom corrflow import stopping\n"
SLEEP = "with errors_reported():\n    print('ready', flush=True)\n    time.sleep(60)\n"
SWALLOWED = """
with errors_reported():
    print("ready", flush=True)
    for _ in range(600):
        try:
            time.sleep(0.1)
        except BaseException:
            pass
"""
LONG_CALL = """
import hashlib
with errors_reported():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
DEFERRED = """
with errors_reported(), stopping.stop_deferred():
    print("ready", flush=True)
    while not stopping.stop_requested():
        time.sleep(0.05)
    print("whole", flush=True)
"""
EXPECTED = DEFERRED.replace("stop_deferred()", "stop_deferred(expected=True)")
ANOTHER_ERROR = """
with errors_reported():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        raise OSError("the terminal is gone")
"""


def ended(program: str, *numbers: int, pause: float = 0.0) -> tuple[int, float, str, str]:
    """Run a program, send it signals once it prints a line; return exit code, seconds, output and error."""
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        begin = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            time.sleep(pause)
        output, error = process.communicate(timeout=30)
        return process.returncode, time.monotonic() - begin, output, error


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_ends_a_command_with_its_exit_code(number: int) -> None:
    code, seconds, _, error = ended(SLEEP, number)
    assert code == 128 + number and seconds < 2
    assert error == "interrupted: what was written so far is valid\n"


@pytest.mark.parametrize("program", [SWALLOWED, LONG_CALL], ids=["swallowed", "long call"])
def test_a_main_thread_that_does_not_hear_ends_within_two_seconds(program: str) -> None:
    code, seconds, *_ = ended(program, signal.SIGTERM)
    assert code == 143 and 1 < seconds < 2.5


def test_a_second_signal_ends_at_once_and_two_at_a_time_are_one() -> None:
    code, seconds, *_ = ended(SWALLOWED, signal.SIGINT, signal.SIGINT, pause=0.5)
    assert code == 130 and seconds < 1.5
    code, _, output, _ = ended(DEFERRED, signal.SIGHUP, signal.SIGTERM)
    # The system may deliver them to two threads, and so in either order.
    assert code in (129, 143) and output == "whole\n"


def test_a_block_that_holds_the_stop_back_ends_whole() -> None:
    assert ended(DEFERRED, signal.SIGTERM)[::2] == (143, "whole\n")
    assert ended(EXPECTED, signal.SIGTERM)[::2] == (0, "whole\n")


def test_a_signal_during_the_first_imports_is_no_traceback() -> None:
    program = """
        import importlib.abc
        from corrflow import entry_points
        class Slow(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "corrflow.runtime.commands.track_cli":
                    print("ready", flush=True)
                    time.sleep(60)
        sys.meta_path.insert(0, Slow())
        entry_points.track()
    """
    code, seconds, _, error = ended(textwrap.dedent(program), signal.SIGTERM)
    assert (code, error) == (143, "interrupted: what was written so far is valid\n") and seconds < 2


def test_an_error_that_follows_a_signal_is_no_traceback() -> None:
    code, _, _, error = ended(ANOTHER_ERROR, signal.SIGHUP)
    assert code == 129 and "Traceback" not in error


def test_what_nohup_ignores_stays_ignored() -> None:
    program = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLEEP
    code, seconds, *_ = ended(program, signal.SIGHUP, signal.SIGTERM, pause=0.7)
    assert code == 143 and seconds > 0.7


def test_files_are_finished_where_the_main_thread_does_not_hear(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        from pathlib import Path
        def finish():
            Path({str(tmp_path / "whole")!r}).write_text("whole")
        stopping.add_finisher(finish)
    """)
    assert ended(program + LONG_CALL, signal.SIGTERM)[0] == 143
    assert (tmp_path / "whole").read_text() == "whole"


def test_handlers_are_as_before_after_a_command() -> None:
    program = HEAD + "before = [signal.getsignal(n) for n in (2, 15, 1)]\nwith errors_reported():\n    pass\n"
    program += "print(before == [signal.getsignal(n) for n in (2, 15, 1)], signal.set_wakeup_fd(-1))\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stdout == "True -1\n", done.stderr


def test_worker_processes_end_with_the_command_and_print_nothing(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text("import time\ndef job(number):\n    time.sleep(60)\n")
    program = textwrap.dedent("""
        import os, threading
        from corrflow.evaluate import workers
        import jobs
        def tell():
            time.sleep(3)
            print(*(p.pid for p in __import__("multiprocessing").active_children()), flush=True)
        if __name__ == "__main__":
            threading.Thread(target=tell, daemon=True).start()
            with errors_reported():
                list(workers.run_jobs(jobs.job, [1, 2], 2, 0, False))
    """)
    path = tmp_path / "program.py"
    path.write_text(HEAD + program)
    with subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        children = [int(word) for word in process.stdout.readline().split()]
        begin = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - begin < 2 and len(children) == 2
    assert error == "interrupted: what was written so far is valid\n"
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_a_worker_that_dies_ends_the_others(tmp_path: Path) -> None:
    """The others ignore SIGTERM, and may wait for ever for a lock that died with the first."""
    begun = str(tmp_path / "begun")
    (tmp_path / "mortal_jobs.py").write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "def job(sleeps):\n"
        f"    flag = Path({begun!r})\n"
        "    if sleeps:\n"
        "        flag.touch()\n"
        "        time.sleep(600)\n"
        "    while not flag.exists():\n"
        "        time.sleep(0.01)\n"
        "    os._exit(11)\n"
    )
    path = tmp_path / "program.py"
    path.write_text(
        HEAD + "from corrflow.evaluate import workers\n"
        "import mortal_jobs\n"
        "if __name__ == '__main__':\n"
        "    with errors_reported():\n"
        "        list(workers.run_jobs(mortal_jobs.job, [True, False], 2, 0, False))\n"
    )
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "a worker process died" in done.stderr, done.stderr


def test_random_interrupts_of_track_and_batch_end_in_time_and_lose_nothing() -> None:
    """The long form, of 500 interrupts: python tests/helpers/interrupts.py --track 400 --batch 100 --load 1."""
    tool = ROOT / "tests" / "helpers" / "interrupts.py"
    done = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
