"""The fused kernels read and write nothing that is not theirs, and agree with the definition while they are watched."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.paths import ROOT

pytestmark = pytest.mark.long

CASES = 60


def missing_tools(scratch: Path) -> str:
    """Why the sanitizers cannot be used here, or ""."""
    compiler = os.environ.get("CXX", "g++")
    if os.name != "posix" or shutil.which("bash") is None or shutil.which(compiler) is None:
        return f"no {compiler} here"
    program = scratch / "empty.cpp"
    program.write_text("int main() { return 0; }\n")
    command = [compiler, "-fsanitize=address,undefined", str(program), "-o", str(scratch / "empty")]
    built = subprocess.run(command, capture_output=True, text=True)
    ran = built.returncode == 0 and subprocess.run([str(scratch / "empty")], capture_output=True).returncode == 0
    return "" if ran else f"{compiler} has no sanitizers here"


def test_the_fused_kernels_are_clean_under_the_sanitizers(tmp_path: Path) -> None:
    if reason := missing_tools(tmp_path):
        pytest.skip(reason)
    command = ["bash", "scripts/sanitize", str(CASES), "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{CASES} cases on ")
