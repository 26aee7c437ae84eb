"""The comparison of two commits' results finds what changed in content, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from corrflow.bench.experiments.compare_commits import app, content

MASK = np.eye(8, dtype=np.uint8)
ANOTHER_PIXEL = MASK + (np.arange(64) == 7).reshape(8, 8).astype(np.uint8)


def results(folder: Path, mask: np.ndarray = MASK, compression: int = 1, key: str = "rows", value: int = 480) -> Path:
    folder.mkdir()
    cv2.imwrite(str(folder / "00000.png"), mask, [cv2.IMWRITE_PNG_COMPRESSION, compression])
    np.savez(folder / "points.npz", points=MASK)
    (folder / "artifact.json").write_text(json.dumps({"format": len(key), "tracking": {key: value}}))
    return folder


def compared(old: Path, new: Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["compare", str(old), str(new)])
    return done.exit_code, done.output


def test_other_bytes_and_other_keys_of_the_same_content_are_no_difference(tmp_path: Path) -> None:
    new = results(tmp_path / "new", compression=9, key="short_side")
    code, table = compared(results(tmp_path / "old"), new)
    assert code == 0, table
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:] if line}
    assert rows == {
        ".npz": ["1", "1", "0", "0", "0"],
        ".png": ["1", "0", "1", "0", "0"],
        "artifact.json": ["1", "0", "1", "0", "0"],
    }


@pytest.mark.parametrize("change", [{"mask": ANOTHER_PIXEL}, {"value": 240}])
def test_another_pixel_and_another_value_are_found(tmp_path: Path, change: dict) -> None:
    code, table = compared(results(tmp_path / "old"), results(tmp_path / "new", **change))
    assert code == 1 and table.count(": different") == 1


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    new = results(tmp_path / "new")
    (new / "points.npz").unlink()
    code, table = compared(results(tmp_path / "old"), new)
    assert code == 1 and "points.npz: in one only" in table


def graph(path: Path, name: str, weight: float) -> Path:
    shape = (TensorProto.FLOAT, [1])
    inputs, outputs = [helper.make_tensor_value_info("x", *shape)], [helper.make_tensor_value_info(name, *shape)]
    weights = [numpy_helper.from_array(np.array([weight], np.float32), "weight")]
    node = helper.make_node("Mul", ["x", "weight"], [name])
    onnx.save(helper.make_model(helper.make_graph([node], "main", inputs, outputs, weights)), path)
    return path


def test_another_weight_of_a_graph_is_found_and_another_name_is_not(tmp_path: Path) -> None:
    old = content(graph(tmp_path / "old.onnx", "labels", 1.0))
    assert content(graph(tmp_path / "renamed.onnx", "soft_masks", 1.0)) == old
    assert content(graph(tmp_path / "changed.onnx", "labels", 2.0)) != old
