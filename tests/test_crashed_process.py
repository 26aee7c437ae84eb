"""A process of the tests that is killed costs neither the end of the run nor the reason."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT, TESTS

if sys.platform == "win32":
    pytest.skip("scripts/test needs a POSIX shell", allow_module_level=True)

FILE = """
import os, pathlib, signal, time
import pytest

@pytest.mark.parametrize("number", range(4))
def test_one(number):
    time.sleep(0.02)
    if {killed} and number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_ends_after_a_kill_and_says_what_was_killed(tmp_path: Path) -> None:
    """The kill comes late: pytest-xdist would then wait without end for tests that it gave to nobody."""
    for number in range(6):
        (tmp_path / f"test_{number}.py").write_text(FILE.format(killed=number == 4))
    (tmp_path / "conftest.py").write_text("from helpers.crashes import pytest_testnodedown\n")
    script = (ROOT / "scripts" / "test").read_text()
    found = re.search(r'^on_two=\(env .* "\$\{pytest\[@\]\}" (.*)\)$', script, re.M)
    assert found is not None
    options = [*shlex.split(found.group(1)), "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", "/dev/null", "-o", f"pythonpath={TESTS}", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ended by SIGKILL; largest process so far" in done.stdout
    assert "crashed while running 'test_4.py::test_one[1]'" in done.stdout
