"""scripts/on_device.sh runs all of its commands, and every command accepts its options."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer.main
from helpers.paths import ROOT

MODULES = ("bench.cli", "export.cli", "runtime.commands.track_cli", "runtime.commands.doctor_cli")

# Replacement of a Python interpreter with corrflow: logs its arguments, and fails for a given command.
FAKE_PYTHON = """#!{python}
import json, os, sys
if sys.argv[1] == "-c":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit(1 if {fails!r} and {fails!r} in sys.argv else 0)
"""


@pytest.mark.parametrize("fails", ["", "soak"], ids=["no failure", "one command fails"])
def test_every_command_of_the_script_exists(fails: str, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("needs Linux, as the script does")
    log, python, report = tmp_path / "log", tmp_path / "python", tmp_path / "report.txt"
    python.write_text(FAKE_PYTHON.format(python=sys.executable, log=str(log), fails=fails))
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "on_device.sh"), str(report)],
        env=os.environ | {"PYTHON": str(python), "SOAK": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
    written = report.read_text()
    assert written.rstrip().endswith(f"{1 if fails else 0} commands failed")
    commands = set()
    for words in map(json.loads, log.read_text().splitlines()):
        assert words[0] == "-m", words
        if words[1] == "pip":
            continue
        if words[1] == "pytest":
            collected = subprocess.run(
                [sys.executable, *words, "--collect-only"], cwd=ROOT, capture_output=True, text=True
            )
            assert collected.returncode == 0 and "test_engines_track_the_demo_clip" in collected.stdout
            commands.add(("pytest", ""))
            continue
        name = words[1].removeprefix("corrflow.")
        assert name in MODULES, words
        command = typer.main.get_command(importlib.import_module(words[1]).app)
        arguments = words[2:]
        if isinstance(command, click.Group) or hasattr(command, "commands"):
            commands.add((name, arguments[0]))
            command, arguments = command.commands[arguments[0]], arguments[1:]  # type: ignore[attr-defined]
        else:
            commands.add((name, ""))
        # Parse and convert the arguments as the command does, without running it; unknown options raise errors.
        command.make_context("-", list(arguments), resilient_parsing=False)
        assert " ".join(words) in written
    assert commands == {
        ("bench.cli", "kernel"), ("bench.cli", "track"), ("bench.cli", "soak"), ("export.cli", "engine"),
        ("runtime.commands.track_cli", ""), ("runtime.commands.doctor_cli", ""), ("pytest", ""),
    }  # fmt: skip


def test_the_script_without_corrflow_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "on_device.sh"), str(tmp_path / "report.txt")],
        env=os.environ | {"PYTHON": "false"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "error: expected corrflow to be installed for false" in done.stderr
