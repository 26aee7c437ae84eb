"""Hostile files cost little: one sentence, less than a gigabyte and half a minute for a file under 10 MB."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import bombs

from corrflow.errors import InputError
from corrflow.file_budget import (
    FREE_MEMORY,
    MOST_MEMORY,
    BudgetExceeded,
    FileBudget,
    open_regular,
    parsed_json,
    parsed_yaml,
    read_bytes,
)

pytestmark = pytest.mark.faults


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limits of a process are Linux's")
@pytest.mark.parametrize("group", sorted(bombs.GROUPS))
def test_hostile_files_get_one_sentence_and_little_memory(group: str, tmp_path: Path) -> None:
    for name, one in bombs.outcomes(group, tmp_path).items():
        outcome = one["outcome"]
        assert "Traceback" not in outcome and "\n" not in outcome and len(outcome) < 2000, f"{name}: {outcome}"
        assert one["bytes"] < bombs.MOST_BYTES, f"{name}: {one['bytes'] >> 20} MB"
        assert one["seconds"] < bombs.MOST_SECONDS, f"{name}: {one['seconds']:.1f} s"


def test_a_budget_grows_with_the_file_up_to_a_cap() -> None:
    assert FileBudget("a", 0).memory == FileBudget("a", 10_000_000).memory == FREE_MEMORY < 1 << 30
    assert FileBudget("a", 50_000_000).memory == 3_200_000_000 and FileBudget("a", 1 << 40).memory == MOST_MEMORY


def test_a_budget_is_drawn_from_before_memory_is_taken() -> None:
    budget = FileBudget("labels.json")
    budget.take(FREE_MEMORY - 1, "masks")
    with pytest.raises(
        BudgetExceeded, match=r"expected at most 768 MB .* of labels.json, got a file whose rows need mo"
    ):
        budget.take(2, "rows")
    with pytest.raises(BudgetExceeded):
        FileBudget().take(float("nan"), "masks")
    budget = FileBudget("labels.json")
    budget.take(FREE_MEMORY, "masks")
    budget.give_back(100)
    budget.take(100, "masks")


def test_time_that_is_used_up_is_one_sentence() -> None:
    budget = FileBudget("labels.json")
    budget.take_time(19.0)
    with pytest.raises(BudgetExceeded, match=r"expected to read labels.json within 20 s, got a file that takes longer"):
        budget.take_time(2.0)


@pytest.mark.parametrize(("kind", "make"), [("pipe", os.mkfifo), ("folder", os.mkdir)], ids=["pipe", "folder"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str, make: object) -> None:
    make(tmp_path / "file")  # pyright: ignore[reportCallIssue]
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        with pytest.raises(InputError, match=f"expected a regular file at .*{name}, got a {kind}; copy"):
            open_regular(tmp_path / name)
    with pytest.raises(InputError, match="got a device"):
        open_regular(Path("/dev/zero"))


def test_a_large_file_is_not_read_as_a_whole(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="at most 1000 bytes"):
        read_bytes(tmp_path / "sparse", 1000)


@pytest.mark.parametrize("text", ["Infinity", "-Infinity", "NaN"])
def test_constants_are_no_json_where_it_is_strict(text: str) -> None:
    assert isinstance(parsed_json(text.encode(), FileBudget()), float)
    with pytest.raises(ValueError, match="no number of JSON"):
        parsed_json(text.encode(), FileBudget(), is_strict=True)


def test_yaml_of_plain_values_is_read_without_aliases() -> None:
    import yaml

    assert parsed_yaml("names: {0: cat, 1: dog}\nkpt_shape: [2, 3]\n", FileBudget()) == {
        "names": {0: "cat", 1: "dog"},
        "kpt_shape": [2, 3],
    }
    for text, reason in (("a: &x [1]\nb: *x\n", r"the alias \*x"), ("[" * 200, "more than 64 deep")):
        with pytest.raises(yaml.YAMLError, match=reason):
            parsed_yaml(text, FileBudget())
