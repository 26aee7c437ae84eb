"""The examples run as they stand, and do what the package does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

from corrflow.export.retune import export_with_settings
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

EXAMPLES = ROOT / "examples"


def run_example(artifact: Path, images: list[np.ndarray], mask: np.ndarray, folder: Path) -> list[np.ndarray]:
    """Track images [H, W, 3] uint8, BGR, from a video without loss; returns the masks [H, W] bool."""
    writer = cv2.VideoWriter(str(folder / "video.avi"), cv2.VideoWriter.fourcc(*"FFV1"), 8, images[0].shape[1::-1])
    for image in images:
        writer.write(image)
    writer.release()
    cv2.imwrite(str(folder / "mask.png"), mask.astype(np.uint8) * 255)
    command = [sys.executable, "-W", "error", EXAMPLES / "track_with_onnxruntime.py", artifact]
    command += [folder / "video.avi", folder / "mask.png", folder / "masks"]
    subprocess.run(command, check=True, capture_output=True)
    return [np.asarray(Image.open(path)) > 0 for path in sorted((folder / "masks").iterdir())]


def tracked(artifact: Path, images: list[np.ndarray], mask: np.ndarray) -> list[np.ndarray]:
    """Track with the package, without edge refinement and target model, which graphs do not have."""
    backend = open_backend("auto", load_artifact(artifact), 1)
    tracker = Tracker(backend, replace(backend.artifact.settings, refine_radius=0, target_model=False))
    tracks = [tracker.start(images[0], [MaskObject(1, mask)])] + [tracker.step(image) for image in images[1:]]
    return [track.mask > 0 for track in tracks]


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union, 1 for two empty masks."""
    return float((one & other).sum() / max((one | other).sum(), 1)) if (one | other).any() else 1.0


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable() or "-")
def test_tracking_without_the_package_gives_the_same_masks(small_artifact: Path, moving_square, tmp_path: Path) -> None:
    """Frames that are shrunk, do not divide into cells, and are searched in two windows."""
    settings = TrackingSettings(60, (0,), (1, 2, 3), (3,), (1, 2), 10, 0.1)
    export_with_settings(load_artifact(small_artifact), settings, tmp_path / "artifact")
    noise = np.random.default_rng(1).integers(0, 40, moving_square[0].shape, np.uint8)
    images, mask = list(moving_square[0] + noise), moving_square[1][0]
    got = run_example(tmp_path / "artifact", images, mask, tmp_path)
    expected = tracked(tmp_path / "artifact", images, mask)
    assert len(got) == len(images) and got[-1].any()
    # Interpolating in one step or in two decides a pixel at the edge here and there.
    assert min(overlap(*pair) for pair in zip(got, expected, strict=True)) > 0.97


def test_the_bundled_model_tracks_real_video_without_the_package(shared_data: Path, tmp_path: Path) -> None:
    sequence = shared_data / "davis-dev" / "JPEGImages" / "480p" / "bear"
    images = [cv2.resize(cv2.imread(str(path)), (214, 120)) for path in sorted(sequence.iterdir())[:6]]  # pyright: ignore
    annotations = shared_data / "davis-dev" / "Annotations" / "480p" / "bear"
    truth = [cv2.resize(cv2.imread(str(path), 0), (214, 120)) > 127 for path in sorted(annotations.iterdir())[:6]]  # pyright: ignore
    got = run_example(resolve_model(None), images, truth[0], tmp_path)
    expected = tracked(resolve_model(None), images, truth[0])
    assert min(overlap(*pair) for pair in zip(got, expected, strict=True)) > 0.97
    assert overlap(got[-1], truth[-1]) > 0.8


def test_the_notebook_runs_from_the_first_cell_to_the_last(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    for name in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(name)
    # In a process of its own: Jupyter's libraries warn of each other.
    program = (
        "import sys, nbclient, nbformat\n"
        "book = nbformat.read(sys.argv[1], 4)\n"
        "nbformat.validate(book)\n"
        "nbclient.NotebookClient(book, timeout=300, kernel_name='python3').execute()\n"
        "nbformat.write(book, 'executed.ipynb')\n"
    )
    notebook = EXAMPLES / "from_one_label.ipynb"
    environment = os.environ | {"IPYTHONDIR": str(tmp_path / "ipython"), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program, notebook], cwd=tmp_path, env=environment, check=True)
    executed = nbformat.read(tmp_path / "executed.ipynb", 4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "40 images, 40 annotations" in text and "1 done (0 before), 0 failed; 40 frames" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert len(list(tmp_path.glob("*/results/demo/report.html"))) == 1
    assert not any(cell.get("outputs") for cell in nbformat.read(notebook, 4).cells)  # kept without results


def test_a_sink_of_ones_own_gets_what_a_camera_shows(moving_square, tmp_path: Path) -> None:
    frames, masks = moving_square
    (tmp_path / "clip").mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / "clip" / f"{number}.png"), frame)
    cv2.imwrite(str(tmp_path / "mask.png"), masks[0].astype(np.uint8) * 255)
    script = ROOT / "docs" / "examples" / "steer.py"
    command = [sys.executable, "-W", "error", script, tmp_path / "clip", tmp_path / "mask.png"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    columns = np.flatnonzero(masks[0].any(0))
    turn = (columns[0] + columns[-1] + 1) / masks[0].shape[1] - 1
    assert said[0].startswith(f"object 1: {turn:+.2f}, ") and said[-1] == "stopped" and len(said) > 2
