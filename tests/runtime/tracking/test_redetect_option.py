"""--redetect and --no-redetect work in every command; a batch with the other setting is computed again."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import corrflow
from corrflow.runtime.commands import batch_cli
from corrflow.runtime.commands.track_cli import app


@pytest.fixture
def clip(tmp_path: Path, hidden) -> Path:
    """Write the clip of `hidden` as a folder of images, with the mask of the first frame.

    The occluder is white: a tracker without occlusion handling follows it.
    """
    folder = tmp_path / "clips" / "clip"
    folder.mkdir(parents=True)
    for index, frame in enumerate(hidden[0]):
        occluder = (frame == (200, 90, 20)).all(2, keepdims=True)
        cv2.imwrite(str(folder / f"{index:03d}.png"), np.where(occluder, np.uint8(255), frame))
    (tmp_path / "labels").mkdir()
    Image.fromarray(hidden[1][0].astype(np.uint8) * 255).save(tmp_path / "labels" / "clip.png")
    return folder


def visible(lines: str) -> list[bool]:
    return [json.loads(line)["objects"][0]["visible"] for line in lines.splitlines()]


def lost(seen: list[bool]) -> bool:
    """Return True if the object was lost while it was hidden, but not before or in the end."""
    assert all(seen[:4]) and seen[-1]
    return not any(seen[4:8])


@pytest.mark.parametrize("backend", ["auto", "onnx-function"])
def test_corrflow_track_and_the_python_loop_redetect_by_default(
    backend: str, clip: Path, small_artifact: Path, tmp_path: Path
) -> None:
    mask = tmp_path / "labels" / "clip.png"
    for option, redetect in (([], True), (["--no-redetect"], False)):
        out = tmp_path / f"{redetect}.jsonl"
        named = ["--init", str(mask), "--jsonl", str(out), "--model", str(small_artifact), "--backend", backend]
        result = CliRunner().invoke(app, [str(clip), *named, *option])
        assert result.exit_code == 0, result.output
        assert lost(visible(out.read_text())) is redetect
        tracks = corrflow.track(clip, masks=mask, model=small_artifact, backend=backend, redetect=redetect)
        assert lost([one.objects[0].visible for one in tracks]) is redetect


def test_a_batch_redetects_by_default_and_is_computed_again_otherwise(
    clip: Path, small_artifact: Path, tmp_path: Path
) -> None:
    def batch(*options: str) -> str:
        named = ["--labels", str(tmp_path / "labels"), "--out", str(tmp_path / "out"), "--model"]
        arguments = [str(clip), *named, str(small_artifact), "--workers", "1", "--format", "jsonl", *options]
        result = CliRunner().invoke(batch_cli.app, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    found = tmp_path / "out" / "clip"
    batch()
    (lines,) = found.rglob("*.jsonl")
    assert lost(visible(lines.read_text()))
    assert "(1 before)" in batch()
    assert "(0 before)" in batch("--no-redetect")
    assert not lost(visible(lines.read_text()))
