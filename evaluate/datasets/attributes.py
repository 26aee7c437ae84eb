"""Attributes of sequences such as occlusion or fast motion, from DAVIS's file or a user's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from corrflow.errors import InputError
from corrflow.file_budget import read_json, read_yaml

_MAX_BYTES = 16 << 20


def read_attributes(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the attributes of each sequence, by its name.

    path: JSON such as {"bear": ["DEF", "OCC"]}, or DAVIS's db_info.yaml, whose `sequences` have `name` and `attributes`

    Raises InputError for any other content.
    """
    expected = f'expected attributes as JSON {{"sequence": ["OCC"]}} or as DAVIS\'s db_info.yaml in {path}'
    try:
        content = read_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else read_json(path, limit=_MAX_BYTES)
    except OSError as error:
        raise InputError(f"{expected}, found no such text ({error})") from error
    # PyYAML's constructors meet damage with errors of many types.
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, yaml.YAMLError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{expected}, found a file that cannot be read ({reason})") from error
    if isinstance(content, dict) and isinstance(content.get("sequences"), list):
        entries: list[Any] = content["sequences"]
        if not all(isinstance(entry, dict) and "name" in entry for entry in entries):
            raise InputError(f"{expected}, found sequences without a name")
        content = {str(entry["name"]): entry.get("attributes", []) for entry in entries}
    if not isinstance(content, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in content.values()
    ):
        raise InputError(f"{expected}, found something else")
    return {str(sequence): tuple(names) for sequence, names in content.items()}
