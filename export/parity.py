"""Comparison of exported graphs with PyTorch; no artifact is written if they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch

from corrflow.errors import CorrflowError
from corrflow.export.encoder_graph import EncoderPair
from corrflow.plugins.local_soft_copy import torch_reference
from corrflow.plugins.local_soft_copy.spec import SearchWindow, padded_references, used_references
from corrflow.plugins.local_soft_copy.torch_blocked import local_soft_copy
from corrflow.runtime.artifacts.artifact import ENCODE, ENCODE_FP16, PROPAGATE, REFERENCES, STEP
from corrflow.runtime.settings import TrackingSettings
from corrflow.train.model import Encoder, normalise

FEATURES_TOLERANCE = 1e-4
# Relative to the largest feature. float16 convolutions round to 11 bits, and feature_norm enlarges the rounding of runs
# with few steps, whose channels vary little: 0.005 after 118 steps, 0.0007 after 4,000.
HALF_TOLERANCE = 1e-2
LABELS_TOLERANCE = 1e-4
PERTURBATION, STABLE_SHARE = 2e-6, 0.99  # a few rounding errors of features of unit length
# Cells for windows with offsets: only the reference form supports offsets, and it unfolds every window.
_PATCH = (16, 24)


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference between onnxruntime and PyTorch for one input."""

    graph: str
    case: str
    largest: float
    tolerance: float

    @property
    def within_tolerance(self) -> bool:
        """True if the difference is at most the tolerance; False for NaN."""
        return self.largest <= self.tolerance


def torch_features(encoder: Encoder | EncoderPair, frame: np.ndarray) -> torch.Tensor:
    """Compute features [1, C, h, w] of a frame [H, W, 3] uint8, BGR, with PyTorch."""
    image = torch.from_numpy(np.ascontiguousarray(frame[None, ..., ::-1])).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return encoder.eval()(normalise(image))


