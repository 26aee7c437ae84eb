"""The bundled model on real video: onnxruntime matches PyTorch, and keypoints beat the identity baseline."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.paths import ROOT

from corrflow.evaluate.datasets.masks import MaskSequence, open_davis
from corrflow.export.to_onnx import read_encoder
from corrflow.plugins.local_soft_copy.torch_blocked import local_soft_copy
from corrflow.runtime.artifacts.artifact import Artifact, load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.base import CpuBackend
from corrflow.runtime.backends.memory import MemoryRing
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.backends.resize import resize
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import STRIDE, TrackingSettings, with_settings
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import KeypointsObject

pytestmark = pytest.mark.long

# Smaller than the bundled model's, and more frames than its memory has slots, to save time.
SHORT_SIDE, FRAMES = 96, 20


class TorchBackend(CpuBackend):
    """`base.Backend` with the checkpoint that the bundled artifact was exported from."""

    name = "torch"
    supports_runtime_search_params, supports_window_offsets = True, False
    stride = STRIDE

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        model = artifact.provenance["model"]
        self._encoder, _ = read_encoder(
            str(ROOT / "checkpoints" / "quarter"), model["colour_share"], model["coarse_share"]
        )

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> np.ndarray:
        from corrflow.export.parity import torch_features

        frame = frame if working is None else resize(frame, working)
        return torch_features(self._encoder, frame)[0].numpy()

    def new_memory(self, settings: TrackingSettings, num_channels: int, cells: tuple[int, int]) -> MemoryRing:
        return MemoryRing(settings, num_channels, cells, self.artifact.channels)

    def propagate(self, query: np.ndarray, memory: MemoryRing, plan: SearchPlan) -> np.ndarray:
        keys, values = memory.stacked(plan.slots)
        tensors = (torch.from_numpy(array)[None] for array in (query, keys, values))
        with torch.no_grad():
            return local_soft_copy(*tensors, plan.params)[0].numpy()  # pyright: ignore[reportCallIssue]

    def close(self) -> None: ...


class ComparingBackend(OnnxRuntimeBackend):
    """Backend that computes everything with onnxruntime and with PyTorch, and records the largest differences."""

    def __init__(self, artifact: Artifact, fused: bool) -> None:
        super().__init__(artifact, fused=fused, bits=32)
        self.other = TorchBackend(artifact)
        self.features_apart = self.soft_masks_apart = 0.0

    def encode(self, frame: np.ndarray, working: tuple[int, int] | None = None) -> np.ndarray:
        features = super().encode(frame, working)
        apart = np.abs(features - self.other.encode(frame, working)).max()
        self.features_apart = max(self.features_apart, float(apart))
        return features

    def propagate(self, query: np.ndarray, memory: MemoryRing, plan: SearchPlan) -> np.ndarray:
        soft_masks = super().propagate(query, memory, plan)
        apart = np.abs(soft_masks - self.other.propagate(query, memory, plan)).max()
        self.soft_masks_apart = max(self.soft_masks_apart, float(apart))
        return soft_masks


@pytest.fixture(scope="module")
def dance(shared_data: Path) -> MaskSequence:
    (sequence,) = (found for found in open_davis(shared_data / "davis-dev", "dev") if found.name == "dance-jump")
    return sequence


def track(backend, sequence: MaskSequence) -> list[np.ndarray]:
    # Every form of the op has unmoved windows; the tests of the op cover moved windows.
    settings = replace(with_settings(backend.artifact.settings, short_side=SHORT_SIDE), move_windows=False)
    tracker = Tracker(backend, settings)
    frames = islice(sequence.frames(), FRAMES)
    masks = [tracker.start(next(frames).image, sequence.prompts()).mask]
    return masks + [tracker.step(frame.image).mask for frame in frames]


@pytest.fixture(scope="module")
def unquantised() -> Artifact:
    """The bundled model with its fp32 encoder, which is that of PyTorch."""
    return load_artifact(resolve_model(None)).with_float_encoder()


@pytest.fixture(scope="module")
def through_torch(dance: MaskSequence, unquantised: Artifact) -> list[np.ndarray]:
    return track(TorchBackend(unquantised), dance)


@pytest.mark.parametrize("fused", [True, False], ids=["fused kernel", "ONNX function"])
def test_onnxruntime_and_pytorch_agree_on_real_video(
    dance: MaskSequence, through_torch: list[np.ndarray], unquantised: Artifact, fused: bool
) -> None:
    comparing = ComparingBackend(unquantised, fused)
    through_onnx = track(comparing, dance)
    assert comparing.features_apart < 1e-4
    # Two scores that rounding swaps at the top_k boundary exchange candidates of nearly the same small weight.
    assert comparing.soft_masks_apart < 1e-4
    same = np.mean([np.mean(first == second) for first, second in zip(through_onnx, through_torch, strict=True)])
    assert same >= 0.999


def test_keypoints_stay_on_a_real_animal(shared_data: Path) -> None:
    """BADJA's joints of the bear: closer to the truth after a second than joints that never moved."""
    annotation = json.loads((shared_data / "keypoints" / "badja_bear.json").read_text())
    folder = shared_data / "davis-dev" / "JPEGImages" / "480p" / "bear"
    first, last = (sorted(annotation["frames"])[index] for index in (0, 5))
    points, true = (np.array(annotation["frames"][name], np.float32) for name in (first, last))
    seen = (points[:, 2] > 0) & (true[:, 2] > 0)
    points, true = points[seen, :2], true[seen, :2]
    images = [cv2.imread(str(folder / f"{number:05d}.jpg")) for number in range(int(first), int(last) + 1)]
    backend = OnnxRuntimeBackend(load_artifact(resolve_model(None)))
    tracker = Tracker(backend, with_settings(backend.artifact.settings, short_side=240))
    names = tuple(name for name, used in zip(annotation["keypoint_names"], seen, strict=True) if used)
    tracks = tracker.start(np.asarray(images[0]), [KeypointsObject(1, points, names)])
    for image in images[1:]:
        tracks = tracker.step(np.asarray(image))
    found = tracks.objects[0].points
    assert found is not None
    assert np.median(np.linalg.norm(found - true, axis=1)) < 0.7 * np.median(np.linalg.norm(points - true, axis=1))
