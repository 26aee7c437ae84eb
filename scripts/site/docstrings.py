"""Turn the fields of docstrings into Markdown lists; mkdocstrings loads this as an extension of Griffe."""

from __future__ import annotations

import re
from typing import Any

import griffe

_FIELD = re.compile(r"^( *)((?:[a-z_]\w*(?:, )?)+|(?:GET|POST|PATCH|DELETE)\s+/\S*):\s+(\S.*)$")


def markdown_of(text: str) -> str:
    """Return a docstring with each `name: description`, and the lines that continue it, as an item of a list."""
    lines: list[str] = []
    indent = None  # of the field that goes on
    for line in text.splitlines():
        if match := _FIELD.match(line):
            if indent is None and lines and lines[-1]:
                lines.append("")
            indent = len(match[1])
            lines.append(f"- `{' '.join(match[2].split())}`: {match[3]}")
        elif indent is not None and line.startswith(" " * (indent + 2)):
            lines[-1] += " " + line.strip()
        else:
            if indent is not None and line:
                lines.append("")
            indent = None
            lines.append(line)
    return "\n".join(lines)


class Fields(griffe.Extension):
    """Extension that rewrites every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = markdown_of(obj.docstring.value)
