"""The GPU backend tracks as the CPU backend does, on a CUDA runtime of NumPy arrays (fakes.py)."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import fakes

from corrflow.errors import CorrflowError, InputError
from corrflow.export.step_graph import graphs_of_settings
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.runtime.artifacts.artifact import ENCODE, Artifact, load_artifact
from corrflow.runtime.backends.cuda_device import CudaDevice
from corrflow.runtime.backends.gpu import DeviceBackend, DeviceMemory
from corrflow.runtime.backends.onnxruntime_cuda import OnnxRuntimeGraphs
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.occlusion import occlusion_settings_for
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import KeypointsObject, MaskObject

CPU = ("CPUExecutionProvider", {})
FRAME, CELLS = (66, 98), (17, 25)


@pytest.fixture(scope="module")
def artifact(small_artifact: Path) -> Artifact:
    loaded = load_artifact(small_artifact)
    return replace(loaded, settings=replace(loaded.settings, short_side=0))


@pytest.fixture(params=[False, True], ids=["desktop", "integrated"])
def cuda(request: pytest.FixtureRequest) -> Any:
    return fakes.Cuda(integrated=request.param)


@pytest.fixture
def open_fake(artifact: Artifact):
    """Return open_fake(cuda, settings, **fixed) -> (backend, graphs)."""

    def opened(cuda: Any, settings: TrackingSettings = artifact.settings, **fixed: Any) -> tuple[DeviceBackend, Any]:
        changed = replace(artifact, settings=settings)
        graphs = fakes.Streamed(OnnxRuntimeGraphs(changed, CPU, "cpu"), cuda, **fixed)
        return DeviceBackend(changed, CudaDevice(cuda), graphs), graphs

    return opened


def noisy(frames: np.ndarray) -> np.ndarray:
    """Add independent noise per frame: a still background would give equal scores over frames of another order."""
    return frames + np.random.default_rng(1).integers(0, 40, frames.shape, np.uint8)


def plan_of(memory: DeviceMemory) -> SearchPlan:
    """Plan a search without offsets; the graphs have the search parameters."""
    return SearchPlan.of(memory.references, Attributes())


def objects(masks: np.ndarray) -> list[Any]:
    """Return a mask object and a keypoints object."""
    return [MaskObject(1, masks[0]), KeypointsObject(2, np.array([[30.0, 24.0], [60, 40]], np.float32), ("a", "b"))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hard_labels": True},
        {"permanent_frames": (0, 2), "recent_offsets": (1, 3)},
        {"permanent_frames": (), "recent_offsets": (1,)},
    ],
    ids=["first and last three", "hard labels", "slots with gaps", "previous frame"],
)
def test_tracks_on_the_device_are_those_of_the_cpu(
    changes: dict[str, Any], cuda, open_fake, artifact: Artifact, moving_square
) -> None:
    """An object that joins late needs a second memory; all soft masks agree within 1e-5."""
    frames, masks = noisy(moving_square[0]), moving_square[1]
    settings = replace(artifact.settings, **changes)
    backend, _ = open_fake(cuda, settings)
    ours = Tracker(backend)
    theirs = Tracker(open_backend("onnx-function", replace(artifact, settings=settings), threads=1))
    for tracker in (ours, theirs):
        tracker.start(frames[0], objects(masks))
    for index, frame in enumerate(frames[1:], start=1):
        got, expected = ours.step(frame), theirs.step(frame)
        np.testing.assert_array_equal(got.mask, expected.mask)
        for ours_object, expected_object in zip(got.objects, expected.objects, strict=True):
            # Keypoints are tracked on the CPU, with the fused kernel's 16 bits.
            tolerance = 1e-5 if ours_object.points is None else 0.05
            assert ours_object.confidence == pytest.approx(expected_object.confidence, abs=tolerance)
        if index == 3:
            for tracker in (ours, theirs):
                tracker.add([MaskObject(3, masks[3])])
    backend.close()
    theirs.backend.close()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"permanent_frames": (0, 2), "recent_offsets": (1, 3), "radius": (3,), "dilation": (1,)},
        {"recent_offsets": ()},
    ],
    ids=["first and last three", "slots with gaps", "prompted frame"],
)
@pytest.mark.parametrize("sizes", ["free sizes", "fixed sizes"])
def test_windows_move_on_the_device_as_on_the_cpu(
    changes: dict[str, Any], sizes: str, cuda, following_artifact: Path, crossing
) -> None:
    """An object joins late. Fixed sizes have more slots and windows than needed, and steps are captured."""
    frames, masks = crossing
    artifact = load_artifact(following_artifact)
    settings = replace(artifact.settings, short_side=0, **changes)
    files = graphs_of_settings(artifact.files[ENCODE], settings, artifact.channels)
    artifact = replace(artifact, settings=settings, files=artifact.files | files)
    fixed = {"num_reference_frames": 5, "num_slots": 6, "num_windows": 24} if sizes == "fixed sizes" else {}
    graphs = fakes.Streamed(OnnxRuntimeGraphs(artifact, CPU, "cpu"), cuda, **fixed)
    backend = DeviceBackend(artifact, CudaDevice(cuda), graphs)
    results = []
    for opened, move in ((backend, True), (open_backend("onnx-function", artifact, threads=1), True), (backend, False)):
        tracker = Tracker(opened, replace(settings, move_windows=move))
        masks_found = [tracker.start(frames[0], [MaskObject(1, masks[0])]).mask]
        for index, frame in enumerate(frames[1:], start=1):
            masks_found.append(tracker.step(frame).mask)
            if index == 3:
                tracker.add([MaskObject(3, np.roll(masks[3], 20, 0))])
        results.append(np.stack(masks_found))
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any(), "windows that do not move give another result"
    assert cuda.captured > 0
    backend.close()


def test_a_captured_step_uses_the_current_search_windows(following_artifact: Path, crossing) -> None:
    """The capture has the address of the windows and reads their content at launch."""
    cuda = fakes.Cuda()
    artifact = load_artifact(following_artifact)
    artifact = replace(artifact, settings=replace(artifact.settings, short_side=0, recent_offsets=()))
    graphs = fakes.Streamed(OnnxRuntimeGraphs(artifact, CPU, "cpu"), cuda, num_slots=1, num_windows=4)
    backend = DeviceBackend(artifact, CudaDevice(cuda), graphs)
    cpu = open_backend("onnx-function", artifact, threads=1)
    memory = backend.new_memory(artifact.settings, 8, (16, 30))
    cpu_memory = cpu.new_memory(artifact.settings, 8, (16, 30))
    soft_masks = np.random.default_rng(0).random((8, 16, 30), np.float32)
    memory.add_frame(backend.encode(crossing[0][0]), soft_masks)
    cpu_memory.add_frame(cpu.encode(crossing[0][0]), soft_masks)

    def plan(*offsets: tuple[int, int]) -> SearchPlan:
        return SearchPlan.of(memory.references, artifact.settings.attributes, {0: offsets})

    for step, offsets in enumerate(
        [[(0, 0)], [(0, 0), (3, 4)], [(-2, 9)], [(0, 0), (1, 1), (0, -8), (40, 0)], [(0, 3)]]
    ):
        features = backend.encode(crossing[0][step + 1])
        got = backend.propagate(features, memory, plan(*offsets))
        expected = cpu.propagate(cpu.encode(crossing[0][step + 1]), cpu_memory, plan(*offsets))
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert (cuda.captured, cuda.launched) == (1, 4)
    with pytest.raises(InputError, match="at most 4 references, got 5; use fewer"):
        backend.propagate(features, memory, plan(*[(0, 0)] * 5))
    backend.close()
    cpu.close()


def test_graphs_without_indexed_references_refuse_offsets(cuda, open_fake, artifact: Artifact, moving_square) -> None:
    backend, _ = open_fake(cuda)
    assert not backend.supports_window_offsets
    memory = backend.new_memory(artifact.settings, 8, CELLS)
    features = backend.encode(moving_square[0][0])
    memory.add_frame(features, np.zeros((8, *CELLS), np.float32))
    plan = SearchPlan.of(memory.references, artifact.settings.attributes, {0: [(1, 0)]})
    with pytest.raises(CorrflowError, match=r"that take references by index, got fake; export small again"):
        backend.propagate(features, memory, plan)


def test_a_step_is_one_cuda_graph_from_upload_to_download(open_fake, artifact: Artifact, moving_square) -> None:
    cuda = fakes.Cuda()
    frames, masks = noisy(np.tile(moving_square[0], (2, 1, 1, 1))), moving_square[1]
    backend, graphs = open_fake(cuda)
    tracker = Tracker(backend)
    tracker.start(frames[0], [MaskObject(1, masks[0])])
    for frame in frames[1:5]:
        tracker.step(frame)
    assert (cuda.captured, cuda.launched) == (0, 0), "K = 1, 2, 3, 4: each ran once, uncaptured"
    tracker.step(frames[5])
    assert (cuda.captured, cuda.launched) == (1, 1)
    backend.device.wait()
    allocated = cuda.allocated
    cuda.copied.clear()
    graphs.runs.clear()
    for frame in frames[6:]:
        tracker.step(frame)
    backend.device.wait()
    steps = len(frames[6:])
    assert (cuda.captured, cuda.launched, cuda.allocated) == (1, 1 + steps, allocated)
    assert graphs.runs == ["encode", "propagate"] * steps
    frame, masks, features = 66 * 98 * 3, 8 * 17 * 25 * 4, artifact.channels * 17 * 25 * 4
    # Upload of the frame, download of soft masks, and on the device features and soft masks to the ring.
    assert cuda.copied == [frame, masks, features, masks] * steps
    backend.close()


def test_an_integrated_gpu_copies_nothing_between_host_and_device(open_fake, artifact: Artifact, moving_square) -> None:
    cuda = fakes.Cuda(integrated=True)
    backend, _ = open_fake(cuda)
    tracker = Tracker(backend)
    tracker.start(moving_square[0][0], [MaskObject(1, moving_square[1][0])])
    backend.device.wait()
    cuda.copied.clear()
    tracker.step(moving_square[0][1])
    backend.device.wait()
    assert cuda.copied == [artifact.channels * 17 * 25 * 4, 8 * 17 * 25 * 4], "only the ring is written"
    backend.close()


def test_channels_are_padded_to_those_of_the_engines(cuda, open_fake, moving_square) -> None:
    generator = np.random.default_rng(2)
    got = []
    for fixed in ({}, {"num_channels": 24}):
        backend, _ = open_fake(cuda, **fixed)
        memory = backend.new_memory(backend.artifact.settings, 8, CELLS)
        memory.add_frame(backend.encode(moving_square[0][0]), np.random.default_rng(3).random((8, *CELLS), np.float32))
        for frame in moving_square[0][1:6]:
            features = backend.encode(frame)
            masks = backend.propagate(features, memory, plan_of(memory))
            memory.add_frame(features, masks if generator.random() < 0.5 else masks.copy())
        got.append(masks)
        assert memory.num_channels == 8 and masks.shape == (8, *CELLS) and not masks.flags.writeable
        backend.close()
    np.testing.assert_array_equal(*got)


def test_changed_soft_masks_are_uploaded(cuda, open_fake, moving_square) -> None:
    """The op is linear in the values, so doubled masks in memory double the result."""
    backend, _ = open_fake(cuda, replace(TrackingSettings(0, (), (1,), (2,)), top_k=10, temperature=0.1))
    start = np.random.default_rng(3).random((8, *CELLS), np.float32)
    got = []
    for factor in (1, 2):
        memory = backend.new_memory(backend.artifact.settings, 8, CELLS)
        memory.add_frame(backend.encode(moving_square[0][0]), start)
        features = backend.encode(moving_square[0][1])
        masks = backend.propagate(features, memory, plan_of(memory))
        memory.add_frame(features, masks if factor == 1 else masks * np.float32(2))
        got.append(backend.propagate(backend.encode(moving_square[0][2]), memory, plan_of(memory)))
    np.testing.assert_allclose(got[1], 2 * got[0], rtol=1e-6)
    backend.close()


class OnDevice:
    """Frame in the fake device's memory, with the interface of torch and CuPy."""

    def __init__(self, device: CudaDevice, frame: np.ndarray, **changed: Any) -> None:
        self.shared = device.share(frame.shape, np.uint8)
        self.shared.host[...] = frame
        device.upload(self.shared)
        self.__cuda_array_interface__ = {
            "shape": frame.shape,
            "typestr": "|u1",
            "data": (self.shared.buffer.pointer, True),
            "version": 3,
            "stream": 5,
        } | changed


