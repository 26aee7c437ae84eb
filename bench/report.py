"""Output of benchmarks: description of the machine, console, and JSON file."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from rich.console import Console

from corrflow.atomic_files import write_file
from corrflow.bench import machine
from corrflow.errors import InputError
from corrflow.output_paths import check_apart, check_beginning

TABLE_WIDTH = 110


def environment(threads: int) -> dict[str, Any]:
    """Return JSON-ready values on which the measurements depend, besides the code."""
    from corrflow.plugins.local_soft_copy import cpu

    versions = {}
    for package in ("corrflow", "numpy", "onnxruntime", "torch", "opencv-python", "av"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "processor": machine.processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "cores": cpu.available_threads(),
        "threads": threads,
        "load_before": machine.load(),
        "kernels": list(cpu.kernels()),
        "versions": versions,
    }


def wide_console() -> Console:
    """Return a console on standard output, at least TABLE_WIDTH wide so that tables are not cut."""
    console = Console()
    return console if console.width >= TABLE_WIDTH else Console(width=TABLE_WIDTH)


def check_output(path: Path | None, *inputs: str | Path | None) -> None:
    """Raise InputError if the JSON file cannot be written, or would replace another file, before a long measurement.

    inputs: what is read; None is left out
    """
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"expected --json to name a file in a folder that exists, got {path}; make the folder first")
    if path is not None:
        check_apart(inputs, [path])
        check_beginning(path, "--json", b"{")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically. Raises CorrflowError."""
    write_file(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
