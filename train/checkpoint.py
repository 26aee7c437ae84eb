"""Checkpoints: one safetensors file of weights, optimiser state, colour codebook and configuration."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from corrflow.atomic_files import AtomicFile
from corrflow.errors import InputError
from corrflow.file_budget import regular_size
from corrflow.train.config import ModelConfig, TrainConfig
from corrflow.train.model import Encoder

FILE_NAME = "checkpoint.safetensors"
FORMAT_VERSION = 2
MAX_WIDTH = 8192


def retained_checkpoint(run: Path, step: int) -> Path:
    """Return the path of a checkpoint that `corrflow-train --keep-every` retains."""
    return run / "retained" / f"{step:07d}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Training run at the end of a step.

    step:        completed optimiser steps
    model_state: state_dict of the encoder
    optimiser:   {"<parameter>/<moment>": tensor} of Adam
    codebook:    [colours, 2 or 3] float32, centroids in the (a, b) plane or in Lab
    provenance:  origin of the weights: data, minutes of training, versions
    ema:         moving average of the encoder's state_dict, which is exported; empty if the run has none
    scaler:      [2] float64, loss scale of float16 and steps since its last change; empty for other precisions
    pixel:       state_dict of `PixelLevel`; empty for a run without the pixel-level objective
    frame:       state_dict of `FrameLevel`; empty for a run without the frame-level objective
    distil:      state_dict of `Distillation`; empty for a run without teachers
    """

    model: ModelConfig
    train: TrainConfig
    step: int
    model_state: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    codebook: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)
    scaler: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    pixel: dict[str, Tensor] = field(default_factory=dict)
    frame: dict[str, Tensor] = field(default_factory=dict)
    distil: dict[str, Tensor] = field(default_factory=dict)

    def encoder(self) -> Encoder:
        """Return the encoder with the averaged weights, or else with the last ones, in evaluation mode."""
        encoder = Encoder(self.model)
        encoder.load_state_dict(self.ema or self.model_state)
        return encoder.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint by atomic rename. Raises OSError."""
    tensors = {f"model/{name}": tensor.contiguous() for name, tensor in checkpoint.model_state.items()}
    tensors |= {f"optimiser/{name}": tensor.contiguous() for name, tensor in checkpoint.optimiser.items()}
    tensors |= {f"ema/{name}": tensor.contiguous() for name, tensor in checkpoint.ema.items()}
    tensors |= {f"pixel/{name}": tensor.contiguous() for name, tensor in checkpoint.pixel.items()}
    tensors |= {f"frame/{name}": tensor.contiguous() for name, tensor in checkpoint.frame.items()}
    tensors |= {f"distil/{name}": tensor.contiguous() for name, tensor in checkpoint.distil.items()}
    tensors |= {"codebook": checkpoint.codebook, "scaler": checkpoint.scaler}
    description = {
        "format": FORMAT_VERSION,
        "model": asdict(checkpoint.model),
        "train": asdict(checkpoint.train),
        "step": checkpoint.step,
        "provenance": checkpoint.provenance,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with AtomicFile(path) as part:
        save_file(tensors, part, metadata={"corrflow": json.dumps(description)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file, or the checkpoint in the folder of a run.

    Raises InputError if the file is missing, damaged or no checkpoint.
    """
    if path.is_dir():
        path = path / FILE_NAME
    if not path.exists():
        raise InputError(f"expected a checkpoint at {path}, found none; corrflow-train --out writes it there")
    regular_size(path)
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["corrflow"])
            if description["format"] != FORMAT_VERSION:
                raise InputError(
                    f"{path}: expected checkpoint format {FORMAT_VERSION}, got {description['format']};"
                    " use the version of corrflow that wrote it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = ModelConfig(**(description["model"] | {"widths": tuple(description["model"]["widths"])}))
        checkpoint = Checkpoint(
            model=model,
            train=TrainConfig(**description["train"]),
            step=int(description["step"]),
            model_state=_with_prefix("model/", tensors),
            optimiser=_with_prefix("optimiser/", tensors),
            codebook=tensors["codebook"],
            provenance=description["provenance"],
            ema=_with_prefix("ema/", tensors),
            scaler=tensors.get("scaler", torch.empty(0, dtype=torch.float64)),
            pixel=_with_prefix("pixel/", tensors),
            frame=_with_prefix("frame/", tensors),
            distil=_with_prefix("distil/", tensors),
        )
        _check_shapes(checkpoint)
    except InputError:
        raise
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is damaged or not a corrflow checkpoint ({reason}); restore it from a copy or train again"
        ) from error
    return checkpoint


def _check_shapes(checkpoint: Checkpoint) -> None:
    """Raise ValueError for weights that do not fit the configuration, before memory is taken for an encoder."""
    widths = (*checkpoint.model.widths, checkpoint.model.feature_channels)
    if len(widths) != 5 or not all(isinstance(width, int) and 1 <= width <= MAX_WIDTH for width in widths):
        raise ValueError(f"widths {widths!r:.80}, which are not 4 from 1 to {MAX_WIDTH}")
    with torch.device("meta"):
        encoder = Encoder(checkpoint.model)
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    for state in (checkpoint.ema or checkpoint.model_state, checkpoint.model_state):
        if (found := {name: tuple(tensor.shape) for name, tensor in state.items()}) != expected:
            different = sorted(dict(expected.items() ^ found.items()))
            raise ValueError(f"weights of other shapes than the configuration says, such as {different[0]}")


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return Adam's moments by parameter name; `names` has the order of the optimiser's parameters."""
    state = optimiser.state_dict()["state"]
    return {f"{names[index]}/{key}": value for index, entry in state.items() for key, value in entry.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Load the moments that `optimiser_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, moment = key.rsplit("/", 1)
        state.setdefault(names.index(parameter), {})[moment] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