def test_frames_on_the_device_are_tracked(open_fake, moving_square) -> None:
    cuda = fakes.Cuda()
    frames, masks = noisy(moving_square[0]), moving_square[1]
    results = []
    for on_device in (False, True):
        backend, _ = open_fake(cuda)
        inputs: list[Any] = [OnDevice(backend.device, frame) if on_device else frame for frame in frames]
        tracker = Tracker(backend)
        tracker.start(inputs[0], [MaskObject(1, masks[0])])
        results.append([tracker.step(frame).mask for frame in inputs[1:]])
        backend.close()
    np.testing.assert_array_equal(*results)


def test_keypoints_of_frames_on_the_device_are_tracked_on_the_host(open_fake, moving_square) -> None:
    """Labelled frames may lie there as well; points are those of the same frames as arrays."""
    cuda = fakes.Cuda()
    frames = noisy(moving_square[0])
    point = KeypointsObject(2, np.array([[30.0, 24.0], [36, 30]], np.float32), ("a", "b"))
    later = replace(point, points=point.points + np.array([10, 5], np.float32))
    results = []
    for on_device in (False, True):
        backend, _ = open_fake(cuda)
        inputs: list[Any] = [OnDevice(backend.device, frame) if on_device else frame for frame in frames]
        tracker = Tracker(backend)
        tracker.start(inputs[0], [point], [(inputs[5], later)])
        results.append([tracker.step(frame).objects[0].points for frame in inputs[1:]])
        backend.close()
    np.testing.assert_array_equal(*results)


