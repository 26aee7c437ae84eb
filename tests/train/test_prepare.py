"""corrflow-prepare: shards do not depend on interruptions, and every skipped video is reported."""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.panning import write_panning_video

from corrflow.errors import InputError
from corrflow.run_lock import lock_run
from corrflow.train.data import prepare as preparing
from corrflow.train.data.frames import FrameSampling, small_frames
from corrflow.train.data.prepare import DECODER_DIED, plan_shards, prepare, read_video
from corrflow.train.data.shards import read_index

SAMPLING = FrameSampling(6.0, 48, quality=90)


def write_frames(folder: Path, seed: int, frames: int = 5) -> None:
    folder.mkdir(parents=True)
    scene = np.random.default_rng(seed).integers(0, 256, (64, 160, 3), np.uint8)
    for t in range(frames):
        cv2.imwrite(str(folder / f"{t:05d}.png"), scene[:, 3 * t : 3 * t + 96])


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create videos in two classes, frames and masks in DAVIS's layout, and files with several kinds of damage."""
    root = tmp_path_factory.mktemp("footage")
    for seed in range(4):
        write_panning_video(root / "kinetics" / ("jumping" if seed % 2 else "riding a bike") / f"{seed}.mp4", seed)
    write_frames(root / "davis" / "JPEGImages" / "480p" / "bear", 4)
    write_frames(root / "davis" / "Annotations" / "480p" / "bear", 5)
    intact = (root / "kinetics" / "jumping" / "1.mp4").read_bytes()
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("no video")
    (root / "headless.mp4").write_bytes(intact[200:])
    write_frames(root / "cut", 6)
    (root / "cut" / "00003.png").write_bytes(b"no image")
    return root


def run(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "corrflow.train.prepare_cli", str(source), str(out), "--per-shard", "3", *options]
    return subprocess.run(line, capture_output=True, text=True, timeout=240)


def content(out: Path) -> dict[str, bytes]:
    """Return the contents of all files of a run, by name."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


def test_shards_contain_the_videos_and_the_report_lists_damage(footage: Path, tmp_path: Path) -> None:
    done = run(footage, tmp_path / "out", "--short-side", "48", "--workers", "2")
    assert done.returncode == 1, done.stderr
    assert "4 videos could not be read completely" in done.stderr and "Traceback" not in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sorted(report["skipped"]) == ["empty.mp4", "headless.mp4", "text.mp4"]
    assert list(report["truncated"]) == ["cut"] and report["truncated"]["cut"].endswith("3 frames written")
    found = {}
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            for name in names:
                if name.endswith(".json"):
                    description = json.loads(read(tar, name))
                    frames = sorted(n for n in names if n.startswith(name[:-4]) and n.endswith(".jpg"))
                    assert len(frames) == description["frames"] and description["frames_per_second"] == 6
                    found[description["name"]] = [read(tar, frame) for frame in frames]
    assert set(found) == {
        "kinetics/riding a bike/0.mp4", "kinetics/jumping/1.mp4", "kinetics/riding a bike/2.mp4",
        "kinetics/jumping/3.mp4", "davis/JPEGImages/480p/bear", "cut",
    }  # fmt: skip
    assert report["videos"] == 6 and report["frames"] == sum(map(len, found.values()))
    for name in ("kinetics/jumping/1.mp4", "davis/JPEGImages/480p/bear"):
        assert found[name] == list(small_frames(footage / name, SAMPLING))
    frame = cv2.imdecode(np.frombuffer(found["kinetics/jumping/1.mp4"][0], np.uint8), cv2.IMREAD_COLOR)
    assert frame is not None and frame.shape == (48, 72, 3)


def read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def test_a_resumed_run_writes_the_same_bytes(footage: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The run is killed --train-kills times at random and resumed with another number of workers."""
    run(footage, tmp_path / "uninterrupted", "--workers", "1")
    line = [
        sys.executable, "-m", "corrflow.train.prepare_cli", str(footage), str(tmp_path / "killed"),
        "--per-shard", "3", "--workers", "2",
    ]  # fmt: skip
    kills, effective = int(pytestconfig.getoption("--train-kills") or 0), 0
    for kill in range(kills):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 60
        # The first kills wait for complete shards, so that they interrupt the work and not only its start.
        while time.monotonic() < deadline and process.poll() is None:
            if len(list((tmp_path / "killed").glob("records/*.json"))) > min(kill, 1):
                break
            time.sleep(0.002)
        time.sleep(random.random() * 0.02)
        effective += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert effective, "every kill came after the end of the run"
    run(footage, tmp_path / "killed", "--workers", "2")
    assert content(tmp_path / "killed") == content(tmp_path / "uninterrupted")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.tar")}
    assert run(footage, tmp_path / "killed").returncode == 1  # skipped videos stay skipped
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.tar")}


def test_workers_end_with_their_parent(footage: Path, tmp_path: Path) -> None:
    """A kill of the parent process ends all decoder processes."""
    marker = f"corrflow-{os.getpid()}-{random.random()}"
    line = [sys.executable, "-m", "corrflow.train.prepare_cli", str(footage), str(tmp_path / "out"), "--workers", "2"]
    process = subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "CORRFLOW_TEST_MARKER": marker}
    )

    def alive() -> int:
        """Count the processes that inherited the marker in their environment."""
        count = 0
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                count += marker.encode() in environ.read_bytes()
            except OSError:
                continue
        return count

    if not Path("/proc/self/environ").exists():
        process.kill()
        process.wait()
        pytest.skip("needs /proc to list processes")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and alive() < 3:
        time.sleep(0.02)
    process.kill()
    process.wait()
    while time.monotonic() < deadline and alive():
        time.sleep(0.05)
    assert alive() == 0


