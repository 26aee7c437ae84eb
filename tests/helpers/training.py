"""What tests of training share: footage, a run in one piece and one with stops, and the comparison of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch

from corrflow.train import loop
from corrflow.train.checkpoint import Checkpoint, load_checkpoint
from corrflow.train.config import ModelConfig, TrainConfig
from corrflow.train.data.clips import ClipSampler
from corrflow.train.distributed import DistributedContext
from corrflow.train.teachers import Teachers
from helpers.panning import write_panning_images


def write_footage(root: Path, images: int = 0) -> Path:
    """Write videos/ with two folders of twelve frames, and images/ with a number of images; return the folder."""
    for seed in range(2):
        write_panning_images(root / "videos" / str(seed), seed)
    for seed in range(images):
        (root / "images").mkdir(exist_ok=True)
        image = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
        cv2.imwrite(str(root / "images" / f"{seed}.png"), cv2.resize(image, (96, 72)))
    return root


def train_whole_and_in_parts(
    folder: Path,
    model: ModelConfig,
    config: TrainConfig,
    sampler: ClipSampler,
    steps: int = 3,
    teachers: Callable[[], Teachers | None] = lambda: None,
) -> tuple[Checkpoint, Checkpoint]:
    """Train in folder/whole, and the same with a stop after every step in folder/parts; return the checkpoints.

    teachers: loads the teachers of distillation for each run
    """
    for name, stops in (("whole", [steps]), ("parts", range(1, steps + 1))):
        out = folder / name
        out.mkdir()
        for stop in stops:
            saved = loop.resume(out, model, config)
            trainer = loop.prepare(model, config, sampler, None, DistributedContext(), teachers())
            if saved is not None:
                trainer.load(saved)
            loop.train(out, trainer, sampler, saved.step if saved else 0, {}, 100, 100, stop_at=stop)
    return load_checkpoint(folder / "whole"), load_checkpoint(folder / "parts")


def assert_same_tensors(states: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> None:
    """Assert that two states have the same tensors, to the bit."""
    assert states.keys() == others.keys()
    for name, tensor in states.items():
        assert torch.equal(tensor, others[name]), name


def assert_same_states(one: Checkpoint, two: Checkpoint, *names: str) -> None:
    """Assert that two checkpoints have the same tensors, to the bit, in these states, none of them empty."""
    for name in names:
        assert getattr(one, name), name
        assert_same_tensors(getattr(one, name), getattr(two, name))
