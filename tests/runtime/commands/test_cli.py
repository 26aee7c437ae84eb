"""The commands write their outputs, and wrong input is one sentence with the right exit code."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import typer
from PIL import Image

from corrflow.evaluate.cli import app as evaluate
from corrflow.export.cli import app as export
from corrflow.runtime.commands.track_cli import app as track
from corrflow.train.cli import app as train

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(app: typer.Typer, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            app([str(argument) for argument in arguments])
        output, error = capfd.readouterr()
        code = stopped.value.code
        return (code if isinstance(code, int) else 0), output, error

    return call


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, moving_square) -> Path:
    """Write video.mkv and frames/ with the moving square, mask.png, points.csv, and damaged variants."""
    root = tmp_path_factory.mktemp("scene")
    frames, masks = moving_square
    (root / "frames").mkdir()
    for t, frame in enumerate(frames):
        cv2.imwrite(str(root / "frames" / f"frame{t}.png"), frame)
    with av.open(str(root / "video.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"g": "1", "crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 66, 98, "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode(None))
    content = (root / "video.mkv").read_bytes()
    (root / "cut.mkv").write_bytes(content[: int(len(content) * 0.6)])
    (root / "text.mp4").write_text("no video")
    Image.fromarray(masks[0].astype(np.uint8) * 255).save(root / "mask.png")
    Image.fromarray(masks[0][:60].astype(np.uint8)).save(root / "small.png")
    Image.fromarray(np.zeros((66, 98), np.uint8)).save(root / "empty.png")
    Image.fromarray(frames[0]).save(root / "photograph.png")
    (root / "points.csv").write_text("name,x,y\nleft,24,20\nright,36,30\n")
    (root / "outside.csv").write_text("name,x,y\nleft,240,20\n")
    (root / "words.csv").write_text("name,x,y\nleft,two,20\n")
    (root / "artifact").mkdir()
    (root / "artifact" / "artifact.json").write_text("{")
    (root / "checkpoint.safetensors").write_text("weights")
    return root


def test_a_video_is_tracked_into_every_output(run: Run, scene: Path, small_artifact: Path, tmp_path: Path) -> None:
    code, _, error = run(
        track, scene / "video.mkv", "--init", scene / "mask.png", "--keypoints", scene / "points.csv",
        "--save", "out.mp4", "--masks", "masks", "--csv", "points.csv", "--jsonl", "tracks.jsonl",
        "--model", small_artifact,
    )  # fmt: skip
    assert code == 0, error
    with av.open("out.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 8
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [f"{t:05d}.png" for t in range(8)]
    with Image.open(tmp_path / "masks" / "00007.png") as mask:
        assert mask.mode == "P" and set(np.unique(np.asarray(mask))) == {0, 1}
    with (tmp_path / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["point"] for row in rows[:2]] == ["left", "right"] and len(rows) == 16
    lines = [json.loads(line) for line in (tmp_path / "tracks.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(8))
    assert [entry["id"] for entry in lines[3]["objects"]] == [1, 2]


@pytest.mark.parametrize("source", ["frames", "frames/*.png"])
def test_folders_and_patterns_give_the_same_masks(run: Run, scene: Path, small_artifact: Path, source: str) -> None:
    code, _, error = run(
        track, scene / source, "--init", scene / "mask.png", "--masks", "masks", "--model", small_artifact
    )
    assert code == 0, error
    assert sorted(path.stem for path in Path("masks").iterdir()) == [f"frame{t}" for t in range(8)]


def test_without_outputs_a_video_is_written_beside(run: Run, scene: Path, small_artifact: Path) -> None:
    code, _, error = run(track, scene / "frames", "--init", scene / "mask.png", "--model", small_artifact)
    assert code == 0 and Path("frames_tracked.mp4").stat().st_size > 1000
    assert "wrote frames_tracked.mp4" in error


def test_what_was_tracked_of_a_cut_video_is_kept(run: Run, scene: Path, small_artifact: Path, tmp_path: Path) -> None:
    code, _, error = run(
        track, scene / "cut.mkv", "--init", scene / "mask.png", "--save", "out.mp4", "--masks", "masks",
        "--model", small_artifact,
    )  # fmt: skip
    assert code == 1 and "ends early" in error and "Traceback" not in error
    written = len(list((tmp_path / "masks").iterdir()))
    assert 0 < written < 8
    with av.open("out.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == written


WRONG = {
    "nothing": ((), "name a video"),
    "no objects": (("{scene}/frames",), "got neither; draw objects with corrflow-label"),
    "demo with source": (("{scene}/frames", "--demo"), "--demo alone"),
    "missing source": (("{scene}/none.mp4", "--init", "{scene}/mask.png"), "does not exist"),
    "text as video": (("{scene}/text.mp4", "--init", "{scene}/mask.png"), "text.mp4"),
    "missing mask": (("{scene}/frames", "--init", "{scene}/none.png"), "expected a mask at"),
    "mask of another size": (("{scene}/frames", "--init", "{scene}/small.png"), "98x66, got 98x60"),
    "empty mask": (("{scene}/frames", "--init", "{scene}/empty.png"), "found only background"),
    "photograph as mask": (("{scene}/frames", "--init", "{scene}/photograph.png"), "colours"),
    "text as mask": (("{scene}/frames", "--init", "{scene}/text.mp4"), "text.mp4"),
    "missing keypoints": (("{scene}/frames", "--keypoints", "{scene}/none.csv"), "does not exist"),
    "keypoints outside": (("{scene}/frames", "--keypoints", "{scene}/outside.csv"), "inside the frame"),
    "keypoints of words": (("{scene}/frames", "--keypoints", "{scene}/words.csv"), "left,two,20"),
    "csv without keypoints": (("{scene}/frames", "--init", "{scene}/mask.png", "--csv", "a.csv"), "--keypoints"),
    "unknown video suffix": (("{scene}/frames", "--init", "{scene}/mask.png", "--save", "a.gif"), ".mp4"),
    "unknown backend": (("{scene}/frames", "--init", "{scene}/mask.png", "--backend", "abacus"), "backend among"),
    "short side out of range": (("{scene}/frames", "--init", "{scene}/mask.png", "--short-side", "3"), "16 to 8192"),
    "memory frames out of range": (
        ("{scene}/frames", "--init", "{scene}/mask.png", "--memory-frames", "-1"),
        "recent frames",
    ),
    "threads out of range": (("{scene}/frames", "--init", "{scene}/mask.png", "--threads", "-1"), "0 uses every core"),
    "result over source": (("{scene}/video.mkv", "--init", "{scene}/mask.png", "--save", "{scene}/video.mkv"), "both"),
    "damaged model": (
        ("{scene}/frames", "--init", "{scene}/mask.png", "--model", "{scene}/artifact"),
        "artifact.json is damaged",
    ),
    "missing model": (("{scene}/frames", "--init", "{scene}/mask.png", "--model", "none"), "expected a model among"),
}


@pytest.mark.parametrize(("arguments", "reason"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_sentence_and_writes_nothing(
    run: Run, scene: Path, small_artifact: Path, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    filled = [argument.format(scene=scene) for argument in arguments]
    if "--model" not in filled and filled:
        filled += ["--model", str(small_artifact)]
    code, output, error = run(track, *filled)
    assert code == 2
    assert reason in error and error.startswith("error: ")
    assert error.strip().count("\n") == 0 and output == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_preset_is_one_sentence(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "videos"
    data.mkdir()
    code, _, error = run(train, "--data", data, "--out", "run", "--preset", "huge", "--steps", "1")
    assert code == 2 and "expected a preset among full, half, quarter, paper, colorization, got 'huge'" in error
    code, _, error = run(train, "--data", tmp_path / "none", "--out", "run", "--steps", "1")
    assert code == 2 and "expected a folder of videos" in error
    code, _, error = run(train, "--data", data, "--out", "run")
    assert code == 2 and "either --minutes or --steps" in error
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("none", "a"), "expected a checkpoint at none"),
        (("{scene}/checkpoint.safetensors", "a"), "damaged or not a corrflow checkpoint"),
        (("random-init:huge", "a"), "expected a preset"),
        (("random-init:quarter:x", "a"), "expected random-init:PRESET or random-init:PRESET:SEED"),
        (("random-init:quarter", "a", "--size", "480"), "height x width"),
        (("random-init:quarter", "a", "--temperature", "0"), "temperature > 0"),
        (("random-init:quarter", "{scene}/mask.png"), "got the file"),
    ],
    ids=["missing run", "damaged checkpoint", "unknown preset", "no seed", "size", "temperature", "file as folder"],
)
def test_a_wrong_export_is_one_sentence(run: Run, scene: Path, arguments: tuple[str, ...], reason: str) -> None:
    code, _, error = run(export, "onnx", *(argument.format(scene=scene) for argument in arguments))
    assert code == 2 and reason in error and "Traceback" not in error
    assert not Path("a").exists()


def test_a_wrong_data_set_is_one_sentence(run: Run, tmp_path: Path) -> None:
    code, _, error = run(evaluate, "davis", tmp_path / "none", "--split", "val", "--baseline", "identity")
    assert code == 2 and "Traceback" not in error and "expected" in error


def test_a_missing_opencv_is_one_sentence(tmp_path: Path) -> None:
    program = (
        "import sys\nsys.modules['cv2'] = None\nsys.argv = ['corrflow-track', '--demo']\n"
        "from corrflow.runtime.commands.track_cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: expected OpenCV") and "--system-site-packages" in done.stderr
