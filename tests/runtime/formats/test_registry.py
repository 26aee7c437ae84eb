"""One table of formats: every file is recognised, every format is listed, and any file prompts a tracker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from corrflow.errors import InputError
from corrflow.runtime.commands import batch_cli, track_cli
from corrflow.runtime.formats.annotations import Annotations, ReadContext
from corrflow.runtime.formats.registry import (
    FORMATS,
    READABLE,
    check_formats,
    file_content,
    open_sink,
    read_annotations,
)
from corrflow.runtime.live.outputs.destinations import LiveSource
from corrflow.runtime.tracking.results import prompt_result
from corrflow.runtime.types import Frame, KeypointsObject, MaskObject

SIZE = (66, 98)
READ = [name for name, one in FORMATS.items() if one.read is not None]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def context(frame: int | str = 0) -> ReadContext:
    return ReadContext("clip", frame, lambda: SIZE)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, moving_square) -> dict[str, Path]:
    """Write one file of every readable format, about a square mask and a point on frame 0, each called clip."""
    root = tmp_path_factory.mktemp("written")
    frame = Frame(moving_square[0][0], 0, 0.0, "00000")
    point = KeypointsObject(2, np.array([[30, 24]], np.float32), ("nose",), "animal")
    result = prompt_result(frame, SIZE, [MaskObject(1, moving_square[1][0], "square"), point])
    files = {}
    for name in READ:
        folder = root / name
        with open_sink(name, folder / FORMATS[name].result, LiveSource("clip")) as sink:
            sink.write(result)
        (path,) = [path for path in folder.rglob("*") if path.suffix in FORMATS[name].suffixes]
        files[name] = folder / f"clip{path.suffix}"
        shutil.copy(path, files[name])
    return files


@pytest.mark.parametrize("name", READ)
def test_a_file_is_recognised_by_its_suffix_and_content(name: str, written: dict[str, Path]) -> None:
    annotations = read_annotations(written[name], context())
    assert annotations.format == name
    assert any(annotations.content.frames.values())


@pytest.mark.parametrize("name", READ)
def test_a_file_is_recognised_with_a_suffix_in_capitals(name: str, written: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(written[name], tmp_path / written[name].name.upper()))
    assert read_annotations(path, context()).format == name


def test_every_sniffer_refuses_the_files_of_the_other_formats(written: dict[str, Path]) -> None:
    for name, one in FORMATS.items():
        for other, path in written.items():
            if one.sniff is not None and path.suffix in one.suffixes:
                assert one.sniff(file_content(path)) is (name == other), f"{name} on a file of {other}"


def test_formats_of_one_suffix_are_told_apart(written: dict[str, Path]) -> None:
    """All but the last format of a suffix have a sniffer, or a later one would never be reached."""
    for suffix in READABLE:
        *earlier, _ = [one for one in FORMATS.values() if suffix in one.suffixes]
        assert all(one.sniff is not None for one in earlier), suffix


@pytest.mark.parametrize("name", ["clip.docx", "clip", "clip.npz", ".json"])
def test_an_unknown_suffix_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("nothing")
    with pytest.raises(InputError, match="expected annotations in a file that ends in") as caught:
        read_annotations(tmp_path / name, context())
    assert "\n" not in str(caught.value) and all(suffix in str(caught.value) for suffix in READABLE)


@pytest.mark.parametrize("suffix", READABLE)
@pytest.mark.parametrize("content", [b"", b"nothing\n", b"\x00\xff\xfe"], ids=["empty", "text", "bytes"])
def test_a_file_of_no_format_is_one_sentence(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(content)
    try:
        annotations = Annotations.of([read_annotations(path, context())])
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert suffix == ".txt" and not annotations.objects, "an empty YOLO file means no object"


def test_help_texts_name_every_format() -> None:
    track, batch = (CliRunner().invoke(app, ["--help"]).output for app in (track_cli.app, batch_cli.app))
    for name, one in FORMATS.items():
        assert name in track and name in batch and one.title in batch, name
    assert all(suffix in track for suffix in READABLE)


def test_an_unknown_format_is_one_sentence() -> None:
    check_formats(list(FORMATS))
    with pytest.raises(InputError, match=r"expected --format among davis, .* got 'gif'"):
        check_formats(["davis", "gif"])


@pytest.fixture(scope="module")
def track(tmp_path_factory: pytest.TempPathFactory, moving_square, small_artifact: Path) -> Callable[..., list[dict]]:
    """Run corrflow-track on the moving square; returns the objects of every frame."""
    folder = tmp_path_factory.mktemp("clip") / "clip"
    folder.mkdir()
    for index, frame in enumerate(moving_square[0]):
        cv2.imwrite(str(folder / f"{index:05d}.png"), frame)

    def run(*prompts: object) -> list[dict]:
        words = [folder, *prompts, "--jsonl", folder.parent / "a.jsonl", "--model", small_artifact]
        done = CliRunner().invoke(track_cli.app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        lines = [json.loads(line) for line in (folder.parent / "a.jsonl").read_text().splitlines()]
        return [{**one, "id": 0, "name": ""} for line in lines for one in line["objects"] if one["visible"]]

    return run


@pytest.mark.parametrize("name", ["labelme", "coco", "cvat", "boxes", "yolo-seg"])
def test_any_format_of_masks_prompts_as_the_png_does(
    name: str, track: Callable[..., list[dict]], written: dict[str, Path]
) -> None:
    expected = track("--init", written["davis"])
    found = [one for one in track("--init", written[name]) if not one["points"]]
    assert found == expected and len(found) == 8


@pytest.mark.parametrize("name", ["labelme", "coco", "cvat", "sleap", "deeplabcut", "deeplabcut-h5", "csv"])
def test_any_format_of_points_prompts_as_the_csv_does(
    name: str, track: Callable[..., list[dict]], written: dict[str, Path]
) -> None:
    expected = [one for one in track("--keypoints", written["csv"]) if one["points"]]
    found = [one for one in track("--init", written[name]) if one["points"]]
    assert found == expected and len(found) == 8


def test_files_of_several_formats_prompt_together(track: Callable[..., list[dict]], written: dict[str, Path]) -> None:
    together = track("--init", written["boxes"], "--init", written["sleap"])
    assert together == [one for pair in zip(
        track("--init", written["davis"]), track("--init", written["sleap"]), strict=True
    ) for one in pair]  # fmt: skip


def test_annotations_of_other_frames_alone_are_one_sentence(
    track: Callable[..., list[dict]], written: dict[str, Path], tmp_path: Path
) -> None:
    later = tmp_path / "clip.csv"
    later.write_text(written["boxes"].read_text().replace("\n0,", "\n5,"))
    with pytest.raises(AssertionError, match=r"only labels of the first frame are prompts.*corrflow-batch"):
        track("--init", later)
