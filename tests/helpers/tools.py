"""Other tools, each in an environment of its own: they are asked in their own Python what they load from our files."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import ROOT

TOOLS = ROOT / ".venv-test" / "tools"


def ask_tool(name: str, program: str, *arguments: object, seconds: float = 120) -> Any:
    """Run a Python program in a tool's environment, and return the JSON of its last line.

    program: has its arguments in sys.argv[1:]

    Skips the test where `bash scripts/tools` has not installed the tool.
    """
    python = TOOLS / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{name} is not installed; bash scripts/tools {name} installs it")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "QT_QPA_PLATFORM": "offscreen"}
    done = subprocess.run(
        [python, "-c", program, *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def tool_version(name: str, package: str | None = None) -> str:
    """Return the installed version of a tool. Skips the test without the tool."""
    program = "import importlib.metadata, json, sys; print(json.dumps(importlib.metadata.version(sys.argv[1])))"
    return ask_tool(name, program, package or name)


def has_tool(name: str) -> bool:
    """Return True if a tool is installed."""
    return Path(TOOLS / name / "bin" / "python").exists()
