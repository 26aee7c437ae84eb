"""Atomic files appear complete or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from corrflow.atomic_files import AtomicFile, check_writable, write_errors, write_file
from corrflow.errors import CorrflowError, InputError


@pytest.mark.parametrize("content", [b"\x00\xff", "Größe\n"])
def test_new_content_replaces_the_old(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "folder" / "report.json"
    write_file(path, b"old")
    write_file(str(path), content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(path.parent) == ["report.json"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), AtomicFile(path) as part:
        Path(part).write_bytes(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_part_that_cannot_be_renamed_is_removed(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(CorrflowError, match=r"to write '.*taken', got an error \(.*\); free some space"):
        write_file(tmp_path / "taken", b"content")
    assert os.listdir(tmp_path) == ["taken"]


KILLED = """
import os, signal, sys
from corrflow.atomic_files import AtomicFile
for path, folder in ((sys.argv[1], False), (sys.argv[1] + "-folder", True)):
    output = AtomicFile(path, folder)
    print(output.part, flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["kill", "wait"])
def test_the_parts_of_killed_runs_are_removed_and_those_of_others_at_work_stay(tmp_path: Path, how: str) -> None:
    path = tmp_path / "tracks.csv"
    arguments = [sys.executable, "-c", KILLED, str(path), how]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        parts = [other.stdout.readline().strip() for _ in range(2)]
        if how == "kill":
            other.wait()
        write_file(path, b"all of it")
        assert [os.path.exists(part) for part in parts] == [how == "wait"] * 2
        other.stdin.close()
    assert path.read_bytes() == b"all of it"


def test_two_writers_of_one_file_never_share_a_part(tmp_path: Path) -> None:
    first, second = (AtomicFile(tmp_path / ("n" * 250)) for _ in range(2))
    Path(first.part).write_bytes(b"first")
    Path(second.part).write_bytes(b"second")
    assert first.part != second.part and all(name.startswith(".nnn") for name in os.listdir(tmp_path))
    first.finish()
    second.finish()
    assert (tmp_path / ("n" * 250)).read_bytes() == b"second" and len(os.listdir(tmp_path)) == 1


def test_a_growing_file_appears_when_it_is_finished(tmp_path: Path) -> None:
    for keep in (False, True):
        output = AtomicFile(tmp_path / "tracks.csv")
        Path(output.part).write_bytes(b"rows")
        (name,) = os.listdir(tmp_path)
        assert name.startswith(".tracks.csv.") and name.endswith(".part")
        output.finish(keep)
        assert os.listdir(tmp_path) == ["tracks.csv"] * keep


def test_a_folder_replaces_the_earlier_one_as_a_whole(tmp_path: Path) -> None:
    for names in (("a.png", "b.png"), ("a.png",)):
        output = AtomicFile(tmp_path / "masks", folder=True)
        for name in names:
            Path(output.part, name).touch()
        output.finish()
        assert sorted(os.listdir(tmp_path / "masks")) == list(names) and os.listdir(tmp_path) == ["masks"]


def test_a_folder_comes_back_whose_run_was_killed_between_the_two_renames(tmp_path: Path) -> None:
    old = tmp_path / ".masks.0123456789abcdef.old"
    (old / "masks").mkdir(parents=True)
    (old / "masks" / "a.png").touch()
    write_file(tmp_path / "other.txt", "text")
    assert sorted(os.listdir(tmp_path)) == ["masks", "other.txt"] and os.listdir(tmp_path / "masks") == ["a.png"]


def test_an_unwritable_path_is_an_input_error_and_a_check_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "folder" / "masks.png")
    assert os.listdir(tmp_path / "folder") == []
    with pytest.raises(InputError, match=r"got an error .*; choose another place"):
        check_writable(tmp_path / "folder")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"got an error .*; choose another place"):
        check_writable(tmp_path / "file" / "masks.png")


def test_write_errors_name_the_path_and_leave_other_errors_alone(tmp_path: Path) -> None:
    with (
        pytest.raises(CorrflowError, match=r"to write '.*out.mp4', got an error \(KeyError\)"),
        write_errors(tmp_path / "out.mp4", KeyError),
    ):
        raise KeyError
    with pytest.raises(ValueError, match="not a write error"), write_errors(tmp_path):
        raise ValueError("not a write error")
