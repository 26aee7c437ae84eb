"""Attributes of sequences such as occlusion or fast motion, from DAVIS's file or a user's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from corrflow.errors import InputError


def read_attributes(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the attributes of each sequence, by its name.

    path: JSON such as {"bear": ["DEF", "OCC"]}, or DAVIS's db_info.yaml, whose `sequences` have `name` and `attributes`

    Raises InputError for any other content.
    """
    expected = f'expected attributes as JSON {{"sequence": ["OCC"]}} or as DAVIS\'s db_info.yaml in {path}'
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{expected}, found no such text ({error})") from error
    try:
        content = _parse_yaml(text) if path.suffix.lower() in (".yaml", ".yml") else json.loads(text)
    except ValueError as error:
        raise InputError(f"{expected}, found a file that cannot be read ({str(error).splitlines()[0]})") from error
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


def _parse_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
