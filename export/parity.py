"""Holds exported graphs against PyTorch: the same numbers, or no artifact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch

from corrflow.errors import CorrflowError
from corrflow.plugins.local_soft_copy import torch_reference
from corrflow.plugins.local_soft_copy.spec import SearchWindow, filled_up, named_references
from corrflow.plugins.local_soft_copy.torch_blocked import local_soft_copy
from corrflow.runtime.artifacts.artifact import ENCODE, ENCODE_FP16, PROPAGATE, REFERENCES, STEP
from corrflow.runtime.settings import TrackingSettings
from corrflow.train.model import Encoder, normalise

FEATURES_TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-3  # of the largest feature; convolutions in 16 bits round to 11
LABELS_TOLERANCE = 1e-4
NUDGE, STEADY_SHARE = 2e-6, 0.99  # of features of unit length, some roundings
# What moved windows are compared on: the definition, which alone of PyTorch's forms moves any, writes every window out.
_PATCH = (16, 24)


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference between onnxruntime and PyTorch for one input."""

    graph: str
    case: str
    largest: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.largest <= self.tolerance  # False for NaN


def torch_features(encoder: Encoder, frame: np.ndarray) -> torch.Tensor:
    """Features [1, C, h, w] of a frame [H, W, 3] uint8, BGR, straight from PyTorch."""
    image = torch.from_numpy(np.ascontiguousarray(frame[None, ..., ::-1])).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return encoder.eval()(normalise(image))


