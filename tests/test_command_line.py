"""Options of a command from one dataclass: values, configuration files and errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import pytest
import typer

from corrflow.command_line import MAX_CONFIG_BYTES, with_options
from corrflow.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options:
    sources: Annotated[list[Path], typer.Argument(help="Videos.")]
    out: Annotated[Path, typer.Option(help="Folder.")]
    steps: Annotated[int | None, typer.Option(min=1, help="Length.")] = None
    learning_rate: Annotated[float, typer.Option(help="Rate.")] = 2e-4
    format: Annotated[list[str] | None, typer.Option(help="Formats.")] = None
    redetect: Annotated[bool, typer.Option("--redetect/--no-redetect", help="Find again.")] = True
    json_lines: Annotated[bool, typer.Option("--json", help="JSON.")] = False


Call = Callable[..., tuple[int, str, list[Options]]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run the command with a configuration file's text and arguments: exit code, output, received options."""

    def run(config: str | bytes | None, *arguments: str) -> tuple[int, str, list[Options]]:
        received: list[Options] = []
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

        @app.command(help="Collect options.")
        @with_options
        def collect(options: Options) -> None:
            received.append(options)
            if options.steps == 13:
                raise InputError("expected luck, got 13; choose another number")

        if config is not None:
            path = tmp_path / "run.yaml"
            path.write_bytes(config.encode() if isinstance(config, str) else config)
            arguments = ("--config", str(path), *arguments)
        with pytest.raises(SystemExit) as stopped:
            app(list(arguments))
        code = stopped.value.code
        output, error = capfd.readouterr()
        return (code if isinstance(code, int) else 0), output + error, received

    return run


def test_command_line_values_and_defaults_reach_the_dataclass(call: Call) -> None:
    assert call(None, "a.mp4", "b.mp4", "--out", "o", "--format", "coco", "--no-redetect") == (
        0, "", [Options(sources=[Path("a.mp4"), Path("b.mp4")], out=Path("o"), format=["coco"], redetect=False)]
    )  # fmt: skip


def test_a_missing_required_option_is_refused(call: Call) -> None:
    code, error, received = call(None, "a.mp4")
    assert (code, received) == (2, []) and "--out" in error


def test_a_config_file_sets_every_kind_of_option(call: Call) -> None:
    config = (
        "sources: [a.mp4]\nout: o\nsteps: 20\nlearning-rate: 1e-3\nformat: [coco, jsonl]\nredetect: no\njson: true\n"
    )
    expected = Options(
        sources=[Path("a.mp4")], out=Path("o"), steps=20, learning_rate=1e-3, format=["coco", "jsonl"],
        redetect=False, json_lines=True,
    )  # fmt: skip
    assert call(config) == (0, "", [expected])
    assert call(config.replace("learning-rate", "learning_rate")) == (0, "", [expected])


def test_the_command_line_overrides_the_config_file(call: Call) -> None:
    config = "sources: a.mp4\nout: o\nsteps: 20\nformat: coco\nredetect: false\n"
    code, error, received = call(config, "b.mp4", "--steps", "30", "--format", "jsonl", "--redetect")
    assert (code, error) == (0, "")
    assert received == [Options(sources=[Path("b.mp4")], out=Path("o"), steps=30, format=["jsonl"])]


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nout: [*b, *b]\n"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param("stesp: 1", "got 'stesp'; choose from format", id="unknown name"),
        pytest.param("config: other.yaml", "got 'config'", id="config within config"),
        pytest.param("version: true", "got 'version'", id="version"),
        pytest.param("steps: many", "valid value of 'steps'", id="text for a number"),
        pytest.param("steps: 1.5", "valid value of 'steps'", id="fraction for an integer"),
        pytest.param("steps: true", "valid value of 'steps'", id="boolean for a number"),
        pytest.param("steps: 0", "valid value of 'steps'", id="out of range"),
        pytest.param("redetect: 3", "valid value of 'redetect'", id="number for a switch"),
        pytest.param("steps: [1, 2]", "one value of 'steps'", id="list for a number"),
        pytest.param("steps: {a: 1}", "nested one for 'steps'", id="mapping for a number"),
        pytest.param("steps:", "no value", id="no value"),
        pytest.param("steps: 1\nsteps: 2", "'steps' twice", id="repeated name"),
        pytest.param("learning-rate: 1\nlearning_rate: 1", "twice", id="repeated name in two spellings"),
        pytest.param("[1]: 2", "nested", id="list as name"),
        pytest.param("- steps", "no mapping", id="list"),
        pytest.param("", "no mapping", id="empty"),
        pytest.param("steps: [", "no valid YAML", id="no YAML"),
        pytest.param("steps: 1\n---\nsteps: 2", "no valid YAML", id="two documents"),
        pytest.param(b"steps: \xff", "no valid YAML", id="no text"),
        pytest.param(BOMB, "nested", id="aliases of aliases"),
        pytest.param("out: &a [*a]", "nested", id="alias of itself"),
        pytest.param("out: " + "[" * 5000, "no valid YAML", id="deeply nested"),
        pytest.param("# " + "x" * MAX_CONFIG_BYTES, "more than 1,000,000 bytes", id="too large"),
        pytest.param("out: !!python/object/apply:os.system [touch x]", "one value of 'out'", id="tag"),
    ],
)
def test_a_wrong_config_file_is_one_sentence_and_exit_code_2(call: Call, config: str | bytes, message: str) -> None:
    code, error, received = call(config, "a.mp4", "--out", "o")
    assert (code, received) == (2, [])
    assert error.startswith("error: expected ") and error.count("\n") == 1 and message in error


def test_a_missing_config_file_is_one_sentence_and_exit_code_2(call: Call) -> None:
    code, error, received = call(None, "--config", "missing.yaml", "a.mp4", "--out", "o")
    assert (code, received) == (2, []) and error.startswith("error: expected a YAML file") and error.count("\n") == 1


def test_errors_of_the_body_are_reported_with_their_exit_code(call: Call) -> None:
    code, error, _ = call(None, "a.mp4", "--out", "o", "--steps", "13")
    assert (code, error) == (2, "error: expected luck, got 13; choose another number\n")


def test_version_is_printed_without_the_required_options(call: Call) -> None:
    assert call(None, "--version") == (0, f"corrflow {version('corrflow')}\n", [])


def test_yaml_is_imported_only_with_a_config_file() -> None:
    code = "import sys, corrflow.command_line, corrflow.train.cli; sys.exit('yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
