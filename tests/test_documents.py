"""The documents are right: links lead somewhere, code parses or runs, commands have their options, figures agree."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
import typer.main
import yaml
from helpers.paths import ROOT

from corrflow.errors import InputError
from corrflow.runtime.commands.track_cli import with_default_address

if sys.version_info >= (3, 11):
    import tomllib
else:  # the standard library has it from 3.11 on
    tomllib = pytest.importorskip("tomli")

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "runtime/models").rglob("*.md")],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
COMMANDS = {
    "corrflow-train": "corrflow.train.cli",
    "corrflow-prepare": "corrflow.train.prepare_cli",
    "corrflow-export": "corrflow.export.cli",
    "corrflow-track": "corrflow.runtime.commands.track_cli",
    "corrflow-label": "corrflow.runtime.commands.label_cli",
    "corrflow-batch": "corrflow.runtime.commands.batch_cli",
    "corrflow-doctor": "corrflow.runtime.commands.doctor_cli",
    "corrflow-eval": "corrflow.evaluate.cli",
    "corrflow-bench": "corrflow.bench.cli",
}
LANGUAGES = {"", "bash", "python", "yaml", "json", "bibtex", "text"}


def identity(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Yield language and content of each code block, of indented blocks too."""
    text = path.read_text(encoding="utf-8")
    yield from re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.M | re.S)
    plain = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for block in re.findall(r"\n\n((?:    [^\s*-].*\n)+)", plain):
        yield "", re.sub(r"^    ", "", block, flags=re.M)


def command_lines(path: Path) -> list[tuple[str, bool]]:
    """Return the command lines of the code blocks, and corrflow's in the text; True for those of blocks."""
    text = "\n".join(block for language, block in code_blocks(path) if language in ("", "bash"))
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    inline = re.findall(r"`((?:corrflow-\w+|bash scripts/) [^`]+|bash scripts/[^`]+)`", " ".join(prose.split()))
    return [(line, line in lines) for line in [*lines, *inline] if line and not line.startswith("#")]


def check_command(words: list[str], complete: bool = True) -> None:
    """Parse a command line of corrflow as the command itself does; raise for what the command would refuse.

    complete: False where required arguments may be left out
    """
    name, *arguments = words
    app = typer.main.get_command(importlib.import_module(COMMANDS[Path(name).name]).app)
    if not complete or set(arguments) & {"...", "--help", "--version"}:  # at least the options exist
        known = {option for part in _parts(app, arguments) for parameter in part.params for option in parameter.opts}
        unknown = {one for one in arguments if one.startswith("--")} - known - {"--help"}
        assert not unknown, f"{words}: no option {unknown}"
        return
    if name == "corrflow-track":
        arguments = with_default_address(arguments)
    context = app.make_context(name, list(arguments))
    if commands := getattr(app, "commands", None):
        assert arguments[0] in commands, f"{words}: no command {arguments[0]!r}"
        commands[arguments[0]].make_context(arguments[0], arguments[1:], parent=context)


