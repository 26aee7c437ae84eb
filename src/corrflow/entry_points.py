"""Console commands. A signal stops each in order from its first import on, which takes longer than the start."""

from __future__ import annotations

from importlib import import_module

from corrflow.errors import errors_reported


def train() -> None:
    """Run corrflow-train."""
    _run("train.cli")


def prepare() -> None:
    """Run corrflow-prepare."""
    _run("train.prepare_cli")


def export() -> None:
    """Run corrflow-export."""
    _run("export.cli")


def track() -> None:
    """Run corrflow-track."""
    _run("runtime.commands.track_cli")


def label() -> None:
    """Run corrflow-label."""
    _run("runtime.commands.label_cli")


def doctor() -> None:
    """Run corrflow-doctor."""
    _run("runtime.commands.doctor_cli")


def batch() -> None:
    """Run corrflow-batch."""
    _run("runtime.commands.batch_cli")


def evaluate() -> None:
    """Run corrflow-eval."""
    _run("evaluate.cli")


def bench() -> None:
    """Run corrflow-bench."""
    _run("bench.cli")


def _run(module: str) -> None:
    with errors_reported():
        import_module(f"corrflow.{module}").main()
