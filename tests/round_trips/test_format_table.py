"""The table in docs/formats.md says what writing and reading files has found out, and which tools have opened them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.format_table import TOOLS, table, tool_versions, written_table

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def without_versions(text: str) -> str:
    return re.sub(r"\b([a-z-]+) [0-9]+[0-9.]*", r"\1", text)


def test_the_table_is_what_the_formats_do() -> None:
    """python tests/helpers/format_table.py writes it anew."""
    named = {tool: "0" for tools in TOOLS.values() for tool in tools}
    assert without_versions(written_table()) == without_versions(table(named))


def test_the_versions_are_those_of_the_tools_here() -> None:
    versions = tool_versions()
    missing = [tool for tools in TOOLS.values() for tool in tools if tool not in versions]
    if missing:
        pytest.skip(f"{', '.join(dict.fromkeys(missing))} not installed; bash scripts/tools installs them")
    assert written_table() == table(versions)


def test_every_tool_has_a_test_that_opens_our_files() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    names = {"opencv-python": "cv2", "sleap-io": "sleap_io"}
    for tool in dict.fromkeys(tool for tools in TOOLS.values() for tool in tools):
        assert names.get(tool, tool) in tests, tool
