"""Outputs stay apart from inputs, and only earlier results are replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from corrflow.errors import InputError
from corrflow.output_paths import (
    check_apart,
    check_beginning,
    check_folder_of,
    check_own_folder,
    file_sizes,
    is_within,
    record_path,
    unique_folder,
    unique_path,
    write_record,
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with frames/0.png, clip.mp4, a link and a hard link to it, and a link to the folder."""
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.png").write_bytes(b"image")
    (tmp_path / "clip.mp4").write_bytes(b"film")
    (tmp_path / "link.mp4").symlink_to("clip.mp4")
    os.link(tmp_path / "clip.mp4", tmp_path / "hard.mp4")
    (tmp_path / "linked").symlink_to("frames")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("read", "files", "folders", "trees"),
    [
        (["clip.mp4"], ["clip.mp4"], [], []),
        (["clip.mp4"], ["frames/../clip.mp4"], [], []),
        (["clip.mp4"], ["link.mp4"], [], []),
        (["clip.mp4"], ["hard.mp4"], [], []),
        (["link.mp4"], ["clip.mp4"], [], []),
        (["frames"], [], ["frames"], []),
        (["frames"], [], ["linked"], []),
        (["frames/*.png"], [], ["frames"], []),
        (["frames/*.png"], [], ["linked"], []),
        (["frames/*.png"], ["frames/0.png"], [], []),
        (["frames/0.png"], [], ["frames/../frames"], []),
        (["frames/0.png"], [], ["."], []),
        (["**/*.png"], [], ["frames/new"], []),
        ([], [], ["frames/new"], ["frames"]),
        ([], ["a.csv", "b/../a.csv"], [], []),
        ([], ["out/a.csv"], ["out"], []),
        ([], [], ["out", "out/masks"], []),
    ],
)
def test_an_output_that_meets_an_input_or_another_output_is_refused(
    place: Path, read: list[str], files: list[str], folders: list[str], trees: list[str]
) -> None:
    with pytest.raises(InputError, match=r"apart|outside"):
        check_apart(read, map(Path, files), map(Path, folders), map(Path, trees))


def test_outputs_beside_inputs_are_fine(place: Path) -> None:
    outputs = [Path("clip_tracked.mp4"), Path("frames/tracks.jsonl"), Path("new/../a.csv")]
    check_apart(["clip.mp4", "frames", "frames/*.png", None], outputs, [Path("masks"), Path("frames/masks")])


def test_a_place_that_does_not_exist_is_within_its_folder(place: Path) -> None:
    assert is_within("new/deep", "new") and is_within("linked/new", "frames") and is_within(".", place)
    assert not is_within("newer", "new")


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mask")


def test_only_a_folder_with_a_record_of_all_its_files_is_ours(tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    check_own_folder(folder)
    folder.mkdir()
    check_own_folder(folder)
    fill(folder, "0.png", "deep/1.png")
    with pytest.raises(InputError, match="new or empty folder"):
        check_own_folder(folder)
    write_record(folder, file_sizes(folder))
    check_own_folder(folder)
    (folder / ".DS_Store").touch()
    check_own_folder(folder)
    fill(folder, "notes.txt")
    with pytest.raises(InputError, match=r"notes.txt' beside them; move that away"):
        check_own_folder(folder)
    (folder / "notes.txt").unlink()
    later = record_path(folder).stat().st_mtime + 60
    os.utime(folder / "0.png", (later, later))
    with pytest.raises(InputError, match=r"0.png' changed since"):
        check_own_folder(folder)
    record_path(folder).write_text("{}")
    with pytest.raises(InputError, match="new or empty folder"):
        check_own_folder(folder)


def test_a_record_may_be_inside_and_a_file_is_no_folder(tmp_path: Path) -> None:
    fill(tmp_path / "clip", "0.png")
    record = tmp_path / "clip" / "item.json"
    record.write_text(json.dumps({"files": file_sizes(tmp_path / "clip")}))
    check_own_folder(tmp_path / "clip", record)
    with pytest.raises(InputError, match="got the file"):
        check_own_folder(record)


def test_a_folder_of_a_command_is_known_by_its_marks(tmp_path: Path) -> None:
    check_folder_of(tmp_path / "new", "plan.json")
    check_folder_of(tmp_path, "plan.json")
    fill(tmp_path, "thesis.tex")
    with pytest.raises(InputError, match=r"thesis.tex"):
        check_folder_of(tmp_path, "plan.json")
    fill(tmp_path, "plan.json")
    check_folder_of(tmp_path, "plan.json")
    with pytest.raises(InputError, match="got the file"):
        check_folder_of(tmp_path / "plan.json", "plan.json")


def test_a_file_is_replaced_by_one_of_its_kind_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    check_beginning(path, "--csv", b"frame,")
    for content, fine in (
        (b"", True),
        (b"frame,time\n", True),
        (b"\xef\xbb\xbfFrame,x\n", True),
        (b"name,x,y\n", False),
    ):
        path.write_bytes(content)
        if fine:
            check_beginning(path, "--csv", b"frame,")
        else:
            with pytest.raises(InputError, match="another file; name another, or remove it"):
                check_beginning(path, "--csv", b"frame,")


def test_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    assert [unique_path(tmp_path / "a.mp4").name for _ in range(3)] == ["a.mp4", "a-2.mp4", "a-3.mp4"]
    assert [unique_folder(tmp_path / "b").name for _ in range(2)] == ["b", "b-2"]
