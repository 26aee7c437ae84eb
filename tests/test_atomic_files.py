"""Atomic files appear complete or not at all."""

from __future__ import annotations

import os
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


def test_an_exclusive_writer_overwrites_the_part_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    Path(AtomicFile(path, exclusive=True).part).write_bytes(b"half of it")
    write_file(path, b"all of it", exclusive=True)
    assert path.read_bytes() == b"all of it"
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_the_part_is_hidden_and_the_process_s_own(tmp_path: Path) -> None:
    assert AtomicFile(tmp_path / "model.bin").part == str(tmp_path / f".model.bin.{os.getpid()}.part")


def test_a_growing_file_appears_when_it_is_finished(tmp_path: Path) -> None:
    for keep in (False, True):
        output = AtomicFile(tmp_path / "tracks.csv", exclusive=True)
        Path(output.part).write_bytes(b"rows")
        assert os.listdir(tmp_path) == [".tracks.csv.part"]
        output.finish(keep)
        assert os.listdir(tmp_path) == ["tracks.csv"] * keep


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
