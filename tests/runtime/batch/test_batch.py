"""Batches: every good item done, every bad one named, nothing half, nothing twice, the same bytes after any kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from fractions import Fraction
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corrflow.errors import InputError
from corrflow.run_lock import lock_run
from corrflow.runtime.batch.inputs import Item, find_items, shard_of
from corrflow.runtime.batch.label_discovery import LabelSource, find_annotations
from corrflow.runtime.batch.process_item import COMPLETION_RECORD, Job
from corrflow.runtime.batch.workers import run_workers
from corrflow.runtime.formats.annotations import Annotations
from corrflow.runtime.tracking.model_options import ModelOptions
from corrflow.runtime.types import KeypointsObject, MaskObject

FORMATS = ("davis", "binary", "csv", "coco", "youtube-vos", "jsonl", "overlay", "labelme", "cvat", "deeplabcut")
FORMATS += ("yolo-seg", "yolo-pose", "tapvid", "boxes", "cutouts", "report", "sleap", "deeplabcut-h5")
UNEVEN = [0, 40, 130, 170, 400, 410, 900, 940]  # milliseconds


def found_in(folder: Path) -> Annotations:
    """Return the labels in a folder for a video called clip."""
    return find_annotations(LabelSource(folder, "clip", Path("clip.mp4")), lambda: (64, 96))


def square(index: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[14 + index : 34 + index, 20 + 2 * index : 40 + 2 * index] = True
    return mask


def video(
    path: Path,
    size: tuple[int, int] = (64, 96),
    times: list[int] | None = None,
    turn: int = 0,
    sound_only: bool = False,
) -> Path:
    """Eight frames with a square that moves; the top row's grey level says which frame it is."""
    with av.open(str(path), "w") as container:
        if sound_only:
            audio = container.add_stream("aac", rate=44100)
            for block in range(20):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                sound.sample_rate, sound.pts = 44100, block * 1024
                container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
            return path
        stream = container.add_stream("libx264", rate=25, options={"crf": "10", "g": "4"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(turn)
        texture = np.random.default_rng(0).integers(60, 120, (*size, 3), np.uint8)
        for index in range(8):
            image = texture.copy()
            image[square(index, *size)] = (30, 30, 200)
            image[:8, :8] = 30 * index
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = (times or list(range(0, 320, 40)))[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def save_square(path: Path, index: int = 0, size: tuple[int, int] = (64, 96)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(square(index, *size).astype(np.uint8) * 255).save(path)


def plant(folder: Path, count: int) -> tuple[set[str], set[str]]:
    """Write `count` videos with labels, of all kinds by turns; return the names of good and bad videos."""
    videos, labels = folder / "videos", folder / "labels"
    videos.mkdir(parents=True)
    labels.mkdir()
    good, bad = set(), set()
    whole = video(folder / "whole.mkv").read_bytes()
    for number in range(count):
        kind = ("plain", "odd", "uneven", "turned", "late", "misnamed", "cut", "empty", "sound", "text")[number % 10]
        name = f"{number:03d}-{kind}"
        path, size = videos / f"{name}.mp4", (64, 96)
        if kind == "odd":
            size = (65, 97)
        if kind in ("plain", "odd", "late"):
            video(path, size)
        elif kind == "uneven":
            video(path, times=UNEVEN)
        elif kind == "turned":
            size = (96, 64)
            video(path, turn=90)
        elif kind == "misnamed":
            path.write_bytes(whole)  # Matroska that is called MP4 plays everywhere
        elif kind == "cut":
            path.write_bytes(whole[: len(whole) * 2 // 3])
        elif kind == "empty":
            path.touch()
        elif kind == "sound":
            video(path, sound_only=True)
        else:
            path.write_text("no video\n" * 100)
        if kind == "late":
            save_square(labels / name / "00003.png", 3)
        else:
            save_square(labels / f"{name}.png", size=size)
        if number % 3 == 0 or kind == "late":
            (labels / f"{name}.csv").write_text(f"frame,name,x,y\n{3 if kind == 'late' else 0},corner,32,30\n")
        (bad if kind in ("cut", "empty", "sound", "text") else good).add(name)
    return good, bad


def command(root: Path, out: Path, artifact: Path, *options: str) -> list[str]:
    formats = [word for name in FORMATS for word in ("--format", name)]
    start = [sys.executable, "-m", "corrflow.runtime.commands.batch_cli", str(root / "videos")]
    return [
        *start,
        "--labels",
        str(root / "labels"),
        "--out",
        str(out),
        "--model",
        str(artifact),
        *formats,
        *options,
    ]


def finish(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=600)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


def completion_times(out: Path) -> dict[str, int]:
    """Return the completion time of each result."""
    folders = [path for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return {path.name: (path / COMPLETION_RECORD).stat().st_mtime_ns for path in folders}


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory, small_artifact: Path) -> Path:
    """Ten items, one of each kind, done."""
    root = tmp_path_factory.mktemp("each")
    plant(root, 10)
    done = finish(command(root, root / "out", small_artifact, "--workers", "2"))
    assert done.returncode == 1, done.stderr
    return root


def test_kills_lose_nothing_redo_nothing_and_change_no_byte(
    tmp_path: Path, small_artifact: Path, request: pytest.FixtureRequest
) -> None:
    files, kills = (int(str(request.config.getoption(name))) for name in ("--batch-files", "--batch-kills"))
    good, bad = plant(tmp_path, files)
    begin = time.perf_counter()
    undisturbed = finish(command(tmp_path, tmp_path / "calm", small_artifact, "--workers", "2"))
    seconds = time.perf_counter() - begin
    assert undisturbed.returncode == 1, undisturbed.stderr
    dice, out, seen = random.Random(files), tmp_path / "out", dict[str, int]()
    killed = 0
    for _ in range(kills):
        # A run needs a while to start; each gets on by about its share of the work and is killed at any moment of it.
        pause = 0.3 + dice.random() * (1.2 + 2 * seconds / kills)
        process = subprocess.Popen(
            command(tmp_path, out, small_artifact, "--workers", "2"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            if dice.random() < 0.5:
                os.kill(process.pid, signal.SIGKILL)  # the workers have to notice
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        if out.exists():
            made = completion_times(out)  # fails on a folder without its last file
            assert all(made[name] == when for name, when in seen.items())
            seen |= made
    last = finish(command(tmp_path, out, small_artifact, "--workers", "2"))
    assert last.returncode == 1 and killed
    made = completion_times(out)
    assert set(made) == good and all(made[name] == when for name, when in seen.items())
    assert tree(out) == tree(tmp_path / "calm")
    states = {entry["name"]: entry for entry in json.loads((out / "manifest.json").read_text())["items"]}
    assert {name for name, entry in states.items() if entry["state"] == "failed"} == bad
    assert {name for name, entry in states.items() if entry["state"] == "done"} == good
    for name in bad:
        assert states[name]["reason"] and f"failed {name}: " in last.stderr


@pytest.mark.parametrize("name", ["002-uneven", "003-turned", "004-late"])
def test_every_output_frame_is_its_source_frame_at_its_time(one_of_each: Path, name: str) -> None:
    times = [ms / 1000 for ms in UNEVEN] if name == "002-uneven" else [index / 25 for index in range(8)]
    out = one_of_each / "out" / name
    lines = [json.loads(line) for line in (out / "tracks.jsonl").read_text().splitlines()]
    assert [line["time"] for line in lines] == pytest.approx(times, abs=1e-3)
    assert [line["frame"] for line in lines] == list(range(8))
    coco = json.loads((out / "coco.json").read_text())
    assert [image["time"] for image in coco["images"]] == pytest.approx(times, abs=1e-3)
    images = sorted((out / "youtube-vos" / "JPEGImages" / name).iterdir())
    with av.open(str(out / "overlay.mp4")) as container:
        shown = list(container.decode(video=0))
    assert [float(frame.time or 0) for frame in shown] == pytest.approx(times, abs=1e-3)
    height, width = (96, 64) if name == "003-turned" else (64, 96)
    for index, (path, frame) in enumerate(zip(images, shown, strict=True)):
        for image in (cv2.imread(str(path)), frame.to_ndarray(format="bgr24")):
            assert image is not None and image.shape == (height, width, 3)
            patch = image[-6:-2, 2:6] if name == "003-turned" else image[2:6, 2:6]
            assert abs(float(patch.mean()) - 30 * index) < 12
        mask = np.asarray(Image.open(out / "masks" / f"{index:05d}.png"))
        assert mask.shape == (height, width)
        if name != "003-turned":
            true = square(index, 64, 96)
            assert np.count_nonzero((mask == 1) & true) / np.count_nonzero((mask == 1) | true) > 0.5, index


def test_labels_on_a_later_frame_stay_as_given(one_of_each: Path) -> None:
    mask = np.asarray(Image.open(one_of_each / "out" / "004-late" / "masks" / "00003.png"))
    assert np.array_equal(mask == 1, square(3, 64, 96))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under NumPy 2
def test_masks_read_back_from_every_format_are_the_same(one_of_each: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    out = one_of_each / "out" / "000-plain"
    loaded = coco.COCO(str(out / "coco.json"))
    meta = json.loads((out / "youtube-vos" / "meta.json").read_text())["videos"]["000-plain"]["objects"]
    assert list(meta) == ["1"] and set(meta["1"]["frames"]) <= {f"{index:05d}" for index in range(8)}
    for index in range(8):
        name = f"{index:05d}.png"
        mask = np.asarray(Image.open(out / "masks" / name)) == 1
        assert np.array_equal(np.asarray(Image.open(out / "objects" / "1" / name)) == 255, mask)
        assert np.array_equal(np.asarray(Image.open(out / "youtube-vos/Annotations/000-plain" / name)) == 1, mask)
        entries = loaded.loadAnns(loaded.getAnnIds(imgIds=[index + 1], catIds=[1]))
        assert len(entries) == 1 and np.array_equal(loaded.annToMask(entries[0]).astype(bool), mask)
        # and as labels of a next run
        chosen = {"annotations": [e for e in loaded.dataset["annotations"] if e["image_id"] == index + 1]}
        (tmp_path / "clip.json").write_text(json.dumps(loaded.dataset | chosen))
        labels = found_in(tmp_path)
        first, points = (packed.unpacked() for packed in labels.objects[index])
        assert labels.frames == (index,) and isinstance(first, MaskObject) and np.array_equal(first.mask, mask)
        rows = (out / "points.csv").read_text().splitlines()
        folder = tmp_path / f"csv{index}"
        folder.mkdir()
        (folder / "clip.csv").write_text("\n".join([rows[0], rows[index + 1]]))
        (from_csv,) = (
            packed.unpacked()
            for packed in find_annotations(LabelSource(folder, "clip", Path("clip.mp4")), lambda: (64, 96)).objects[
                index
            ]
        )
        assert isinstance(points, KeypointsObject) and isinstance(from_csv, KeypointsObject)
        assert points.points == pytest.approx(from_csv.points, abs=0.01)
        assert found_in(folder).frames == (index,)


def test_changed_labels_redo_that_item_alone(tmp_path: Path, small_artifact: Path) -> None:
    plant(tmp_path, 3)
    (tmp_path / "labels" / "000-plain.csv").unlink()
    arguments = command(tmp_path, tmp_path / "out", small_artifact, "--workers", "1")
    assert finish(arguments).returncode == 0
    before = completion_times(tmp_path / "out")
    save_square(tmp_path / "labels" / "001-odd.png", 1, (65, 97))
    done = finish(arguments)
    assert done.returncode == 0 and "3 done (2 before)" in done.stderr
    after = completion_times(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {"001-odd"}
    assert finish([*arguments, "--shard", "2/3"]).returncode == 0
    assert len(json.loads((tmp_path / "out" / "manifest-2-of-3.json").read_text())["items"]) == 1
    assert completion_times(tmp_path / "out") == after


def test_every_worker_sees_its_own_gpu(one_of_each: Path, small_artifact: Path, monkeypatch) -> None:
    """There need be none: what counts is what a process is let see."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("what a process was started with is read as Linux tells it")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    job = Job(one_of_each / "labels", one_of_each / "out", one_of_each, (), "none")
    options, items = (
        ModelOptions(str(small_artifact), redetect=False, threads=1),
        [Item(str(n), Path("none")) for n in range(4)],
    )
    events: Any = run_workers(job, options, items, 3, gpus=2)
    next(events)
    seen: list[str] = []
    end = time.monotonic() + 60
    while len(seen) < 3 and time.monotonic() < end:  # a process has its variables once it has begun
        started = [Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0") for child in active_children()]
        words = [word.decode() for own in started for word in own]
        seen = sorted(word for word in words if word.startswith("CUDA_VISIBLE_DEVICES="))
    events.close()
    assert seen == [f"CUDA_VISIBLE_DEVICES={number}" for number in (3, 5, 5)]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,3"
    with pytest.raises(InputError, match="--gpus up to the 2"):
        next(run_workers(job, options, items, 3, gpus=3))


def test_shards_are_disjoint_and_whole() -> None:
    items = [Item(str(number), Path(str(number))) for number in range(11)]
    parts = [shard_of(items, f"{index}/4") for index in range(1, 5)]
    assert sorted(item.name for part in parts for item in part) == sorted(item.name for item in items)
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/2", "²/3"):
        with pytest.raises(InputError, match="--shard"):
            shard_of(items, wrong)


def test_items_come_from_folders_patterns_and_lists(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    (videos / "frames").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(videos / "frames" / "0.png")
    for name in ("b10.mp4", "b2.mkv", "notes.md"):
        (videos / name).touch()
    (tmp_path / "list.txt").write_text("# two\nvideos/b2.mkv\nvideos/gone.mp4\n")
    assert [item.name for item in find_items([str(videos)])] == ["b2", "b10", "frames"]
    assert [item.name for item in find_items([str(videos / "*.mp4"), str(videos / "frames")])] == ["b10", "frames"]
    assert [item.name for item in find_items([str(tmp_path / "list.txt")])] == ["b2", "gone"]
    (videos / "b2.mp4").touch()
    with pytest.raises(InputError, match="different names"):
        find_items([str(videos)])
    with pytest.raises(InputError, match="does not exist"):
        find_items([str(tmp_path / "none")])


@pytest.mark.parametrize("name", ["manifest.json.mp4", "Manifest.JSON.mkv", "manifest-1-of-2.json.mp4", ".lock.mp4"])
def test_a_video_that_is_called_as_a_file_of_the_batch_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="rename it"):
        find_items([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "got none"),
        ({"clip.json": "[]"}, "COCO JSON"),
        ({"clip.json": '{"annotations": [], "images": []}'}, "got none"),
        (
            {
                "clip.json": '{"images": [{"id": 1, "height": 64, "width": 96, "file_name": "0.jpg"}], "annotations": '
                '[{"image_id": 1, "segmentation": {"size": [64, 96], "counts": [3, 9999]}}]}'
            },
            "do not fill",
        ),
        ({"clip.csv": "frame,name,x,y\n-1,a,1,1\n"}, "index of a frame"),
    ],
    ids=["none", "list", "no annotation", "long runs", "negative frame"],
)
def test_labels_that_cannot_be_used_are_one_sentence(tmp_path: Path, files: dict[str, str | int], reason: str) -> None:
    for name, content in files.items():
        if isinstance(content, int):
            save_square(tmp_path / name, content)
        else:
            (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        found_in(tmp_path)
    assert "\n" not in str(caught.value)


def test_masks_of_one_folder_for_each_object_keep_their_ids(tmp_path: Path) -> None:
    save_square(tmp_path / "clip" / "7" / "00002.png")
    save_square(tmp_path / "clip" / "cat" / "00002.png", 3)
    labels = found_in(tmp_path)
    assert labels.frames == (2,)
    assert {(packed.prompt.id, packed.prompt.name) for packed in labels.objects[2]} == {(7, ""), (8, "cat")}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--format", "gif"), "--format among"),
        (("--workers", "-1"), "--workers"),
        (("--shard", "3/2"), "--shard"),
        (("--min-score", "2"), "--min-score from 0 to 1"),
        (("--labels", "none"), "folder of labels"),
        (("--short-side", "3"), "a short side of 16"),
    ],
    ids=["format", "workers", "shard", "score", "labels", "short-side"],
)
def test_wrong_options_are_one_sentence_and_write_nothing(
    one_of_each: Path, tmp_path: Path, small_artifact: Path, options: tuple[str, ...], reason: str
) -> None:
    done = finish(command(one_of_each, tmp_path / "out", small_artifact, *options))
    assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_second_run_of_one_shard_is_refused_at_once(one_of_each: Path, tmp_path: Path, small_artifact: Path) -> None:
    with lock_run(tmp_path / ".lock-1-of-2"):
        done = finish(command(one_of_each, tmp_path, small_artifact, "--shard", "1/2"))
    assert done.returncode == 2 and "for one run at a time, got another" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".lock-1-of-2"]


def test_an_index_and_a_name_may_mean_one_frame_or_two(tmp_path: Path) -> None:
    save_square(tmp_path / "clip" / "00003.png")
    (tmp_path / "clip.csv").write_text("frame,name,x,y\n3,a,30,20\n")
    places = LabelSource(tmp_path, "clip", Path("clip.mp4"))
    assert {k: len(v) for k, v in find_annotations(places, lambda: (64, 96)).objects.items()} == {3: 2}
    folder = replace(places, frame_names=["00001", "00002", "00003", "00004"])  # a folder that begins with 00001
    assert {k: len(v) for k, v in find_annotations(folder, lambda: (64, 96)).objects.items()} == {2: 1, 3: 1}


@settings(max_examples=150, deadline=None)
@given(
    counts=st.one_of(st.text("0123456789:;<=>?@ABCPQabcmno", max_size=40), st.lists(st.integers(-5, 300), max_size=9)),
    points=st.lists(st.one_of(st.none(), st.floats(), st.text(max_size=3)), max_size=7),
    side=st.one_of(st.integers(-1, 40), st.just(10**9), st.none()),
)
def test_random_coco_gives_objects_or_one_sentence(counts: object, points: list[object], side: int | None) -> None:
    entry = {"image_id": 1, "segmentation": {"size": [side, 12], "counts": counts}, "keypoints": points}
    for kept in ("segmentation", "keypoints"):
        content = {
            "images": [{"id": 1, "height": side, "width": 12, "file_name": "3.jpg"}],
            "annotations": [{"image_id": 1, kept: entry[kept]}],
        }
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "clip.json").write_text(json.dumps(content))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools under NumPy 2
                try:
                    labels = found_in(Path(folder))
                except InputError:
                    continue
        for packed in labels.objects.get(3, []):
            given_object = packed.unpacked()
            if isinstance(given_object, MaskObject):
                assert given_object.mask.shape == (side, 12)