def test_a_decoder_that_dies_costs_only_its_video(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder process ends at one video while others are being decoded."""
    # A separate module, because workers cannot import the test module by a unique name.
    (tmp_path / "dying_reader.py").write_text(
        "import os\n"
        "from corrflow.train.data.prepare import read_video\n"
        "def read(path, sampling, max_seconds):\n"
        "    return os._exit(11) if path.name == '3.mp4' else read_video(path, sampling, max_seconds)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(preparing, "read_video", importlib.import_module("dying_reader").read)
    total = prepare(plan_shards(footage, SAMPLING, 3, 600.0), tmp_path / "out", 2)
    assert total.skipped.pop("kinetics/jumping/3.mp4") == DECODER_DIED
    assert sorted(total.skipped) == ["empty.mp4", "headless.mp4", "text.mp4"]
    assert total.videos == 5


def test_long_videos_become_several_samples_and_end_at_max_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_frames(tmp_path / "videos" / "long", 0, frames=9)
    monkeypatch.setattr(preparing, "SAMPLE_FRAMES", 4)
    prepare(plan_shards(tmp_path / "videos", SAMPLING, 3, 600.0), tmp_path / "out", 1)
    lengths = [len(sample.places) for sample in read_index(tmp_path / "out" / "shard-000000.tar", "it")]
    assert lengths == [4, 4, 1]
    assert len(read_video(tmp_path / "videos" / "long", SAMPLING, max_seconds=1.0).frames) == 6


@pytest.mark.parametrize(
    ("folder_rate", "rate", "expected"), [(24.0, 6.0, [0, 4, 8]), (10.0, 4.0, [0, 3, 5, 8]), (5.0, 6.0, None)]
)
def test_image_folders_are_sampled_at_the_requested_rate(
    tmp_path: Path, folder_rate: float, rate: float, expected: list[int] | None
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for t in range(9):
        cv2.imwrite(str(folder / f"{t}.png"), np.full((20, 20, 3), 25 * t, np.uint8))
    means = [
        round(float(np.mean(np.asarray(cv2.imdecode(np.frombuffer(frame, np.uint8), 1)))) / 25)
        for frame in small_frames(folder, FrameSampling(rate, 20, folder_rate=folder_rate))
    ]
    assert means == (list(range(9)) if expected is None else expected)


def test_another_plan_or_a_second_run_is_refused(footage: Path, tmp_path: Path) -> None:
    run(footage / "kinetics", tmp_path / "out")
    before = content(tmp_path / "out")
    for options, changed in ((("--fps", "3"), "frames_per_second"), (("--quality", "50"), "quality")):
        done = run(footage / "kinetics", tmp_path / "out", *options)
        assert done.returncode == 2 and f"other {changed}" in done.stderr and "Traceback" not in done.stderr
    assert content(tmp_path / "out") == before
    with lock_run(tmp_path / "out" / ".lock"):
        done = run(footage / "kinetics", tmp_path / "out")
    assert done.returncode == 2 and "another at work in it" in done.stderr
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "other.tar").touch()
    done = run(footage / "kinetics", tmp_path / "foreign")
    assert done.returncode == 2 and "contains other shards" in done.stderr
    assert os.listdir(tmp_path / "foreign") != [] and (tmp_path / "foreign" / "other.tar").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fps", "0"), "frames per second between 0.1 and 240.0, got 0.0"),
        (("--quality", "200"), "quality between 1 and 100, got 200"),
        (("--per-shard", "0"), "at least one video per shard"),
        (("--workers", "-1"), "at least 1 worker"),
        (("--max-seconds", "nan"), "--max-seconds above 0"),
    ],
)
def test_bad_options_are_one_sentence(footage: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = run(footage / "kinetics", tmp_path / "out", *options)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert not (tmp_path / "out").exists()


def test_missing_videos_and_unwritable_outputs_are_one_sentence(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "file").touch()
    for source, out in ((tmp_path / "none", "a"), (tmp_path / "missing", "b"), (footage / "kinetics", "file")):
        done = run(source, tmp_path / out)
        assert done.returncode == 2 and "error: expected" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(InputError, match="expected a folder to write to"):
        prepare(plan_shards(footage / "kinetics", SAMPLING, 3, 600.0), tmp_path / "file" / "below", 1)


def test_an_interrupted_shard_leaves_no_partial_file(footage: Path, tmp_path: Path) -> None:
    plan = plan_shards(footage / "kinetics", SAMPLING, 9, 600.0)

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(plan, tmp_path / "out", 1, stop)
    assert not list((tmp_path / "out").rglob("*tar*"))
    prepare(plan, tmp_path / "out", 1)
    assert [sample.frames_per_second for sample in read_index(tmp_path / "out" / "shard-000000.tar", "")] == [6.0] * 4


def test_the_tar_has_the_webdataset_format(footage: Path, tmp_path: Path) -> None:
    """Files of a sample are consecutive, and their names agree up to the first dot."""
    prepare(plan_shards(footage / "kinetics", SAMPLING, 9, 600.0), tmp_path / "out", 1)
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "out" / "shard-000000.tar").read_bytes()), mode="r|") as tar:
        keys = [entry.name.split(".")[0] for entry in tar]
    changes = [key for index, key in enumerate(keys) if index == 0 or keys[index - 1] != key]
    assert len(changes) == len(set(changes)) == 4
