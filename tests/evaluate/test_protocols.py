"""Protocols compared with a brute-force tracker in NumPy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from corrflow.errors import InputError
from corrflow.evaluate.methods.disc_search import DiscBackend
from corrflow.evaluate.methods.protocols import PROTOCOLS, apply_protocol, apply_search
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.runtime.artifacts.artifact import Artifact, load_artifact
from corrflow.runtime.backends.base import Backend
from corrflow.runtime.backends.memory import MemoryRing
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

# 11x15 cells of 4 pixels, 6x8 of 8 pixels; past the 50 frames of hvc and three dilations of mast.
HEIGHT, WIDTH, FRAMES = 44, 60, 58
SETTINGS = TrackingSettings(
    short_side=0, radius=(3,), top_k=7, temperature=0.08, recent_offsets=(1, 2, 4), dilation=(2,)
)

# The table of docs/evaluation.md: reference frames, radius in cells, top k, temperature, hard labels.
MODEL_SEARCH = (lambda t: {0, t - 1, t - 2, t - 4}, 3 * 2, 7, 0.08, False)
SQUARES = {
    "default": MODEL_SEARCH,
    "plain": MODEL_SEARCH,
    "paper": (lambda t: {t - 1}, 6, 0, 0.08, True),
    "mast": (lambda t: {0, 5, t - 5, t - 3, t - 1}, 6, 0, 0.08, False),
}
# Protocols of discs of 12 cells: number of recent frames, top k, temperature, whole first frame.
DISCS = {"crw": (20, 10, 0.05, True), "vfs": (20, 10, 0.07, False), "hvc": (50, 15, 0.1, True)}


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
    frames_of, radius, top_k, temperature, hard = SQUARES[name]
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
                reach = step * radius
            else:
                reach = radius
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


@pytest.mark.parametrize("name", SQUARES)
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


def test_every_protocol_is_compared_with_brute_force() -> None:
    assert {*SQUARES, *DISCS} == set(PROTOCOLS)


@dataclass(frozen=True)
class GivenFeatures:
    """Source of random features on cells of 4 pixels, which differ from frame to frame."""

    artifact: Artifact

    def describe(self) -> dict[str, Any]:
        return {"name": "given"}

    def open(self, settings: TrackingSettings, threads: int) -> Backend:
        backend = OnnxRuntimeBackend(self.artifact, threads=1, fused=True)
        generator = np.random.default_rng(2)

        def encode(frame: np.ndarray, working: tuple[int, int]) -> np.ndarray:
            return generator.normal(size=(5, -(-working[0] // 4), -(-working[1] // 4))).astype(np.float32)

        backend.encode = encode  # type: ignore[method-assign]
        return backend


def exact(features: np.ndarray) -> np.ndarray:
    """Return features [C, h, w] as the search rounds them, in float64."""
    return np.rint(features.astype(np.float64) * 32767) / 32767


def disc_brute_force(
    query: np.ndarray,
    references: list[tuple[np.ndarray, np.ndarray, bool]],
    radius: int,
    top_k: int,
    temperature: float,
) -> np.ndarray:
    """Compute the soft masks [N, h, w] from (features, soft masks, whole) of the references in the order of ties."""
    channels, rows, columns = query.shape
    y, x = (axis.ravel() for axis in np.mgrid[:rows, :columns])
    inside = (y[None] - y[:, None]) ** 2 + (x[None] - x[:, None]) ** 2 < radius**2
    scores, sources = [], []
    for features, soft_masks, whole in references:
        score = query.reshape(channels, -1).T @ features.reshape(channels, -1) / temperature
        scores.append(np.where(inside | whole, score, -np.inf))
        sources.append(soft_masks.reshape(len(soft_masks), -1))
    score, source = np.concatenate(scores, 1), np.concatenate(sources, 1)
    best = np.argsort(-score, axis=1, kind="stable")[:, :top_k]
    weight = np.exp(np.take_along_axis(score, best, 1) - score.max(1, keepdims=True))
    copied = (source[:, best] * weight).sum(2) / weight.sum(1)
    return copied.reshape(-1, rows, columns)


@pytest.mark.parametrize("name", DISCS)
def test_disc_protocol_matches_a_brute_force_tracker(name: str, small_artifact: Path) -> None:
    """Compare on frames wider than a disc: 10x16 cells of 8 pixels."""
    if cpu.unavailable():
        pytest.skip(cpu.unavailable())
    recent, top_k, temperature, whole = DISCS[name]
    settings = apply_protocol(name, replace(SETTINGS, hard_labels=True, move_windows=True, dilation=(2,)))
    backend = apply_search(name, GivenFeatures(load_artifact(small_artifact))).open(settings, 1)
    tracker = Tracker(backend, settings)
    features: list[np.ndarray] = []
    encode = backend.encode

    def recorded(frame: np.ndarray, working: tuple[int, int] | None = None) -> np.ndarray:
        features.append(encode(frame, working))
        return features[-1]

    backend.encode = recorded  # type: ignore[method-assign]
    mask = np.zeros((74, 126), bool)
    mask[10:40, 20:70] = True
    frame = np.zeros((74, 126, 3), np.uint8)
    tracker.start(frame, [MaskObject(1, mask)])
    geometry = Geometry.of(mask.shape, 0, 8)
    assert geometry.cells == (10, 16) == features[0].shape[1:]
    assert np.abs(np.linalg.norm(features[0], axis=0) - 1).max() < 1e-5
    soft = [geometry.mask_to_cells(mask)[None].astype(np.float64)]
    compared = {1, 2, recent, recent + 1, recent + 3}
    for t in range(1, recent + 4):
        copied = tracker.soft_step(frame)[1]
        if t in compared:
            # Slots: the first frame, then a ring.
            slots = sorted(range(max(1, t - recent), t), key=lambda index: (index - 1) % recent)
            references = [(exact(features[index]), soft[index], whole and index == 0) for index in (0, *slots)]
            expected = disc_brute_force(exact(features[t]), references, 12, top_k, temperature)
            np.testing.assert_allclose(copied, expected, atol=1e-5, err_msg=str(t))
        soft.append(copied)
    tracker.close()


def test_equal_scores_go_to_the_earlier_frame_row_and_column_of_a_disc(small_artifact: Path) -> None:
    if cpu.unavailable():
        pytest.skip(cpu.unavailable())
    backend = DiscBackend(OnnxRuntimeBackend(load_artifact(small_artifact), 1, fused=True), False, 1)
    settings = replace(SETTINGS, permanent_frames=(0,), recent_offsets=(1, 2), dilation=(1,))
    features = np.zeros((3, 9, 11), np.float32)
    features[0] = 1
    backend._channels = 3
    memory = backend.new_memory(settings, 2, (9, 11))
    soft_masks = np.random.default_rng(0).random((3, 2, 9, 11)).astype(np.float32)
    for masks in soft_masks:
        memory.add_frame(features, masks)
    # A disc of radius 3 has 25 cells, so that the 30 best of equal scores come from two frames.
    plan = SearchPlan.of(memory.references, Attributes((3,), (1,), 30, 0.1))
    references = [(exact(features), masks.astype(np.float64), False) for masks in soft_masks]
    expected = disc_brute_force(exact(features), references, 3, 30, 0.1)
    np.testing.assert_allclose(backend.propagate(features, memory, plan), expected, atol=1e-5)


def test_features_of_four_pixels_are_averaged_to_eight(small_artifact: Path) -> None:
    if cpu.unavailable():
        pytest.skip(cpu.unavailable())
    inner = OnnxRuntimeBackend(load_artifact(small_artifact), 1, fused=True)
    fine = np.random.default_rng(1).normal(size=(4, 5, 6)).astype(np.float32)
    inner.encode = lambda frame, working=None: fine  # type: ignore[method-assign]
    got = DiscBackend(inner, True, 1).encode(np.zeros((20, 24, 3), np.uint8))
    padded = np.concatenate([fine, fine[:, -1:]], 1)  # a cell beyond the frame repeats the last one
    mean = (padded[:, ::2, ::2] + padded[:, 1::2, ::2] + padded[:, ::2, 1::2] + padded[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(got, mean / np.linalg.norm(mean, axis=0), atol=1e-5)


def test_unknown_protocols_are_refused() -> None:
    with pytest.raises(InputError, match="crw, vfs, hvc, got 'stc'"):
        apply_protocol("stc", SETTINGS)
