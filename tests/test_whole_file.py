"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corrflow.atomic_files import whole_file, write_whole


@pytest.mark.parametrize("content", [b"\x00\xff", "Größe\n"])
def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), whole_file(path) as part:
        part.write_bytes(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_what_cannot_be_renamed_is_removed(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "taken", b"content")
    assert os.listdir(tmp_path) == ["taken"]


def test_the_only_writer_writes_over_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with whole_file(path, only_writer=True) as part:
        part.write_bytes(b"")
    part.write_bytes(b"half of it")
    write_whole(path, b"all of it", only_writer=True)
    assert path.read_bytes() == b"all of it"
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_what_is_being_written_is_hidden_and_the_process_s_own(tmp_path: Path) -> None:
    with whole_file(tmp_path / "model.bin") as part:
        part.write_bytes(b"")
        assert part == tmp_path / f".model.bin.{os.getpid()}.part"
