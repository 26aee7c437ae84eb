"""Results of corrflow-track replace earlier results as a whole, and never a user's files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from corrflow.runtime.commands.label_cli import app as label_app
from corrflow.runtime.commands.track_cli import app

Track = Callable[..., tuple[int, str]]


@pytest.fixture
def track(moving_square, small_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Track:
    """Run corrflow-track in a folder with cam1/clip.mkv of six frames, cam2/clip.mkv of three, frames/ and mask.png."""
    monkeypatch.chdir(tmp_path)
    frames, masks = moving_square
    for name, count in (("cam1", 6), ("cam2", 3)):
        Path(name).mkdir()
        with av.open(f"{name}/clip.mkv", "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.height, stream.width, stream.pix_fmt = 66, 98, "bgr0"
            for frame in frames[:count]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
            container.mux(stream.encode(None))
    Path("frames").mkdir()
    for index, frame in enumerate(frames[:3]):
        Image.fromarray(frame).save(f"frames/{index:05d}.png")
    Image.fromarray(masks[0].astype(np.uint8)).save("mask.png")
    Path("points.csv").write_text("name,x,y\nnose,30,24\n")

    def call(source: str, *arguments: str) -> tuple[int, str]:
        words = ["--model", str(small_artifact), "--", source]
        prompt = [] if {"--init", "--keypoints"} & set(arguments) else ["--init", "mask.png"]
        done = CliRunner().invoke(app, [*prompt, *arguments, *words])
        return done.exit_code, done.output

    return call


def count(path: str) -> int:
    with av.open(path) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_second_run_replaces_a_folder_as_a_whole(track: Track) -> None:
    for clip, amount in (("cam1/clip.mkv", 6), ("cam2/clip.mkv", 3)):
        for name in ("davis", "cutouts", "labelme"):
            assert track(clip, "--format", name, "--out", f"out-{name}")[0] == 0
        assert len(os.listdir("out-davis/masks")) == amount
        assert len(os.listdir("out-labelme/labelme")) == amount


@pytest.mark.parametrize("arguments", [("--masks", "mine"), ("--format", "davis", "--out", "mine")])
def test_a_folder_of_the_user_is_refused(track: Track, arguments: tuple[str, ...]) -> None:
    Path("mine/masks").mkdir(parents=True)
    for path in ("mine/notes.txt", "mine/masks/notes.txt"):
        Path(path).write_text("notes")
    code, error = track("cam1/clip.mkv", *arguments)
    assert code == 2 and "notes.txt" in error
    assert os.listdir("mine/masks") == ["notes.txt"]


def test_a_file_that_a_user_adds_to_results_is_kept(track: Track) -> None:
    assert track("cam1/clip.mkv", "--masks", "masks")[0] == 0
    Path("masks/notes.txt").write_text("notes")
    code, error = track("cam2/clip.mkv", "--masks", "masks")
    assert code == 2 and "notes.txt" in error and len(os.listdir("masks")) == 7


@pytest.mark.parametrize(
    "arguments",
    [
        ("--csv", "points.csv", "--keypoints", "points.csv"),
        ("--jsonl", "mask.png"),
        ("--masks", "."),
        ("--masks", "cam1"),
        ("--masks", "frames"),
        ("--save", "cam2/../cam1/clip.mkv"),
        ("--save", "cam2/clip.mkv"),
        ("--csv", "sheet.csv", "--keypoints", "points.csv"),
        ("--coco", "notes.txt"),
        ("--masks", "out", "--save", "out/a.mp4"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_file_of_the_user_is_replaced(track: Track, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    Path("sheet.csv").write_text("date,hours\n")
    Path("notes.txt").write_text("notes")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, error = track("cam1/clip.mkv", *arguments)
    assert code == 2 and error.startswith("error: expected") and error.count("\n") == 1, error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_named_files_of_an_earlier_run_are_replaced(track: Track) -> None:
    outputs = ("--save", "a.mp4", "--jsonl", "a.jsonl", "--coco", "a.json", "--csv", "a.csv")
    prompts = ("--init", "mask.png", "--keypoints", "points.csv")
    for clip, amount in (("cam1/clip.mkv", 6), ("cam2/clip.mkv", 3)):
        code, error = track(clip, *prompts, *outputs)
        assert code == 0, error
        assert count("a.mp4") == len(Path("a.jsonl").read_text().splitlines()) == amount


def test_two_sources_of_one_name_have_results_of_their_own(track: Track) -> None:
    for clip in ("cam1/clip.mkv", "cam2/clip.mkv"):
        assert track(clip)[0] == 0
        assert track(clip, "--format", "jsonl")[0] == 0
    assert (count("clip_tracked.mp4"), count("clip_tracked-2.mp4")) == (6, 3)
    lines = [len(Path(f"clip_results{number}/tracks.jsonl").read_text().splitlines()) for number in ("", "-2")]
    assert lines == [6, 3]


def test_a_refused_run_leaves_no_reserved_name(track: Track) -> None:
    Path("wrong.csv").write_text("name,x,y\nnose,999,24\n")
    assert track("cam1/clip.mkv", "--keypoints", "wrong.csv")[0] == 2
    assert track("cam1/clip.mkv", "--keypoints", "wrong.csv", "--format", "davis")[0] == 2
    assert not [name for name in os.listdir() if name.startswith("clip_")]


def test_names_with_colons_percent_signs_and_dashes_are_files(track: Track) -> None:
    os.rename("cam1/clip.mkv", "-a:b %05d.mkv")
    assert track("-a:b %05d.mkv", "--save", "c:d%d.mp4")[0] == 0
    assert track("-a:b %05d.mkv")[0] == 0
    assert (count(os.path.abspath("c:d%d.mp4")), count(os.path.abspath("-a:b %05d_tracked.mp4"))) == (6, 6)


def test_labels_are_not_saved_among_the_images(track: Track) -> None:
    done = CliRunner().invoke(label_app, ["frames", "--out", "frames", "--no-browser"])
    assert done.exit_code == 2 and "apart from the images" in done.output