def _parts(app, arguments: list[str]) -> list:
    """Return the command and the subcommand that is named, or all where none is."""
    commands = getattr(app, "commands", {})
    return [app, *([commands[arguments[0]]] if arguments and arguments[0] in commands else commands.values())]


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the configuration file of the documents."""
    monkeypatch.chdir(tmp_path)
    for language, block in code_blocks(ROOT / "docs/howto/configuration.md"):
        if language == "yaml":
            (tmp_path / "batch.yaml").write_text(block)
    return tmp_path


@pytest.mark.parametrize("path", DOCUMENTS, ids=identity)
def test_every_command_of_a_document_is_accepted(path: Path, in_folder: Path) -> None:
    """Each command line is parsed by the command itself; scripts and modules exist; other programs are known."""
    for line, in_block in command_lines(path):
        for part in re.split(r"\s(?:\||&&|>>?)\s|;\s", line.replace("$(", "(")):
            words = shlex.split(part, comments=True)
            while words and (words[0] == "time" or re.match(r"[A-Z_]+=", words[0])):
                words = words[1:]
            if not words:
                continue
            try:
                at = next((i for i, word in enumerate(words) if Path(word).name in COMMANDS), None)
                if at is not None and words[0] not in ("pip",):
                    check_command(words[at:], in_block)
                elif "-m" in words and words[0] in ("python", "torchrun"):
                    module = words[words.index("-m") + 1]
                    assert importlib.util.find_spec(module) is not None, line
                    if module == "corrflow.train":
                        check_command(["corrflow-train", *words[words.index("-m") + 2 :]], in_block)
                elif words[0] in ("bash", "python") and len(words) > 1 and not words[1].startswith("-"):
                    script = ROOT / words[1]
                    assert script.is_file() or words[1].startswith(".venv"), f"{line}: no file {words[1]}"
            except (typer.Exit, SystemExit):
                continue
            except (InputError, AssertionError):
                raise
            except Exception as error:  # Click's errors, which have no common name in Typer
                pytest.fail(f"{line}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=identity)
def test_every_code_block_parses(path: Path) -> None:
    for language, block in code_blocks(path):
        assert language in LANGUAGES, f"{path.name}: a block of {language!r}, which no test parses"
        if language == "python":
            ast.parse(block)
        elif language == "yaml":
            yaml.safe_load(block)
        elif language == "json":
            json.loads(block)
        elif language == "bash":
            done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
            assert not done.returncode, f"{path.name}: {done.stderr}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=identity)
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    """Links to other hosts are not opened; the site's own check follows those of the built pages."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        name, _, heading = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name}: {link}"
        assert not heading or heading in headings(target), f"{path.name}: no heading {link}"


