"""Footage that several tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.training import write_footage

from corrflow.train.data.clips import ClipCache, open_cache
from corrflow.train.data.frames import find_images


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create videos/ with two folders of twelve frames, and images/ with two images."""
    return write_footage(tmp_path_factory.mktemp("footage"), images=2)


@pytest.fixture(scope="module")
def images(footage: Path) -> ClipCache:
    """Return the cache of the images."""
    return open_cache(find_images(footage / "images"), 6.0, 64, footage / "cache")
