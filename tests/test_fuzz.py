"""Damaged files: 300 for each reader. `bash scripts/fuzz` tries as many as one likes."""

from __future__ import annotations

import pytest
from helpers.fuzz import fuzzed_apart
from helpers.fuzz_readers import READERS

pytestmark = [pytest.mark.faults, pytest.mark.long]

FILES = 300
FEWEST = 0.005  # of the files still give a result: damage that all readers refuse at once would test little


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_give_a_result_or_one_sentence(reader: str) -> None:
    outcome = fuzzed_apart(reader, FILES, seed=0)
    assert not outcome.faults, "\n".join(outcome.faults)
    assert FEWEST < outcome.read / outcome.files < 1