def differences(
    encoder: Encoder | EncoderPair,
    files: dict[str, bytes],
    settings: TrackingSettings,
    sizes: Sequence[tuple[int, int]],
) -> list[Difference]:
    """Compare the graphs with PyTorch on synthetic frames (height, width), for one and all reference frames."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = {
        name: onnxruntime.InferenceSession(files[name], options, providers=["CPUExecutionProvider"])
        for name in (ENCODE, ENCODE_FP16, PROPAGATE, STEP)
        if name in files
    }
    encode, propagate, step = sessions[ENCODE], sessions[PROPAGATE], sessions.get(STEP)
    generator = np.random.default_rng(0)
    results = []
    for height, width in sizes:
        size = f"{width}x{height}"
        frames = _frames(generator, settings.num_reference_frames + 1, height, width)
        expected = torch.cat([torch_features(encoder, frame) for frame in frames])
        got = np.concatenate([np.asarray(encode.run(None, {"frame": frame[None]})[0]) for frame in frames])
        results.append(Difference(ENCODE, size, _largest(expected.numpy(), got), FEATURES_TOLERANCE))
        half = np.asarray(sessions[ENCODE_FP16].run(None, {"frame": frames[:1]})[0], np.float32)
        scale = max(1.0, float(expected.abs().max()))
        results.append(Difference(ENCODE_FP16, size, _largest(expected[:1].numpy(), half) / scale, HALF_TOLERANCE))

        values = generator.random((settings.num_reference_frames, 8, *got.shape[-2:]), np.float32)
        for count in sorted({1, settings.num_reference_frames}):
            inputs = {"query": got[:1], "keys": got[None, 1 : count + 1], "values": values[None, :count]}
            references = {REFERENCES: _rows(used_references(None, count))} if settings.move_windows else {}
            labels = np.asarray(propagate.run(None, inputs | references)[0])
            query, keys, copied = (torch.from_numpy(inputs[name]) for name in ("query", "keys", "values"))

            def copy(query: torch.Tensor, keys: torch.Tensor = keys, copied: torch.Tensor = copied) -> np.ndarray:
                return local_soft_copy(query, keys, copied, settings.attributes).numpy()

            expected_labels = copy(query)
            stable = _stable(query, expected_labels, copy)
            case = f"{size}, {count} reference{'s' if count > 1 else ''}"
            results.append(Difference(PROPAGATE, case, _largest(expected_labels, labels, stable), LABELS_TOLERANCE))
            if step is not None:
                memory = {"frame": frames[:1], "keys": inputs["keys"], "values": inputs["values"]}
                labels = np.asarray(step.run(["labels"], memory)[0])
                results.append(Difference(STEP, case, _largest(expected_labels, labels, stable), LABELS_TOLERANCE))
        if settings.move_windows:
            results.append(_with_offsets(propagate, got, values, settings, size))
    return results


def _with_offsets(
    propagate: onnxruntime.InferenceSession,
    features: np.ndarray,
    values: np.ndarray,
    settings: TrackingSettings,
    size: str,
) -> Difference:
    """Compare windows with offsets inside and outside the frame, on a patch of features [K + 1, C, h, w]."""
    patch = np.s_[..., : _PATCH[0], : _PATCH[1]]
    query, keys, copied = (np.ascontiguousarray(a[patch]) for a in (features[:1], features[None, 1:], values[None]))
    last = keys.shape[1] - 1
    references = [
        SearchWindow(last, last),
        SearchWindow(0, 0, 2, -3),
        SearchWindow(0),
        SearchWindow(last, last, -_PATCH[0], 5),
    ]
    inputs = {"query": query, "keys": keys, "values": copied}
    labels = np.asarray(propagate.run(None, inputs | {REFERENCES: _rows(padded_references(references, 5))})[0])
    tensors = torch.from_numpy(keys), torch.from_numpy(copied), settings.attributes, references

    def copy(query: torch.Tensor) -> np.ndarray:
        return torch_reference.local_soft_copy(query, *tensors).numpy()

    expected = copy(torch.from_numpy(query))
    stable = _stable(torch.from_numpy(query), expected, copy)
    return Difference(PROPAGATE, f"{size}, with offsets", _largest(expected, labels, stable), LABELS_TOLERANCE)


def _rows(references: Sequence[SearchWindow]) -> np.ndarray:
    return np.array(references, np.int32)


def enforce(results: list[Difference]) -> None:
    """Raise CorrflowError for the first difference beyond its tolerance."""
    for difference in results:
        if not difference.within_tolerance:
            raise CorrflowError(
                f"{difference.graph} differs from PyTorch: expected at most {difference.tolerance:g}, got"
                f" {difference.largest:g} at {difference.case}; nothing was written"
            )


def _frames(generator: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Make frames of smooth coloured noise with small motion: [count, height, width, 3] uint8."""
    coarse = generator.random((3, height // 8 + 12, width // 8 + 12), np.float32)
    fine = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None], scale_factor=8, mode="bilinear")[0]
    noise = generator.random((3, *fine.shape[1:]), np.float32) * 0.1
    scene = ((fine.numpy() * 0.9 + noise) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.stack([scene[3 * t : 3 * t + height, 2 * t : 2 * t + width] for t in range(count)])


def _stable(query: torch.Tensor, labels: np.ndarray, copy: Callable[[torch.Tensor], np.ndarray]) -> np.ndarray:
    """Return [h, w] bool: cells whose label channels [1, N, h, w] do not depend on rounding of the query.

    copy: computes label channels of a query

    Some pairs of scores at the top_k boundary differ by less than their rounding, and then either choice is correct.
    Raises CorrflowError if more than one cell in a hundred is affected.
    """
    perturbation = PERTURBATION * torch.randn(query.shape, generator=torch.Generator().manual_seed(0))
    stable = np.ones(labels.shape[-2:], bool)
    for sign in (1, -1):  # one of both directions reverses the order of two nearly equal scores
        perturbed = copy(query + sign * perturbation)
        stable &= (np.abs(perturbed - labels) <= LABELS_TOLERANCE).all((0, 1))
    if stable.mean() < STABLE_SHARE:
        raise CorrflowError(
            f"expected the labels of {STABLE_SHARE:.0%} of the cells not to depend on rounding, got"
            f" {stable.mean():.1%}; raise the temperature or top_k"
        )
    return stable


def _largest(expected: np.ndarray, got: np.ndarray, cells: np.ndarray | None = None) -> float:
    """Return the largest difference, optionally in `cells` [h, w] only; infinite if the shapes differ."""
    if expected.shape != got.shape:
        return float("inf")
    difference = np.abs(expected - got)
    return float((difference if cells is None else difference[..., cells]).max())
