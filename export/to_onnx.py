"""A checkpoint becomes an artifact: build the graphs, compare them with PyTorch, write them."""

from __future__ import annotations

import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from corrflow.export.compare import Difference, differences, enforce
from corrflow.export.graphs import encode_model
from corrflow.export.propagation import propagate_model
from corrflow.plugins.errors import InputError
from corrflow.runtime.artifact import ENCODE, PROPAGATE, TrackingSettings, save_artifact
from corrflow.train.checkpoint import Checkpoint, load_checkpoint
from corrflow.train.config import preset
from corrflow.train.model import Encoder, new_encoder

UNTRAINED = "untrained:"
ODD_SIZE = (117, 203)  # divisible by nothing that the graphs work in


def read_encoder(source: str) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of a run folder or checkpoint file, or a new one for "untrained:PRESET", and where it is from.

    Raises InputError where there is none.
    """
    if source.startswith(UNTRAINED):
        model = preset(source.removeprefix(UNTRAINED))
        return new_encoder(model, seed=0), {"model": asdict(model), "untrained": True}
    checkpoint: Checkpoint = load_checkpoint(Path(source))
    provenance = {
        "model": asdict(checkpoint.model),
        "train": asdict(checkpoint.train),
        "steps": checkpoint.step,
        **checkpoint.provenance,
    }
    return checkpoint.encoder(), provenance


def export_artifact(source: str, artifact: Path, settings: TrackingSettings, size: tuple[int, int]) -> list[Difference]:
    """Write the artifact of a run; returns how far each graph is from PyTorch.

    size: (height, width) at which the graphs are compared, besides an odd one. Raises CorrflowError, with nothing
    written, where they differ, and InputError where the run or the settings are wrong.
    """
    encoder, provenance = read_encoder(source)
    if artifact.exists() and not artifact.is_dir():
        raise InputError(f"expected a folder to write the artifact to, got the file {artifact}; name another")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks on its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        encode = encode_model(encoder)
    channels = encoder.config.feature_channels
    files = {
        ENCODE: encode.SerializeToString(),
        PROPAGATE: propagate_model(settings.attributes, channels).SerializeToString(),
    }
    found = differences(encoder, files, settings, [size, ODD_SIZE])
    enforce(found)
    save_artifact(artifact, files, channels, settings, provenance)
    return found