def test_a_frame_on_the_device_is_copied_to_the_host(cuda, open_fake, moving_square) -> None:
    """A frame is the caller's own array, whatever is copied next; other sizes and streams are no fault."""
    backend, _ = open_fake(cuda)
    first, second = moving_square[0][:2]
    copied = backend.frame_on_host(OnDevice(backend.device, first))
    small = backend.frame_on_host(OnDevice(backend.device, second[:32, :40], stream=None))
    again = backend.frame_on_host(OnDevice(backend.device, second))
    for got, expected in ((copied, first), (small, second[:32, :40]), (again, second)):
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(InputError, match="uint8, BGR, on the GPU, got <f4"):
        backend.frame_on_host(OnDevice(backend.device, first, typestr="<f4"))
    backend.close()


def test_a_frame_on_the_device_waits_for_its_stream(open_fake, moving_square) -> None:
    cuda = fakes.Cuda()
    backend, _ = open_fake(cuda)
    waited: list[int] = []
    synchronize = cuda.cudaStreamSynchronize
    cuda.cudaStreamSynchronize = lambda stream: (waited.append(stream), synchronize(stream))[1]
    backend.encode(OnDevice(backend.device, moving_square[0][0]))
    assert waited == [77, 5, 77]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"typestr": "<f4"}, "uint8, BGR, on the GPU, got <f4"),
        ({"shape": (66, 98, 4)}, r"got \|u1 \[66, 98, 4\]"),
        ({"strides": (400, 3, 1)}, "contiguous frame on the GPU, got strides"),
    ],
    ids=["float", "four colours", "padded rows"],
)
def test_other_arrays_on_the_device_are_refused(changed, reason, cuda, open_fake, moving_square) -> None:
    backend, _ = open_fake(cuda)
    with pytest.raises(InputError, match=reason):
        backend.encode(OnDevice(backend.device, moving_square[0][0], **changed))


