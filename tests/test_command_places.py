"""No command writes among files that it did not make, or over what it reads."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

CASES = {
    "export into a folder of others": ("export.cli", ("onnx", "random-init:quarter", "mine"), "thesis.tex"),
    "export around its run": ("export.cli", ("onnx", "runs/first", "runs"), "would be replaced"),
    "settings over the model": ("export.cli", ("settings", "model", "model", "new.json"), "for both|apart"),
    "train into a folder of others": (
        "train.cli", ("--data", "videos", "--out", "mine", "--steps", "1"), "thesis.tex",
    ),
    "train inside its data": ("train.cli", ("--data", "videos", "--out", "videos/run", "--steps", "1"), "outside"),
    "prepare inside its source": ("train.prepare_cli", ("videos", "videos/shards"), "outside|apart"),
    "prepare into a folder of others": ("train.prepare_cli", ("videos", "mine"), "thesis.tex"),
    "points over their labels": (
        "evaluate.cli", ("badja", "labels.json", "--root", ".", "--out", "labels.json"), "for both",
    ),
    "scores over a table": ("evaluate.cli", ("tapvid", "clips.pkl", "--out", "sheet.csv"), "another file"),
    "measurements over a table": ("bench.cli", ("op", "--json", "sheet.csv"), "another file"),
    "measurements over the mask": (
        "bench.cli", ("track", "clip.mp4", "--init", "mask.png", "--json", "mask.png"), "for both",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("module", "words", "reason"), CASES.values(), ids=CASES.keys())
def test_no_command_writes_over_what_it_did_not_make(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_artifact: Path,
    module: str,
    words: tuple[str, ...],
    reason: str,
) -> None:
    if module.startswith(("export", "train")):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "videos", "runs/first"):
        Path(folder).mkdir(parents=True)
    for name in ("mine/thesis.tex", "videos/a.mp4", "labels.json", "clips.pkl", "sheet.csv", "clip.mp4", "mask.png"):
        Path(name).write_text("a user's file")
    Path("new.json").write_text("{}")
    Path("model").symlink_to(small_artifact)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = CliRunner().invoke(importlib.import_module(f"corrflow.{module}").app, list(words))
    assert done.exit_code == 2, done.output
    assert any(one in done.output.replace("\n", " ") for one in reason.split("|")), done.output
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
