"""Projects of other tools: videos, labels and results where the tool keeps them."""

from __future__ import annotations

from pathlib import Path

from corrflow.runtime.batch.deeplabcut_project import find_deeplabcut_project
from corrflow.runtime.batch.image_projects import Project, find_image_project
from corrflow.runtime.batch.sleap_project import find_sleap_project

__all__ = ["Project", "find_project"]


def find_project(path: Path) -> Project | None:
    """Return the project at a path, or None for a path that is none. Raises InputError for a damaged one."""
    for find in (find_deeplabcut_project, find_sleap_project, find_image_project):
        if (project := find(path)) is not None:
            return project
    return None
