"""corrflow-batch --ray on a local cluster: the same results as the plain pool, and an actor that dies costs a try."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from corrflow.runtime.batch import ray_workers as on_ray
from corrflow.runtime.batch.inputs import Item, find_items
from corrflow.runtime.batch.process_item import Job, process_item
from corrflow.runtime.batch.workers import Event
from corrflow.runtime.tracking.model_options import ModelOptions

pytest.importorskip("ray", reason="Ray is in the extra ray")


def plant(root: Path, count: int) -> None:
    (root / "videos").mkdir()
    for number in range(count):
        with av.open(str(root / "videos" / f"{number}.mkv"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
            for index in range(6):
                image = np.full((64, 96, 3), 90, np.uint8)
                image[20:40, 20 + index : 50 + index] = (30, 30, 200)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
            container.mux(stream.encode(None))
        mask = np.zeros((64, 96), np.uint8)
        mask[20:40, 20:50] = 1
        (root / "labels").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "labels" / f"{number}.png")
    (root / "videos" / "bad.mkv").write_bytes(b"")
    Image.fromarray(mask).save(root / "labels" / "bad.png")


def batch(root: Path, out: str, artifact: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [str(root / "videos"), "--labels", str(root / "labels"), "--out", str(root / out), "--workers", "2"]
    words += ["--threads", "1", "--model", str(artifact), *options]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    program = [sys.executable, "-m", "corrflow.runtime.commands.batch_cli", *words]
    return subprocess.run(program, capture_output=True, text=True, timeout=300, env=environment)


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_ray_gives_what_the_plain_pool_gives(tmp_path: Path, small_artifact: Path) -> None:
    plant(tmp_path, 4)
    plain = batch(tmp_path, "plain", small_artifact)
    with_ray = batch(tmp_path, "ray", small_artifact, "--ray")
    assert (plain.returncode, with_ray.returncode) == (1, 1), with_ray.stderr
    assert "4 done (0 before), 1 failed" in with_ray.stderr and "failed bad:" in with_ray.stderr
    assert tree(tmp_path / "ray") == tree(tmp_path / "plain")
    again = batch(tmp_path, "ray", small_artifact, "--ray")
    assert "4 done (4 before), 1 failed" in again.stderr


def planted(tmp_path: Path, artifact: Path, count: int) -> tuple[Job, ModelOptions, list[Item]]:
    plant(tmp_path, count)
    out = tmp_path / "out"
    (out / ".staging").mkdir(parents=True)
    job = Job(tmp_path / "labels", out, out / ".staging", ("davis", "jsonl"), "test")
    items = [item for item in find_items([str(tmp_path / "videos")]) if item.name != "bad"]
    return job, ModelOptions(str(artifact), redetect=False, threads=1), items


def test_an_actor_that_dies_midway_costs_its_item_a_try_and_nothing_is_left_or_written_twice(
    tmp_path: Path, small_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(on_ray.Worker):
        def process(self, item: Item, attempt: int) -> Event:
            if item.name == "2" or (item.name, attempt) == ("1", 1):
                job = replace(self._job, staging=self._job.staging / f"attempt-{attempt}")
                process_item(job, item, self._tracker, lambda frames, announced: os._exit(1) if frames == 3 else None)
            return super().process(item, attempt)

    job, options, items = planted(tmp_path, small_artifact, 4)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(on_ray, "Worker", Dying)
    events = list(on_ray.run_on_ray(job, options, items, 2))
    last = {event.item.name: event for event in events if event.kind in ("done", "failed")}
    assert [event.item.name for event in events if event.kind == "started"].count("1") == 2
    assert {name: event.kind for name, event in last.items()} == {"0": "done", "1": "done", "2": "failed", "3": "done"}
    assert "its actor died 2 times" in last["2"].reason
    assert len(last) == sum(event.kind in ("done", "failed") for event in events)
    assert sorted(path.name for path in job.out.iterdir()) == [".staging", "0", "1", "3"]
    assert sorted(path.name for path in (job.out / "1" / "masks").iterdir()) == [f"{i:05d}.png" for i in range(6)]


def test_actors_share_the_gpus_and_say_how_far_they_are(
    tmp_path: Path, small_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPUs are declared and need not be there: what counts is what an actor is let see."""

    class Looking(on_ray.Worker):
        def process(self, item: Item, attempt: int) -> Event:
            self._progress = 7, 9
            time.sleep(1.5)
            return Event("done", item, reason=os.environ["CUDA_VISIBLE_DEVICES"])

    job, options, items = planted(tmp_path, small_artifact, 4)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(on_ray, "Worker", Looking)
    events = list(on_ray.run_on_ray(job, options, items, 2, gpus=2))
    assert {event.reason for event in events if event.kind == "done"} == {"0", "1"}
    assert {(event.frames, event.announced) for event in events if event.kind == "frames"} >= {(7, 9)}
