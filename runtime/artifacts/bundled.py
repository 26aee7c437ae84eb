"""Bundled models: their names, and the path of any model."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.artifacts.artifact import DESCRIPTION

BUNDLED = Path(__file__).parents[1] / "models"
DEFAULT_MODEL = "quarter"


def bundled_models() -> list[str]:
    """Return the names of the models that come with the package, in alphabetical order."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if (folder / DESCRIPTION).is_file())


def resolve_model(model: str | PathLike[str] | None) -> Path:
    """Return the path of a model.

    model: name of a bundled model, path of an artifact folder or zip, or None for the default model. A bundled name
           wins over a folder of that name; write ./quarter for the folder.

    Raises InputError for a name that is neither a bundled model nor an existing path.
    """
    name = DEFAULT_MODEL if model is None else fspath(model)
    if name in bundled_models():
        return BUNDLED / name
    if not Path(name).exists():
        raise InputError(f"expected a model among {', '.join(bundled_models())}, or a path, got {name!r}; check it")
    return Path(name)
