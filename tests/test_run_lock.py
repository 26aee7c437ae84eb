"""The lock of a run: a second run is refused at once, and a lock ends with its process however it ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from corrflow.errors import InputError
from corrflow.run_lock import lock_run

HOLDER = (
    "import sys, time; from pathlib import Path; from corrflow.run_lock import lock_run\n"
    "with lock_run(Path(sys.argv[1])):\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


@pytest.mark.parametrize("suffix", ["", "-1-of-2"])
def test_a_lock_ends_with_its_process_however_it_ends(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f".lock{suffix}"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="for one run at a time, got another at work in it; wait for it"):
            lock_run(path)
        with lock_run(tmp_path / ".lock-other"):
            pass
        holder.kill()
        holder.wait()
    for _ in range(2):
        with lock_run(path):
            pass


def test_a_lock_ends_with_its_block_and_is_refused_to_threads(tmp_path: Path) -> None:
    refused = []

    def again() -> None:
        try:
            lock_run(tmp_path / ".lock")
        except InputError as error:
            refused.append(error)

    with pytest.raises(KeyError), lock_run(tmp_path / ".lock"):
        other = threading.Thread(target=again)
        other.start()
        other.join(10)
        raise KeyError
    assert len(refused) == 1
    with lock_run(tmp_path / ".lock"):
        pass
