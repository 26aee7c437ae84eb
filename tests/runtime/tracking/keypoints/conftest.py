"""The bundled small model, opened once for the tests that track a body."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.base import Backend
from corrflow.runtime.backends.registry import open_backend


@pytest.fixture(scope="session")
def fast_backend() -> Iterator[Backend]:
    opened = open_backend("auto", load_artifact(resolve_model("fast-int8")), threads=1)
    yield opened
    opened.close()