def differences(
    encoder: Encoder, files: dict[str, bytes], settings: TrackingSettings, sizes: Sequence[tuple[int, int]]
) -> list[Difference]:
    """Run the graphs beside PyTorch on made-up pictures of these sizes (height, width) and one and all references."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = {
        name: onnxruntime.InferenceSession(files[name], options, providers=["CPUExecutionProvider"])
        for name in (ENCODE, ENCODE_FP16, PROPAGATE, STEP)
        if name in files
    }
    encode, propagate, step = sessions[ENCODE], sessions[PROPAGATE], sessions.get(STEP)
    generator = np.random.default_rng(0)
    found = []
    for height, width in sizes:
        size = f"{width}x{height}"
        frames = _pictures(generator, settings.references + 1, height, width)
        expected = torch.cat([torch_features(encoder, frame) for frame in frames])
        got = np.concatenate([np.asarray(encode.run(None, {"frame": frame[None]})[0]) for frame in frames])
        found.append(Difference(ENCODE, size, _largest(expected.numpy(), got), FEATURES_TOLERANCE))
        half = np.asarray(sessions[ENCODE_FP16].run(None, {"frame": frames[:1]})[0], np.float32)
        scale = max(1.0, float(expected.abs().max()))
        found.append(Difference(ENCODE_FP16, size, _largest(expected[:1].numpy(), half) / scale, HALF_TOLERANCE))

        values = generator.random((settings.references, 8, *got.shape[-2:]), np.float32)
        for count in sorted({1, settings.references}):
            inputs = {"query": got[:1], "keys": got[None, 1 : count + 1], "values": values[None, :count]}
            names = {REFERENCES: _rows(named_references(None, count))} if settings.move_windows else {}
            labels = np.asarray(propagate.run(None, inputs | names)[0])
            query, keys, copied = (torch.from_numpy(inputs[name]) for name in ("query", "keys", "values"))

            def unmoved(query: torch.Tensor, keys: torch.Tensor = keys, copied: torch.Tensor = copied) -> np.ndarray:
                return local_soft_copy(query, keys, copied, settings.attributes).numpy()

            truth = unmoved(query)
            steady = _steady(query, truth, unmoved)
            case = f"{size}, {count} reference{'s' if count > 1 else ''}"
            found.append(Difference(PROPAGATE, case, _largest(truth, labels, steady), LABELS_TOLERANCE))
            if step is not None:
                memory = {"frame": frames[:1], "keys": inputs["keys"], "values": inputs["values"]}
                labels = np.asarray(step.run(["labels"], memory)[0])
                found.append(Difference(STEP, case, _largest(truth, labels, steady), LABELS_TOLERANCE))
        if settings.move_windows:
            found.append(_moved(propagate, got, values, settings, size))
    return found


def _moved(
    propagate: onnxruntime.InferenceSession,
    features: np.ndarray,
    values: np.ndarray,
    settings: TrackingSettings,
    size: str,
) -> Difference:
    """Windows that are moved, within the picture and out of it, on a patch of features [K + 1, C, h, w]."""
    patch = np.s_[..., : _PATCH[0], : _PATCH[1]]
    query, keys, copied = (np.ascontiguousarray(a[patch]) for a in (features[:1], features[None, 1:], values[None]))
    last = keys.shape[1] - 1
    named = [
        SearchWindow(last, last),
        SearchWindow(0, 0, 2, -3),
        SearchWindow(0),
        SearchWindow(last, last, -_PATCH[0], 5),
    ]
    inputs = {"query": query, "keys": keys, "values": copied}
    labels = np.asarray(propagate.run(None, inputs | {REFERENCES: _rows(filled_up(named, 5))})[0])
    on_torch = torch.from_numpy(keys), torch.from_numpy(copied), settings.attributes, named

    def moved(query: torch.Tensor) -> np.ndarray:
        return torch_reference.local_soft_copy(query, *on_torch).numpy()

    truth = moved(torch.from_numpy(query))
    steady = _steady(torch.from_numpy(query), truth, moved)
    return Difference(PROPAGATE, f"{size}, moved", _largest(truth, labels, steady), LABELS_TOLERANCE)


def _rows(named: Sequence[SearchWindow]) -> np.ndarray:
    return np.array(named, np.int32)


def enforce(found: list[Difference]) -> None:
    """Raise CorrflowError for the first difference that is too large."""
    for difference in found:
        if not difference.holds:
            raise CorrflowError(
                f"{difference.graph} differs from PyTorch: expected at most {difference.tolerance:g}, got"
                f" {difference.largest:g} at {difference.case}; nothing was written"
            )


def _pictures(generator: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Smooth coloured noise that moves a little: [count, height, width, 3] uint8."""
    coarse = generator.random((3, height // 8 + 12, width // 8 + 12), np.float32)
    fine = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None], scale_factor=8, mode="bilinear")[0]
    noise = generator.random((3, *fine.shape[1:]), np.float32) * 0.1
    scene = ((fine.numpy() * 0.9 + noise) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.stack([scene[3 * t : 3 * t + height, 2 * t : 2 * t + width] for t in range(count)])


def _steady(query: torch.Tensor, labels: np.ndarray, copy: Callable[[torch.Tensor], np.ndarray]) -> np.ndarray:
    """Cells [h, w] bool whose labels do not hang on rounding: [1, N, h, w] stay when the query is nudged to and fro.

    copy: what makes labels of a query

    Among some hundred thousand scores there are pairs that differ by less than their rounding at the boundary of the
    top_k, and either of the two is right there. Raises CorrflowError where that is more than one cell in a hundred.
    """
    nudge = NUDGE * torch.randn(query.shape, generator=torch.Generator().manual_seed(0))
    steady = np.ones(labels.shape[-2:], bool)
    for sign in (1, -1):  # whichever of two scores is ahead, one of both directions takes it back
        nudged = copy(query + sign * nudge)
        steady &= (np.abs(nudged - labels) <= LABELS_TOLERANCE).all((0, 1))
    if steady.mean() < STEADY_SHARE:
        raise CorrflowError(
            f"expected the labels of {STEADY_SHARE:.0%} of the cells not to hang on rounding, got {steady.mean():.1%};"
            " raise the temperature or top_k"
        )
    return steady


def _largest(expected: np.ndarray, got: np.ndarray, cells: np.ndarray | None = None) -> float:
    """Largest difference, in these cells [h, w] alone where they are given; infinite where the shapes differ."""
    if expected.shape != got.shape:
        return float("inf")
    apart = np.abs(expected - got)
    return float((apart if cells is None else apart[..., cells]).max())