def test_frames_on_the_device_need_a_compiler_for_resizing(cuda, open_fake, artifact: Artifact, moving_square) -> None:
    backend, _ = open_fake(cuda)
    tracker = Tracker(backend, replace(artifact.settings, short_side=32))
    with pytest.raises(InputError, match="in the working size 48x32, got 98x66"):
        tracker.start(
            OnDevice(backend.device, moving_square[0][0]),  # type: ignore[arg-type]
            [MaskObject(1, moving_square[1][0])],
        )


def test_sizes_beyond_those_of_the_engines_are_refused(cuda, open_fake, artifact) -> None:
    backend, _ = open_fake(cuda, frame=(64, 96), num_reference_frames=4, num_channels=8)
    with pytest.raises(InputError, match=r"frames of 96x64.* got 98x66; build .*--size 66x98"):
        backend.encode(np.zeros((*FRAME, 3), np.uint8))
    with pytest.raises(InputError, match=r"at most 8 mask channels.* got 16; build .*--objects 16"):
        backend.new_memory(artifact.settings, 16, (16, 24))
    with pytest.raises(InputError, match=r"at most 4 reference frames.* got 6; build .*--reference-frames 6"):
        backend.new_memory(replace(artifact.settings, recent_offsets=(1, 2, 3, 4, 5)), 8, (16, 24))
    backend, _ = open_fake(cuda, num_slots=4, num_windows=7)
    with pytest.raises(InputError, match=r"at most 4 slots of memory.* got 6; build them from an artifact with these"):
        backend.new_memory(replace(artifact.settings, recent_offsets=(1, 5)), 8, (16, 24))
    with pytest.raises(InputError, match=r"at most 7 windows to search.* got 16; build them from an artifact with"):
        backend.new_memory(
            replace(artifact.settings, permanent_frames=(0, 2), recent_offsets=(1, 2), move_windows=True), 8, (16, 24)
        )


