"""TODO."""

from __future__ import annotations

from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.artifacts.artifact import DESCRIPTION

BUNDLED = Path(__file__).parents[1] / "models"


def bundled_models() -> list[str]:
    """Names of the artifacts that come with the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if (folder / DESCRIPTION).is_file())


def bundled_artifact_path() -> Path:
    """The artifact that is used where none is named."""
    return BUNDLED / "quarter"


def artifact_path(named: Path | None) -> Path:
    """What a user named as artifact: a path, bundled:NAME for one that comes with the package, or nothing or "bundled".

    Raises InputError for a name that does not come with it.
    """
    if named is None or str(named) == "bundled":
        return bundled_artifact_path()
    family, _, name = str(named).partition(":")
    if family != "bundled":
        return named
    if name not in bundled_models():
        known = ", ".join(f"bundled:{each}" for each in bundled_models())
        raise InputError(f"expected an artifact among {known}, got {named}; choose one of those or give a path")
    return BUNDLED / name
