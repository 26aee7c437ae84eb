"""Teachers of distillation: encoders whose features a student learns, one or several side by side.

A teacher is a run or checkpoint of `corrflow-train`, a model of `corrflow-track`, or any encoder in ONNX format.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.artifacts.artifact import ENCODE, load_artifact
from corrflow.runtime.artifacts.bundled import bundled_models, resolve_model
from corrflow.runtime.backends.onnx_encoder import OnnxEncoder, OnnxEncoderSession, interpolation_weights
from corrflow.train.checkpoint import FILE_NAME, load_checkpoint
from corrflow.train.data.prepare import sha256_of
from corrflow.train.model import COLOUR_CHANNELS, PIXEL_MEAN, PIXEL_SCALE, Encoder, of_unit_length


@dataclass(frozen=True)
class TeacherRecord:
    """Origin of a teacher for checkpoints and model cards.

    kind:   checkpoint, model (an artifact), or onnx: an encoder of another origin, perhaps trained with labels
    sha256: hash of its file, or of all files of an artifact
    weight: factor of its unit features
    input:  format of the input of an ONNX encoder
    """

    name: str
    kind: str
    sha256: str
    weight: float
    input: dict[str, Any]


class CheckpointTeacher(nn.Module):
    """Encoder of a checkpoint."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, crops: Tensor, cell: int) -> Tensor:
        """Compute features [B, C, S / cell, S / cell] of normalised crops [B, 3, S, S]."""
        maps = self.encoder.cells(crops).to(crops.dtype)
        own, side = self.encoder.config.stride, crops.shape[2]
        if own == cell:
            return maps
        weights = interpolation_weights(side // cell, cell, side, side, maps.shape[2], own)
        with torch.autocast(crops.device.type, enabled=False):
            onto = torch.from_numpy(weights).to(crops)
            return onto @ maps @ onto.T


class OnnxTeacher(nn.Module):
    """Encoder on ONNX Runtime; `channels` cuts off further channels."""

    def __init__(self, session: OnnxEncoderSession, channels: int | None = None) -> None:
        super().__init__()
        self.session, self.channels = session, channels

    def forward(self, crops: Tensor, cell: int) -> Tensor:
        """Compute features [B, C, S / cell, S / cell] of normalised crops [B, 3, S, S]. Raises CorrflowError."""
        pixels = ((crops * PIXEL_SCALE + PIXEL_MEAN) * 255).round().clamp(0, 255).to(torch.uint8)
        images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy()[..., ::-1])
        features = self.session.maps(images).on_cells(images.shape[1:3], cell)[:, : self.channels]
        return torch.from_numpy(features).to(crops)


class Teachers(nn.Module):
    """Teachers as one: their unit features, times their weights, side by side, and of unit length again."""

    def __init__(self, teachers: Sequence[nn.Module], records: Sequence[TeacherRecord]) -> None:
        super().__init__()
        self.teachers, self.records = nn.ModuleList(teachers), tuple(records)
        self.requires_grad_(False).eval()

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify files, weights and formats, but no places."""
        origins = [{name: value for name, value in asdict(record).items() if name != "name"} for record in self.records]
        return hashlib.sha256(json.dumps(origins, sort_keys=True).encode()).hexdigest()[:16]

    @torch.no_grad()
    def forward(self, crops: Tensor, cell: int) -> Tensor:
        """Compute unit features [B, D, S / cell, S / cell] of normalised crops [B, 3, S, S], cells of `cell` pixels.

        Raises CorrflowError where a teacher has none.
        """
        maps = [
            of_unit_length(teacher(crops, cell)) * record.weight
            for teacher, record in zip(self.teachers, self.records, strict=True)
        ]
        return of_unit_length(torch.cat(maps, 1))

    def channels(self, side: int, cell: int) -> int:
        """Return the number of channels, D, for crops of a side. Raises InputError where there are no features."""
        noise = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        crops = ((noise - PIXEL_MEAN) / PIXEL_SCALE).to(next(self.parameters(), noise))
        for teacher, record in zip(self.teachers, self.records, strict=True):
            try:
                finite = bool(torch.isfinite(teacher(crops, cell)).all())
            except CorrflowError as error:
                raise InputError(
                    f"the teacher {record.name} has no features for crops of {side} pixels: {error}"
                ) from None
            if not finite:
                raise InputError(
                    f"expected finite features of the teacher {record.name}, got others; check its input format"
                )
        return self(crops, cell).shape[1]


def load_teachers(names: Sequence[str], weights: Sequence[float], encoder: OnnxEncoder, threads: int) -> Teachers:
    """Load teachers by name or path.

    weights: one for each teacher, or none for equal weights
    encoder: format of the input of all ONNX files; its path is not used

    Raises InputError for a teacher that is missing, damaged or unsafe, and for other numbers of weights.
    """
    weights = list(weights) or [1.0] * len(names)
    if len(weights) != len(names) or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise InputError(
            f"expected a --teacher-weight above 0 for each of {len(names)} teachers, got {weights or 'none'}; repeat it"
        )
    loaded = [_load(name, weight, encoder, threads) for name, weight in zip(names, weights, strict=True)]
    return Teachers([teacher for teacher, _ in loaded], [record for _, record in loaded])


def _load(name: str, weight: float, encoder: OnnxEncoder, threads: int) -> tuple[nn.Module, TeacherRecord]:
    path = Path(name)
    if path.suffix == ".onnx":
        encoder = replace(encoder, path=path)
        session = OnnxEncoderSession(encoder, threads)
        input_format = {field: value for field, value in asdict(encoder).items() if field != "path"}
        return OnnxTeacher(session), TeacherRecord(path.name, "onnx", encoder.sha256, weight, input_format)
    bundled = name in bundled_models()
    if not bundled and not path.exists():
        raise InputError(
            f"expected a teacher: a run, a checkpoint, a model (such as {', '.join(bundled_models())}) or FILE.onnx,"
            f" got {name!r}, where there is nothing; check the path"
        )
    if not bundled and (path.suffix == ".safetensors" or (path / FILE_NAME).is_file()):
        file = path / FILE_NAME if path.is_dir() else path
        with file.open("rb") as content:
            sha256 = sha256_of(content)
        return CheckpointTeacher(load_checkpoint(file).encoder()), TeacherRecord(
            path.resolve().name, "checkpoint", sha256, weight, {}
        )
    artifact = load_artifact(resolve_model(name))
    # Raw colours come last, and have no weights: the export appends them to a student as well.
    shares = artifact.provenance.get("model") or {}
    channels = artifact.channels - (COLOUR_CHANNELS if shares.get("colour_share") else 0)
    content = artifact.with_float_encoder().files[ENCODE]
    session = OnnxEncoderSession(OnnxEncoder(Path(name), "nhwc", "bgr"), threads, content)
    return OnnxTeacher(session, channels), TeacherRecord(artifact.name, "model", artifact.sha256, weight, {})