def test_features_are_valid_until_the_next_frame(cuda, open_fake, artifact: Artifact, moving_square) -> None:
    backend, _ = open_fake(cuda)
    memory = backend.new_memory(artifact.settings, 8, CELLS)
    old = backend.encode(moving_square[0][0])
    with pytest.raises(CorrflowError, match=r"a memory with a frame in it"):
        backend.propagate(old, memory, plan_of(memory))
    backend.encode(moving_square[0][1])
    with pytest.raises(CorrflowError, match=r"newest frame \(2\), got those of frame 1"):
        memory.add_frame(old, np.zeros((8, *CELLS), np.float32))
    small = backend.encode(moving_square[0][1][:32, :32])
    with pytest.raises(CorrflowError, match=r"features of \[17, 25\] cells"):
        backend.propagate(small, memory, plan_of(memory))


def test_features_on_the_host_stay_valid_and_can_be_added(cuda, open_fake, artifact: Artifact, moving_square) -> None:
    backend, _ = open_fake(cuda)
    cpu = open_backend("onnx-function", artifact, threads=1)
    frames = noisy(moving_square[0])
    labels = np.random.default_rng(2).random((2, *CELLS), np.float32)
    at_once, later = (backend.new_memory(artifact.settings, 2, CELLS) for _ in range(2))
    on_host = []
    for frame in frames[:3]:
        features = backend.encode(frame)
        on_host.append(np.asarray(features))
        assert np.asarray(features) is on_host[-1], "copied once"
        at_once.add_frame(features, labels)
    for frame, features_on_host in zip(frames, on_host, strict=False):
        np.testing.assert_allclose(features_on_host, cpu.encode(frame), atol=1e-6)
        later.add_frame(features_on_host, labels)
    query = backend.encode(frames[3])
    np.testing.assert_array_equal(*(backend.propagate(query, memory, plan_of(memory)) for memory in (at_once, later)))
    with pytest.raises(CorrflowError, match="newest frame"):
        np.asarray(features)
    with pytest.raises(CorrflowError, match="at the new size"):
        later.add_frame(on_host[0][:, 1:], labels)
    backend.close()
    cpu.close()


