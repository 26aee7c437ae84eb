"""Readers of files for `fuzz.py`: each writes an undamaged file into a folder, and tells how to read it."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.runtime.formats import hdf5_check
from corrflow.runtime.formats.annotations import Annotations, ReadContext
from corrflow.runtime.formats.registry import FORMATS, open_sink, read_annotations
from corrflow.runtime.live.outputs.destinations import LiveSource
from corrflow.runtime.tracking.results import prompt_result
from corrflow.runtime.types import Frame, KeypointsObject, MaskObject

SIZE = (66, 98)
Read = Callable[[Path], object]


def _objects() -> list[MaskObject | KeypointsObject]:
    square = np.zeros(SIZE, bool)
    square[10:30, 20:50] = True
    square[15:20, 25:30] = False
    spot = KeypointsObject(2, np.array([[30, 24], [9, 4]], np.float32), ("nose", "tail"), "animal", "a1")
    return [MaskObject(1, square, "square", 7, "shape"), spot]


def _labels(name: str, folder: Path) -> tuple[Path, Read]:
    """Write masks, points and names on three frames in a format."""
    place = folder / "written" / FORMATS[name].result
    with open_sink(name, place, LiveSource("clip")) as sink:
        for index in range(3):
            frame = Frame(np.zeros((*SIZE, 3), np.uint8), index, index / 25, f"{index:05d}")
            sink.write(prompt_result(frame, SIZE, _objects()))
    written = min(path for path in place.parent.rglob("*") if path.suffix in FORMATS[name].suffixes)
    # The check of HDF5 files starts Python for each: 130 ms, which the user of one file does not notice.
    hdf5_check._check = _checked_in_fork  # pyright: ignore[reportAttributeAccessIssue]
    return written.rename(folder / f"clip{written.suffix}"), _read_labels


def _read_labels(path: Path) -> None:
    """Read a file as a batch does."""
    annotations = Annotations.of([read_annotations(path, ReadContext("clip", 0, lambda: SIZE))])
    for index in list(annotations.frames)[:50]:
        annotations.usable_on(Frame(np.zeros((*SIZE, 3), np.uint8), index, 0.0, f"{index:05d}"))


def _checked_in_fork(path: str, changed: int, size: int) -> None:
    """Do what `hdf5_check._check` does in a copy of this process, which has the libraries already."""
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            raise ValueError(f"a damaged file, on which its library crashes (signal {os.WTERMSIG(status)})")
        return
    signal.alarm(int(hdf5_check._SECONDS))
    try:
        hdf5_check._read_all(path)
    except Exception:
        os._exit(1)
    finally:
        os._exit(0)


def _prompt(folder: Path) -> tuple[Path, Read]:
    from corrflow.runtime.live.prompt import Prompt, load_prompt, save_prompt

    save_prompt(Prompt(np.zeros((*SIZE, 3), np.uint8), tuple(_objects())), folder / "prompt.npz")
    return folder / "prompt.npz", load_prompt


def _onnx(folder: Path) -> tuple[Path, Read]:
    from corrflow.runtime.artifacts.bundled import BUNDLED
    from corrflow.runtime.artifacts.onnx_check import check_onnx

    path = folder / "propagate.onnx"
    path.write_bytes((BUNDLED / "quarter" / path.name).read_bytes())
    return path, lambda path: check_onnx(path.name, path.read_bytes())


def _artifact(folder: Path) -> tuple[Path, Read]:
    """Write the description of a bundled model; its graphs are one empty graph, so that the description is read."""
    import json

    from corrflow.runtime.artifacts.artifact import DESCRIPTION, load_artifact
    from corrflow.runtime.artifacts.bundled import BUNDLED

    description = json.loads((BUNDLED / "quarter" / DESCRIPTION).read_bytes())
    graph = b"\x08\x08\x3a\x00"
    for name in description["files"]:
        (folder / name).write_bytes(graph)
        description["files"][name] = {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)}
    path = folder / DESCRIPTION
    path.write_text(json.dumps(description))
    return path, lambda path: load_artifact(path.parent)


def _checkpoint(folder: Path) -> tuple[Path, Read]:
    import torch

    from corrflow.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from corrflow.train.config import ModelConfig, TrainConfig
    from corrflow.train.model import Encoder

    config = ModelConfig(widths=(2, 2, 2, 2), feature_channels=2)
    weights = Encoder(config).state_dict()
    save_checkpoint(
        folder / "checkpoint.safetensors", Checkpoint(config, TrainConfig(), 1, weights, {}, torch.zeros(4, 2))
    )
    return folder / "checkpoint.safetensors", load_checkpoint


def _pickle(folder: Path) -> tuple[Path, Read]:
    from corrflow.evaluate.datasets.safe_pickle import read_pickle

    values: dict[str, Any] = {
        "video": np.arange(120, dtype=np.uint8).reshape(2, 4, 5, 3),
        "points": np.zeros((3, 2, 2), np.float32),
        "objects": np.array([b"one", "two", None], dtype=object),
        "numbers": (1, -5, 2**70, 3.5, True, None, np.float32(0.25)),
    }
    (folder / "points.pkl").write_bytes(pickle.dumps({"name": values}))
    return folder / "points.pkl", read_pickle


def _config(folder: Path) -> tuple[Path, Read]:
    from corrflow.command_line import read_config

    (folder / "options.yaml").write_text("steps: 2000\nnames: [a, b]\nrate: 1e-3\n# note\nflag: true\n")
    return folder / "options.yaml", read_config


READERS: dict[str, Callable[[Path], tuple[Path, Read]]] = {
    **{name: partial(_labels, name) for name, entry in FORMATS.items() if entry.read is not None},
    "prompt": _prompt,
    "onnx": _onnx,
    "artifact": _artifact,
    "checkpoint": _checkpoint,
    "pickle": _pickle,
    "config": _config,
}
