"""scripts/on_device.sh goes through all of its commands, and every command has the options that it is given."""

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

ROOT = Path(__file__).parents[1]
MODULES = ("bench.cli", "export.cli", "runtime.cli", "runtime.doctor_cli")

# Answers as an interpreter with corrflow would, notes what it was asked to do, and fails where it is told to.
STAND_IN = """#!{python}
import json, os, sys
if sys.argv[1] == "-c":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit(1 if {fails!r} and {fails!r} in sys.argv else 0)
"""


@pytest.mark.parametrize("fails", ["", "soak"], ids=["all is well", "one command fails"])
def test_every_command_of_the_script_is_one_that_there_is(fails: str, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the script is for Linux")
    log, python, report = tmp_path / "log", tmp_path / "python", tmp_path / "report.txt"
    python.write_text(STAND_IN.format(python=sys.executable, log=str(log), fails=fails))
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "on_device.sh"), str(report)],
        env=os.environ | {"PYTHON": str(python), "SOAK": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
    told = report.read_text()
    assert told.rstrip().endswith(f"{1 if fails else 0} commands failed")
    seen = set()
    for words in map(json.loads, log.read_text().splitlines()):
        assert words[0] == "-m", words
        if words[1] == "pip":
            continue
        if words[1] == "pytest":
            collected = subprocess.run(
                [sys.executable, *words, "--collect-only"], cwd=ROOT, capture_output=True, text=True
            )
            assert collected.returncode == 0 and "test_engines_track_the_demos_clip" in collected.stdout
            seen.add(("pytest", ""))
            continue
        name = words[1].removeprefix("corrflow.")
        assert name in MODULES, words
        command = typer.main.get_command(importlib.import_module(words[1]).app)
        arguments = words[2:]
        if isinstance(command, click.Group) or hasattr(command, "commands"):
            seen.add((name, arguments[0]))
            command, arguments = command.commands[arguments[0]], arguments[1:]  # type: ignore[attr-defined]
        else:
            seen.add((name, ""))
        # Parses and converts everything as the command itself would, and runs nothing; raises for what it lacks.
        command.make_context("-", list(arguments), resilient_parsing=False)
        assert " ".join(words) in told
    assert seen == {
        ("bench.cli", "kernel"), ("bench.cli", "track"), ("bench.cli", "soak"), ("export.cli", "engine"),
        ("runtime.cli", ""), ("runtime.doctor_cli", ""), ("pytest", ""),
    }  # fmt: skip


def test_the_script_without_corrflow_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "on_device.sh"), str(tmp_path / "report.txt")],
        env=os.environ | {"PYTHON": "false"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "error: expected corrflow to be installed for false" in done.stderr