@pytest.mark.parametrize("move_windows", [False, True], ids=["fixed windows", "moving windows"])
def test_hidden_objects_are_lost_and_re_detected_as_on_the_cpu(
    move_windows: bool, cuda, artifact: Artifact, following_artifact: Path, hidden
) -> None:
    """Re-detection uses windows without offsets in the same graph."""
    fixed = {}
    if move_windows:
        loaded = load_artifact(following_artifact)
        artifact, fixed = (
            replace(loaded, settings=replace(loaded.settings, short_side=0)),
            {"num_slots": 4, "num_windows": 16},
        )
    graphs = fakes.Streamed(OnnxRuntimeGraphs(artifact, CPU, "cpu"), cuda, **fixed)
    backend = DeviceBackend(artifact, CudaDevice(cuda), graphs)
    cpu = open_backend("onnx-function", artifact, threads=1)
    ours, theirs = (
        Tracker(opened, occlusion=occlusion_settings_for(opened, artifact.settings)) for opened in (backend, cpu)
    )
    frames, masks = noisy(hidden[0]), hidden[1]
    visible = []
    for tracker in (ours, theirs):
        tracker.start(frames[0], objects(masks))
    for frame in frames[1:]:
        got, expected = ours.step(frame), theirs.step(frame)
        np.testing.assert_array_equal(got.mask, expected.mask)
        # The points' confidence may be on another side of its limit, for they are tracked with the fused kernel here.
        assert got.objects[0].visible == expected.objects[0].visible
        visible.append(got.objects[0].visible)
    assert visible[:3] == [True] * 3 and not any(visible[3:7]) and visible[-1]
    backend.close()
    cpu.close()


def test_a_change_of_size_frees_the_buffers(open_fake, moving_square) -> None:
    cuda = fakes.Cuda()
    backend, _ = open_fake(cuda)
    tracker = Tracker(backend)
    used = []
    for turn in range(6):
        cut = slice(None, 66 if turn % 2 else 50)
        tracker.start(moving_square[0][0][cut], [MaskObject(1, moving_square[1][0][cut])])
        for frame in moving_square[0][1:]:
            tracker.step(frame[cut])
        gc.collect()
        used.append(sum(map(len, cuda.memory.values())))
    assert used[2:4] == used[4:6]
    backend.close()
    del tracker, backend
    gc.collect()
    assert not cuda.memory and not cuda.graphs


def test_a_missing_gpu_is_one_sentence_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fakes.Cuda()
    cuda.cudaGetDeviceCount = lambda: (35, None)
    with pytest.raises(
        InputError, match=r"expected an NVIDIA GPU and its driver, found none \(error 35\); install the driver"
    ):
        CudaDevice(cuda)
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
    with pytest.raises(InputError, match=r"CUDA's Python bindings .* pip install 'corrflow\[cu12\]'"):
        CudaDevice()


def test_the_error_of_a_failing_gpu_names_the_call() -> None:
    cuda = fakes.Cuda()
    device = CudaDevice(cuda)
    cuda.cudaMalloc = lambda size: (2, None)
    with pytest.raises(CorrflowError, match="the GPU failed: cudaMalloc says error 2"):
        device.allocate((4,), np.float32)
    with pytest.raises(CorrflowError, match="error 900"):  # a failed capture leaves the stream usable
        device.capture_graph(device.wait)
    device.wait()


def test_the_fake_has_the_interface_of_the_real_runtime() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    for name in (name for name in dir(fakes.Cuda) if name.startswith("cuda")):
        fake = getattr(fakes.Cuda, name)
        assert hasattr(real, name)
        if isinstance(fake, SimpleNamespace):
            assert {key: int(getattr(getattr(real, name), key)) for key in vars(fake)} == vars(fake)
        elif isinstance(fake, int):
            assert getattr(real, name) == fake
    properties = real.cudaDeviceProp()
    assert all(hasattr(properties, name) for name in vars(fakes.Cuda().properties))
