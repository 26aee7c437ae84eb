"""corrflow-batch --ray on a local cluster: the same results as the plain pool, and an actor that dies costs a try."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray", reason="Ray is in the extra ray")


def plant(root: Path, count: int) -> None:
    (root / "videos").mkdir()
    for number in range(count):
        with av.open(str(root / "videos" / f"{number}.mkv"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
            for index in range(6):
                picture = np.full((64, 96, 3), 90, np.uint8)
                picture[20:40, 20 + index : 50 + index] = (30, 30, 200)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
            container.mux(stream.encode(None))
        mask = np.zeros((64, 96), np.uint8)
        mask[20:40, 20:50] = 1
        (root / "labels").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "labels" / f"{number}.png")
    (root / "videos" / "bad.mkv").write_bytes(b"")
    Image.fromarray(mask).save(root / "labels" / "bad.png")


def batch(root: Path, out: str, artifact: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [str(root / "videos"), "--labels", str(root / "labels"), "--out", str(root / out), "--workers", "2"]
    words += ["--threads", "1", "--artifact", str(artifact), *options]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    program = [sys.executable, "-m", "corrflow.runtime.batch.cli", *words]
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