def headings(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and MkDocs name them."""
    found = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", one.lower()).strip()) for one in found}


def test_the_readme_is_short_and_has_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 700
    for heading, command in {"Try it": "bash scripts/demo", "Run the tests": "bash scripts/test"}.items():
        section = re.search(rf"^## {heading}$.*?^```bash\n(.*?)^```", text, re.M | re.S)
        assert section is not None and section[1].strip() == command


def test_figures_of_the_readme_are_those_of_the_results_and_of_the_model_cards() -> None:
    """Each row of the README's results stands in results.md and, where it names a model, in its card."""
    readme, results = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md"))
    section = re.search(r"^## Results$(.*?)^## ", readme, re.M | re.S)
    assert section is not None
    rows = re.findall(r"^\| `([\w-]+)`[^|]*\|(.*)\|$", section[1], re.M)
    assert len(rows) >= 2
    for model, cells in rows:
        scores = [cell.strip() for cell in cells.split("|") if re.fullmatch(r"\s*\d\d\.\d\s*", cell)]
        assert len(scores) == 4
        pattern = rf"^\| `{model}`[^|]*\|" + r"[^|]*\|".join(rf"\s*{re.escape(one)}\b" for one in scores)
        assert re.search(pattern, results, re.M), f"{model}: results.md has no row {scores}"
        card = (ROOT / "runtime/models" / model / "MODEL_CARD.md").read_text(encoding="utf-8")
        assert re.search(r"[^|]*\|".join(rf"\|?\s*{re.escape(one)}\b" for one in scores), card), f"{model}: {scores}"


def test_published_figures_of_the_readme_stand_in_the_results_with_a_source() -> None:
    readme, results = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md"))
    rows = re.findall(r"^\| (\w+)[^|]*\| (none|masks) \| (\d\d\.\d) \|$", readme, re.M)
    assert {name for name, _, _ in rows} >= {"ours", "HVC", "XMem"}
    for name, labels, score in rows:
        pattern = rf"^\| {name}\b[^|]*\|[^|]*\| {labels}[^|]*\| {re.escape(score)} \|[^|]*\| [^|]+ \|$"
        assert re.search(pattern, results, re.M), f"results.md has no row of {name} with {score} and its source"


def test_the_version_stands_in_one_place_and_its_copies_agree() -> None:
    """Files that other programs read need a copy of pyproject.toml's version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == project["version"]
    assert f"version = {{{project['version']}}}" in (ROOT / "docs/citing.md").read_text(encoding="utf-8")
    written = [*(ROOT / "src").rglob("*.py"), ROOT / "setup.py"]
    assert not [path for path in written if re.search(r"version__\s*=\s*[\"']", path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("module", COMMANDS.values(), ids=COMMANDS)
def test_every_command_prints_the_version(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    with pytest.raises((SystemExit, typer.Exit)):
        typer.main.get_command(importlib.import_module(module).app)(["--version"])
    assert capsys.readouterr().out.strip() == f"corrflow {version('corrflow')}"


def test_every_message_of_the_troubleshooting_page_exists() -> None:
    """Each quoted beginning is text of the code; "..." stands for a value."""
    sources = [path for room in ("src", "runtime", "plugins") for path in (ROOT / room).rglob("*.py")]
    code = "\n".join(re.sub(r"\"\s*\n\s*f?\"", "", path.read_text(encoding="utf-8")) for path in sources)
    code += "\n".join((ROOT / "scripts" / name).read_text() for name in ("environment", "system-packages"))
    code = re.sub(r"\{[^{}]*\}|\$\{[^}]*\}|\$\([^)]*\)", "\0", code)
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(messages) > 20
    for message in messages:
        parts = [re.sub(r"\d+", lambda digits: f"(?:{digits[0]}|\0)", re.escape(part)) for part in message.split("...")]
        assert re.search("\0".join(parts), code), message


def test_python_of_the_first_tutorial_and_of_the_readme_runs(
    in_folder: Path, moving_square: tuple[np.ndarray, np.ndarray]
) -> None:
    frames, masks = moving_square
    writer = cv2.VideoWriter("video.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 8, frames[0].shape[1::-1])
    for frame in frames[:3]:
        writer.write(frame)
    writer.release()
    cv2.imwrite("video_mask.png", masks[0].astype(np.uint8) * 255)
    for document in ("README.md", "docs/tutorials/first-video.md"):
        blocks = [block for language, block in code_blocks(ROOT / document) if language == "python"]
        assert len(blocks) == 1
        done = subprocess.run([sys.executable, "-c", blocks[0]], capture_output=True, text=True, check=True)
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["0", "1", "2"]


def test_the_batch_of_the_correcting_tutorial_reads_its_labels(
    in_folder: Path, moving_square: tuple[np.ndarray, np.ndarray]
) -> None:
    """The folders of the tutorial's cp command, with a short clip in place of the user's."""
    frames, masks = moving_square
    page = (ROOT / "docs/tutorials/correct-and-export.md").read_text(encoding="utf-8")
    copied = re.search(r"^cp \S+/(\d+)\.png (\S+)$", page, re.M)
    dry = re.search(r"^corrflow-batch (clip.mp4 .* --dry-run)$", page, re.M)
    assert copied is not None and dry is not None
    writer = cv2.VideoWriter("clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 8, frames[0].shape[1::-1])
    for index in range(int(copied[1]) + 1):
        writer.write(frames[index % len(frames)])
    writer.release()
    folder = in_folder / copied[2]
    folder.mkdir(parents=True)
    for number in ("00060", copied[1]):
        cv2.imwrite(str(folder / f"{number}.png"), masks[0].astype(np.uint8) * 255)
    command = [sys.executable, "-m", "corrflow.runtime.commands.batch_cli", *shlex.split(dry[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "60" in done.stdout + done.stderr and copied[1].lstrip("0") in done.stdout + done.stderr


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Pages, navigation, references and links of the site."""
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocstrings") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no mkdocs-material with mkdocstrings is installed")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "true"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    checked = subprocess.run(
        [sys.executable, "scripts/site/check_links.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert not checked.returncode, checked.stdout
