"""Parts of the site that are no files of docs/: help texts, and documents from elsewhere in the repository."""

from __future__ import annotations

import importlib
import posixpath
import re
from pathlib import Path

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "runtime/models/quarter/MODEL_CARD.md": "models/quarter.md",
    "runtime/models/fast/MODEL_CARD.md": "models/fast.md",
    "runtime/models/fast-int8/MODEL_CARD.md": "models/fast-int8.md",
}
"""Documents of the repository that are pages, and their places on the site."""

COMMANDS = {
    "corrflow-track": "runtime.commands.track_cli",
    "corrflow-label": "runtime.commands.label_cli",
    "corrflow-batch": "runtime.commands.batch_cli",
    "corrflow-doctor": "runtime.commands.doctor_cli",
    "corrflow-train": "train.cli",
    "corrflow-prepare": "train.prepare_cli",
    "corrflow-export": "export.cli",
    "corrflow-eval": "evaluate.cli",
    "corrflow-bench": "bench.cli",
}

_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
_CODE = re.compile(r"^(```.*?^```)", re.M | re.S)


def command_reference() -> str:
    """Return the help texts of all commands as Markdown."""
    text = ""
    for name, module in COMMANDS.items():
        command = typer.main.get_command(importlib.import_module(f"corrflow.{module}").app)
        parts = [(name, command)]
        parts += [(f"{name} {part}", child) for part, child in getattr(command, "commands", {}).items()]
        for title, part in parts:
            context = part.context_class(part, info_name=title, max_content_width=100, terminal_width=100)
            text += f"\n{'###' if ' ' in title else '##'} {title}\n\n```text\n{part.get_help(context)}\n```\n"
    return text


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages of docs/ that the navigation lacks behind the others of its last tab, so that none is lost."""
    listed = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    docs = ROOT / "docs"
    found = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    if config.nav is not None:
        (pages,) = config.nav[-1].values()
        pages += [name for name in found if name not in listed]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere, and the files of the repository that documents link to."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for name in sorted(_linked_files()):
        files.append(File.generated(config, _place(name), abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files outside docs/ to their places on the site, and add the help texts to their page."""
    uri = page.file.src_uri
    source = next((name for name, place in PAGES.items() if place == uri), f"docs/{uri}")
    parts = _CODE.split(markdown)
    moved = "".join(part if part.startswith("```") else _with_places(part, source, uri) for part in parts)
    return moved + command_reference() if uri == "reference/command-line.md" else moved


def _with_places(markdown: str, source: str, uri: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        target = _resolved(match[2], source)
        if target is None:
            return match[0]
        return match[1] + posixpath.relpath(_place(target), posixpath.dirname(uri) or ".") + match[3]

    return _LINK.sub(replaced, markdown)


def _resolved(link: str, source: str) -> str | None:
    """Return a link's file, relative to the repository; None for one of another host or that does not exist."""
    if re.match(r"\w+:", link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return target if (ROOT / target).is_file() else None


def _place(name: str) -> str:
    """Return the place on the site of a file of the repository."""
    if name in PAGES:
        return PAGES[name]
    if name == "README.md":
        return "index.md"
    inside = name.startswith("docs/") and not name.startswith("docs/examples/")
    return name.removeprefix("docs/") if inside else f"files/{name}"


def _linked_files() -> set[str]:
    """Return the files outside docs/ that documents link to, and that are no pages."""
    found = set()
    for document in [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in PAGES)]:
        if document.is_file():
            source = document.relative_to(ROOT).as_posix()
            for link in _LINK.findall(_CODE.sub("", document.read_text(encoding="utf-8"))):
                if (name := _resolved(link[1], source)) and _place(name).startswith("files/"):
                    found.add(name)
    return found
