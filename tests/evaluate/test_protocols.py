"""Protocols compared with a brute-force tracker in NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from corrflow.errors import InputError
from corrflow.evaluate.methods.protocols import PROTOCOLS, apply_protocol
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.backends.memory import MemoryRing
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

HEIGHT, WIDTH, FRAMES = 44, 60, 58  # 11x15 cells; past the 50 frames of hvc and three dilations of mast
SETTINGS = TrackingSettings(
    short_side=0, radius=(3,), top_k=7, temperature=0.08, recent_offsets=(1, 2, 4), dilation=(2,)
)

# The table of docs/evaluation.md: reference frames, radius in pixels, top k, temperature, hard labels.
MODEL_SEARCH = (lambda t: {0, t - 1, t - 2, t - 4}, 3 * 2 * 4, 7, 0.08, False)
TABLE = {
    "default": MODEL_SEARCH,
    "plain": MODEL_SEARCH,
    "paper": (lambda t: {t - 1}, 6 * 4, 0, 0.08, True),
    "mast": (lambda t: {0, 5, t - 5, t - 3, t - 1}, 6 * 4, 0, 0.08, False),
    "crw": (lambda t: {0, *range(t - 20, t)}, 12 * 8, 10, 0.05, False),
    "vfs": (lambda t: {0, *range(t - 20, t)}, 24 * 4, 10, 0.07, False),
    "hvc": (lambda t: set(range(t - 50, t)), 12 * 4, 15, 0.1, False),
}


def clip() -> tuple[np.ndarray, np.ndarray]:
    """Render frames [T, H, W, 3] uint8 of a textured square that circles over texture, and its masks."""
    generator = np.random.default_rng(3)
    background = generator.integers(0, 255, (HEIGHT // 4, WIDTH // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    texture = generator.integers(0, 255, (4, 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    frames, masks = [], []
    for t in range(FRAMES):
        frame, mask = background.copy(), np.zeros((HEIGHT, WIDTH), bool)
        top, left = round(14 + 11 * np.sin(t / 6)), round(22 + 18 * np.cos(t / 9))
        frame[top : top + 16, left : left + 16], mask[top : top + 16, left : left + 16] = texture, True
        frames.append(frame)
        masks.append(mask)
    return np.stack(frames), np.stack(masks)


def integer_features(frame: np.ndarray, working: object = None) -> np.ndarray:
    """Compute features [C, h, w] float32 from small integers over a power of two, whose dot products are exact."""
    cells = cv2.resize(frame, (-(-frame.shape[1] // 4), -(-frame.shape[0] // 4)), interpolation=cv2.INTER_AREA)
    centred = (cells.astype(np.float32) - 128) // 8 / 16
    grey = centred.sum(2, keepdims=True) // 1
    shifted = [np.roll(grey, shift, axis) for shift in (1, -1) for axis in (0, 1)]
    return np.ascontiguousarray(np.concatenate([centred, *shifted], 2).transpose(2, 0, 1))


def brute_force(features: list[np.ndarray], first: np.ndarray, name: str, orders: list[list[int]]) -> list[np.ndarray]:
    """Compute the soft mask [h, w] float64 of every frame from the scores of all cells, by the table."""
    frames_of, pixels, top_k, temperature, hard = TABLE[name]
    _, rows, columns = features[0].shape
    y, x = (axis.ravel() for axis in np.mgrid[:rows, :columns])
    soft = [first.astype(np.float64)]
    sources_of = [soft[0] > 0.5 if hard else soft[0]]
    for t in range(1, len(features)):
        references = {frame for frame in frames_of(t) if 0 <= frame < t}
        assert references == set(orders[t])
        scores, sources = [], []
        for reference in orders[t]:  # the order matters for exact ties only
            step = {"default": 2, "plain": 2}.get(name, 1)
            if name == "mast" and t - reference > 15:
                step = min(4, 1 + (t - reference) // 15)
                reach = step * pixels // 4
            else:
                reach = pixels // 4
            dy, dx = y[None] - y[:, None], x[None] - x[:, None]
            inside = (abs(dy) <= reach) & (abs(dx) <= reach) & (dy % step == 0) & (dx % step == 0)
            query, key = (features[k].reshape(len(features[k]), -1).astype(np.float64) for k in (t, reference))
            scores.append(np.where(inside, query.T @ key / temperature, -np.inf))
            sources.append(sources_of[reference].astype(np.float64).ravel())
        score, source = np.concatenate(scores, 1), np.concatenate(sources)
        if top_k:
            beyond = np.argsort(-score, axis=1, kind="stable")[:, top_k:]
            np.put_along_axis(score, beyond, -np.inf, 1)
        weight = np.exp(score - score.max(1, keepdims=True))
        copied = (weight @ source / weight.sum(1)).reshape(rows, columns)
        soft.append(copied)
        sources_of.append(copied > 0.5 if hard else copied)
    return soft


@pytest.fixture(scope="module")
def backend(small_artifact: Path):
    if cpu.unavailable():
        pytest.skip(cpu.unavailable())
    # Integer features have ties, which are exact in 32 bits only.
    artifact = replace(load_artifact(small_artifact), settings=SETTINGS, channels=7)
    opened = OnnxRuntimeBackend(artifact, threads=1, fused=True, bits=32)
    opened.encode = integer_features  # type: ignore[method-assign]
    yield opened
    opened.close()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocol_matches_a_brute_force_tracker(backend, name: str) -> None:
    frames, masks = clip()
    tracker = Tracker(backend, apply_protocol(name, SETTINGS))
    tracker.start(frames[0], [MaskObject(1, masks[0])])
    copied, predicted, orders = [np.zeros(0)], [masks[0]], [[]]
    propagate = backend.propagate

    def recorded(query: np.ndarray, memory: MemoryRing, plan: SearchPlan) -> np.ndarray:
        orders.append([reference.frame for reference in memory.references])
        soft_masks = propagate(query, memory, plan)
        copied.append(soft_masks[0])
        return soft_masks

    backend.propagate = recorded
    try:
        predicted += [tracker.step(frame).mask == 1 for frame in frames[1:]]
    finally:
        backend.propagate = propagate

    geometry = Geometry.of((HEIGHT, WIDTH), 0)
    features = [integer_features(frame) for frame in frames]
    expected = brute_force(features, geometry.mask_to_cells(masks[0]), name, orders)
    upsample = geometry.upsampler()
    for t in range(1, FRAMES):
        assert np.abs(copied[t] - expected[t]).max() < 1e-5, t
        soft_mask = upsample(expected[t][None].astype(np.float32))[0]
        decided = np.abs(soft_mask - 0.5) > 1e-4  # ties between object and background are not compared
        np.testing.assert_array_equal(predicted[t][decided], soft_mask[decided] > 0.5)


def test_unknown_protocols_are_refused() -> None:
    with pytest.raises(InputError, match="crw, vfs, hvc, got 'stc'"):
        apply_protocol("stc", SETTINGS)
