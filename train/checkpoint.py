"""Checkpoints: one safetensors file with weights, optimiser state, colour codebook and the whole configuration."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from corrflow.atomic_files import whole_file
from corrflow.errors import InputError
from corrflow.train.config import ModelConfig, TrainConfig
from corrflow.train.model import Encoder

FILE_NAME = "checkpoint.safetensors"
FORMAT_VERSION = 1


def kept_checkpoint(run: Path, step: int) -> Path:
    """Where `corrflow-train --keep-every` leaves the checkpoint of a step."""
    return run / "kept" / f"{step:07d}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A training run at the end of a step.

    step:       optimiser steps done
    model_state: the encoder's state_dict
    optimiser:  {"<parameter>/<moment>": tensor} of Adam
    codebook:   [colours, 2 or 3] float32, centroids in the (a, b) plane or in Lab
    provenance: where the weights come from: data, minutes of training, versions
    average:    moving average of the encoder's state_dict, which is what is exported; empty where none was kept
    scaler:     [2] float64, float16's loss scale and the steps since it last changed; empty in other precisions
    """

    model: ModelConfig
    train: TrainConfig
    step: int
    model_state: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    codebook: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    scaler: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))

    def encoder(self) -> Encoder:
        """The encoder with these weights, in evaluation mode."""
        encoder = Encoder(self.model)
        encoder.load_state_dict(self.average or self.model_state)
        return encoder.eval()


def digest(state: dict[str, Tensor]) -> str:
    """16 hexadecimal digits that stand for these weights."""
    whole = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file whole or not at all (a temporary file, then a rename)."""
    tensors = {f"model/{name}": tensor.contiguous() for name, tensor in checkpoint.model_state.items()}
    tensors |= {f"optimiser/{name}": tensor.contiguous() for name, tensor in checkpoint.optimiser.items()}
    tensors |= {f"average/{name}": tensor.contiguous() for name, tensor in checkpoint.average.items()}
    tensors |= {"codebook": checkpoint.codebook, "scaler": checkpoint.scaler}
    description = {
        "format": FORMAT_VERSION,
        "model": asdict(checkpoint.model),
        "train": asdict(checkpoint.train),
        "step": checkpoint.step,
        "provenance": checkpoint.provenance,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        save_file(tensors, part, metadata={"corrflow": json.dumps(description)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file, or the one in a run's folder.

    Raises InputError where it is missing, damaged or not one of ours.
    """
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise InputError(f"expected a checkpoint at {path}, found none; corrflow-train --out writes it there")
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
            model_state=_below("model/", tensors),
            optimiser=_below("optimiser/", tensors),
            codebook=tensors["codebook"],
            provenance=description["provenance"],
            average=_below("average/", tensors),
            scaler=tensors.get("scaler", torch.empty(0, dtype=torch.float64)),
        )
        checkpoint.encoder()
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is damaged or not a corrflow checkpoint ({reason}); restore it from a copy or train again"
        ) from error
    return checkpoint


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Adam's moments by parameter name; `names` in the order the optimiser got its parameters."""
    state = optimiser.state_dict()["state"]
    return {f"{names[index]}/{key}": value for index, entry in state.items() for key, value in entry.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Put moments written by `optimiser_tensors` back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, moment = key.rsplit("/", 1)
        state.setdefault(names.index(parameter), {})[moment] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
