"""The back end for GPUs tracks as the one for CPUs does, on a CUDA runtime made of NumPy arrays (fakes.py)."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from corrflow.errors import CorrflowError, InputError
from corrflow.export.step_graph import graphs_of_settings
from corrflow.runtime.artifacts.artifact import ENCODE, Artifact, load_artifact
from corrflow.runtime.backends.cuda_device import CudaDevice
from corrflow.runtime.backends.gpu import DeviceBackend
from corrflow.runtime.backends.onnxruntime_cuda import OnnxRuntimePrograms
from corrflow.runtime.backends.registry import open_backend
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
def cuda(request: pytest.FixtureRequest, fakes: ModuleType) -> Any:
    return fakes.Cuda(integrated=request.param)


@pytest.fixture
def open_fake(artifact: Artifact, fakes: ModuleType):
    """open_fake(cuda, settings, **fixed) -> (back end, programs)."""

    def opened(cuda: Any, settings: TrackingSettings = artifact.settings, **fixed: Any) -> tuple[DeviceBackend, Any]:
        own = replace(artifact, settings=settings)
        programs = fakes.Streamed(OnnxRuntimePrograms(own, CPU, "cpu"), cuda, **fixed)
        return DeviceBackend(own, CudaDevice(cuda), programs), programs

    return opened


def noisy(frames: np.ndarray) -> np.ndarray:
    """Noise of each frame's own: a still background would tie over references, which the ring has in turn."""
    return frames + np.random.default_rng(1).integers(0, 40, frames.shape, np.uint8)


def objects(masks: np.ndarray) -> list[Any]:
    return [MaskObject(1, masks[0]), KeypointsObject(2, np.array([[30.0, 24.0], [60, 40]], np.float32), ("a", "b"))]


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"hard_labels": True},
        {"permanent_frames": (0, 2), "recent_offsets": (1, 3)},
        {"permanent_frames": (), "recent_offsets": (1,)},
    ],
    ids=["first and last three", "hard labels", "slots with gaps", "the frame before"],
)
def test_tracks_on_the_device_are_those_of_the_cpu(
    named: dict[str, Any], cuda, open_fake, artifact: Artifact, moving_square
) -> None:
    """With an object that joins late, so that there are two memories; every frame, to 1e-5 in the labels."""
    frames, masks = noisy(moving_square[0]), moving_square[1]
    settings = replace(artifact.settings, **named)
    backend, _ = open_fake(cuda, settings)
    ours = Tracker(backend)
    theirs = Tracker(open_backend("onnx-function", replace(artifact, settings=settings), threads=1))
    for tracker in (ours, theirs):
        tracker.start(frames[0], objects(masks))
    for index, frame in enumerate(frames[1:], start=1):
        got, expected = ours.step(frame), theirs.step(frame)
        np.testing.assert_array_equal(got.mask, expected.mask)
        for mine, other in zip(got.objects, expected.objects, strict=True):
            assert mine.confidence == pytest.approx(other.confidence, abs=1e-5)
        if index == 3:
            for tracker in (ours, theirs):
                tracker.add([MaskObject(3, masks[3])])
    backend.close()
    theirs.backend.close()


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"permanent_frames": (0, 2), "recent_offsets": (1, 3), "radius": (3,), "dilation": (1,)},
        {"recent_offsets": ()},
    ],
    ids=["first and last three", "slots with gaps", "the given frame"],
)
@pytest.mark.parametrize("built", ["for any sizes", "for fixed ones"])
def test_windows_follow_on_the_device_as_on_the_cpu(
    named: dict[str, Any], built: str, cuda, fakes: ModuleType, following_artifact: Path, crossing
) -> None:
    """With an object that joins late. Engines have more slots and rows than are used, and are recorded."""
    frames, masks = crossing
    artifact = load_artifact(following_artifact)
    settings = replace(artifact.settings, short_side=0, **named)
    graphs = graphs_of_settings(artifact.files[ENCODE], settings, artifact.channels)
    artifact = replace(artifact, settings=settings, files=artifact.files | graphs)
    fixed = {"references": 5, "slots": 6, "short_side": 11} if built == "for fixed ones" else {}
    programs = fakes.Streamed(OnnxRuntimePrograms(artifact, CPU, "cpu"), cuda, **fixed)
    backend = DeviceBackend(artifact, CudaDevice(cuda), programs)
    found = []
    for one, follow in ((backend, True), (open_backend("onnx-function", artifact, threads=1), True), (backend, False)):
        tracker = Tracker(one, replace(settings, move_windows=follow))
        results = [tracker.start(frames[0], [MaskObject(1, masks[0])])]
        for index, frame in enumerate(frames[1:], start=1):
            results.append(tracker.step(frame))
            if index == 3:
                tracker.add([MaskObject(3, np.roll(masks[3], 20, 0))])
        found.append(np.stack([each.mask for each in results]))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any(), "windows that stay find something else"
    assert cuda.recorded > 0
    backend.close()


def test_a_recorded_step_searches_where_its_references_are_now(
    fakes: ModuleType, following_artifact: Path, crossing
) -> None:
    """The record has the address of the names, and what is there when it is launched."""
    cuda = fakes.Cuda()
    artifact = load_artifact(following_artifact)
    artifact = replace(artifact, settings=replace(artifact.settings, short_side=0, recent_offsets=()))
    programs = fakes.Streamed(OnnxRuntimePrograms(artifact, CPU, "cpu"), cuda, slots=1, short_side=4)
    backend = DeviceBackend(artifact, CudaDevice(cuda), programs)
    memory = backend.new_memory(artifact.settings, 8, (16, 30))
    memory.add_frame(backend.encode(crossing[0][0]), np.random.default_rng(0).random((8, 16, 30), np.float32))
    other = open_backend("onnx-function", artifact, threads=1)
    theirs = other.new_memory(artifact.settings, 8, (16, 30))
    theirs.add_frame(other.encode(crossing[0][0]), np.random.default_rng(0).random((8, 16, 30), np.float32))
    for step, moves in enumerate([[(0, 0)], [(0, 0), (3, 4)], [(-2, 9)], [(0, 0), (1, 1), (0, -8), (40, 0)], [(0, 3)]]):
        features = backend.encode(crossing[0][step + 1])
        got = backend.propagate(features, memory.aimed({0: moves}))
        expected = other.propagate(other.encode(crossing[0][step + 1]), theirs.aimed({0: moves}))
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert (cuda.recorded, cuda.launched) == (1, 4)
    with pytest.raises(InputError, match="at most 4 references, got 5; name fewer"):
        backend.propagate(features, memory.aimed({0: [(0, 0)] * 5}))
    backend.close()
    other.close()


def test_programs_without_names_move_no_windows(cuda, open_fake, artifact: Artifact) -> None:
    backend, _ = open_fake(cuda)
    assert not backend.supports_window_offsets
    with pytest.raises(CorrflowError, match=r"that take references by name, got fake; export small again"):
        backend.new_memory(artifact.settings, 8, CELLS).aimed({})


def test_a_step_is_one_graph_with_the_frame_going_in_and_the_labels_coming_out(
    fakes: ModuleType, open_fake, artifact: Artifact, moving_square
) -> None:
    cuda = fakes.Cuda()
    frames, masks = noisy(np.tile(moving_square[0], (2, 1, 1, 1))), moving_square[1]
    backend, programs = open_fake(cuda)
    tracker = Tracker(backend)
    tracker.start(frames[0], [MaskObject(1, masks[0])])
    for frame in frames[1:5]:
        tracker.step(frame)
    assert (cuda.recorded, cuda.launched) == (0, 0), "K = 1, 2, 3, 4: each ran once as it is"
    tracker.step(frames[5])
    assert (cuda.recorded, cuda.launched) == (1, 1)
    backend.device.wait()
    allocated = cuda.allocated
    cuda.copied.clear()
    programs.runs.clear()
    for frame in frames[6:]:
        tracker.step(frame)
    backend.device.wait()
    steps = len(frames[6:])
    assert (cuda.recorded, cuda.launched, cuda.allocated) == (1, 1 + steps, allocated)
    assert programs.runs == ["encode", "propagate"] * steps
    frame, labels, features = 66 * 98 * 3, 8 * 17 * 25 * 4, artifact.channels * 17 * 25 * 4
    # The frame in, the labels out, and on the device features and labels into the ring.
    assert cuda.copied == [frame, labels, features, labels] * steps
    backend.close()


def test_an_integrated_gpu_copies_nothing_between_host_and_device(
    fakes: ModuleType, open_fake, artifact: Artifact, moving_square
) -> None:
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


def test_labels_are_padded_to_what_the_engines_take(cuda, open_fake, moving_square) -> None:
    generator = np.random.default_rng(2)
    got = []
    for fixed in ({}, {"labels": 24}):
        backend, _ = open_fake(cuda, **fixed)
        memory = backend.new_memory(backend.artifact.settings, 8, CELLS)
        memory.add_frame(backend.encode(moving_square[0][0]), np.random.default_rng(3).random((8, *CELLS), np.float32))
        for frame in moving_square[0][1:6]:
            features = backend.encode(frame)
            labels = backend.propagate(features, memory)
            memory.add_frame(features, labels if generator.random() < 0.5 else labels.copy())
        got.append(labels)
        assert memory.labels == 8 and labels.shape == (8, *CELLS) and not labels.flags.writeable
        backend.close()
    np.testing.assert_array_equal(*got)


def test_labels_that_were_changed_are_sent_and_not_the_devices_own(cuda, open_fake, moving_square) -> None:
    """Twice the labels remembered are twice the labels copied: the op is linear in them."""
    backend, _ = open_fake(cuda, replace(TrackingSettings(0, (), (1,), (2,)), top_k=10, temperature=0.1))
    start = np.random.default_rng(3).random((8, *CELLS), np.float32)
    got = []
    for factor in (1, 2):
        memory = backend.new_memory(backend.artifact.settings, 8, CELLS)
        memory.add_frame(backend.encode(moving_square[0][0]), start)
        features = backend.encode(moving_square[0][1])
        labels = backend.propagate(features, memory)
        memory.add_frame(features, labels if factor == 1 else labels * np.float32(2))
        got.append(backend.propagate(backend.encode(moving_square[0][2]), memory))
    np.testing.assert_allclose(got[1], 2 * got[0], rtol=1e-6)
    backend.close()


class OnDevice:
    """A frame in the fake device's memory, as torch or CuPy would hand it over."""

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


def test_frames_on_the_device_are_tracked_where_they_are(fakes: ModuleType, open_fake, moving_square) -> None:
    cuda = fakes.Cuda()
    frames, masks = noisy(moving_square[0]), moving_square[1]
    results = []
    for on_device in (False, True):
        backend, _ = open_fake(cuda)
        given: list[Any] = [OnDevice(backend.device, frame) if on_device else frame for frame in frames]
        tracker = Tracker(backend)
        tracker.start(given[0], [MaskObject(1, masks[0])])
        results.append([tracker.step(frame).mask for frame in given[1:]])
        backend.close()
    np.testing.assert_array_equal(*results)


def test_a_frame_on_the_device_waits_for_the_stream_that_makes_it(fakes: ModuleType, open_fake, moving_square) -> None:
    cuda = fakes.Cuda()
    backend, _ = open_fake(cuda)
    waited: list[int] = []
    plain = cuda.cudaStreamSynchronize
    cuda.cudaStreamSynchronize = lambda stream: (waited.append(stream), plain(stream))[1]
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
def test_a_frame_on_the_device_that_is_none_is_refused(changed, reason, cuda, open_fake, moving_square) -> None:
    backend, _ = open_fake(cuda)
    with pytest.raises(InputError, match=reason):
        backend.encode(OnDevice(backend.device, moving_square[0][0], **changed))


def test_a_frame_on_the_device_is_not_shrunk(cuda, open_fake, artifact: Artifact, moving_square) -> None:
    backend, _ = open_fake(cuda)
    tracker = Tracker(backend, replace(artifact.settings, short_side=32))
    with pytest.raises(InputError, match="at the size they are tracked at, 48x32, got 98x66"):
        tracker.start(
            OnDevice(backend.device, moving_square[0][0]),  # type: ignore[arg-type]
            [MaskObject(1, moving_square[1][0])],
        )


def test_what_the_engines_are_not_built_for_is_refused_with_the_option_to_change(cuda, open_fake, artifact) -> None:
    backend, _ = open_fake(cuda, frame=(64, 96), references=4, labels=8)
    with pytest.raises(InputError, match=r"frames of 96x64.* got 98x66; build .*--size 66x98"):
        backend.encode(np.zeros((*FRAME, 3), np.uint8))
    with pytest.raises(InputError, match=r"at most 8 label channels.* got 16; build .*--objects 16"):
        backend.new_memory(artifact.settings, 16, (16, 24))
    with pytest.raises(InputError, match=r"at most 4 references.* got 6; build .*--references 6"):
        backend.new_memory(replace(artifact.settings, recent_offsets=(1, 2, 3, 4, 5)), 8, (16, 24))
    backend, _ = open_fake(cuda, slots=4, short_side=7)
    with pytest.raises(InputError, match=r"at most 4 slots of memory.* got 6; build them from an artifact with these"):
        backend.new_memory(replace(artifact.settings, recent_offsets=(1, 5)), 8, (16, 24))
    with pytest.raises(InputError, match=r"at most 7 windows to search.* got 10; build them from an artifact with"):
        backend.new_memory(
            replace(artifact.settings, permanent_frames=(0, 2), recent_offsets=(1, 2), move_windows=True), 8, (16, 24)
        )


def test_features_are_good_until_the_next_frame(cuda, open_fake, artifact: Artifact, moving_square) -> None:
    backend, _ = open_fake(cuda)
    memory = backend.new_memory(artifact.settings, 8, CELLS)
    old = backend.encode(moving_square[0][0])
    with pytest.raises(CorrflowError, match=r"a memory with a frame in it"):
        backend.propagate(old, memory)
    backend.encode(moving_square[0][1])
    with pytest.raises(CorrflowError, match=r"newest frame \(2\), got those of frame 1"):
        memory.add_frame(old, np.zeros((8, *CELLS), np.float32))
    small = backend.encode(moving_square[0][1][:32, :32])
    with pytest.raises(CorrflowError, match=r"features of \[17, 25\] cells"):
        backend.propagate(small, memory)


def test_features_on_the_host_stay_and_a_memory_takes_them_back(
    cuda, open_fake, artifact: Artifact, moving_square
) -> None:
    backend, _ = open_fake(cuda)
    cpu = open_backend("onnx-function", artifact, threads=1)
    frames = noisy(moving_square[0])
    labels = np.random.default_rng(2).random((2, *CELLS), np.float32)
    at_once, later = (backend.new_memory(artifact.settings, 2, CELLS) for _ in range(2))
    on_host = []
    for frame in frames[:3]:
        features = backend.encode(frame)
        on_host.append(np.asarray(features))
        assert np.asarray(features) is on_host[-1], "fetched once"
        at_once.add_frame(features, labels)
    for frame, own in zip(frames, on_host, strict=False):
        np.testing.assert_allclose(own, cpu.encode(frame), atol=1e-6)
        later.add_frame(own, labels)
    query = backend.encode(frames[3])
    np.testing.assert_array_equal(backend.propagate(query, at_once), backend.propagate(query, later))
    with pytest.raises(CorrflowError, match="newest frame"):
        np.asarray(features)
    with pytest.raises(CorrflowError, match="at the new size"):
        later.add_frame(on_host[0][:, 1:], labels)
    backend.close()
    cpu.close()


@pytest.mark.parametrize("follows", [False, True], ids=["windows that stay", "windows that follow"])
def test_hidden_objects_are_lost_and_found_as_on_the_cpu(
    follows: bool, cuda, artifact: Artifact, fakes: ModuleType, following_artifact: Path, hidden
) -> None:
    """The search for what is lost has windows that stay, through the same program."""
    fixed = {}
    if follows:
        loaded = load_artifact(following_artifact)
        artifact, fixed = (
            replace(loaded, settings=replace(loaded.settings, short_side=0)),
            {"slots": 4, "short_side": 7},
        )
    programs = fakes.Streamed(OnnxRuntimePrograms(artifact, CPU, "cpu"), cuda, **fixed)
    backend = DeviceBackend(artifact, CudaDevice(cuda), programs)
    cpu = open_backend("onnx-function", artifact, threads=1)
    ours, theirs = (Tracker(one, presence=occlusion_settings_for(one, artifact.settings)) for one in (backend, cpu))
    frames, masks = noisy(hidden[0]), hidden[1]
    visible = []
    for tracker in (ours, theirs):
        tracker.start(frames[0], objects(masks))
    for frame in frames[1:]:
        got, expected = ours.step(frame), theirs.step(frame)
        np.testing.assert_array_equal(got.mask, expected.mask)
        assert [one.visible for one in got.objects] == [one.visible for one in expected.objects]
        visible.append(got.objects[0].visible)
    assert visible[:3] == [True] * 3 and not any(visible[3:7]) and visible[-1]
    backend.close()
    cpu.close()


def test_a_change_of_size_begins_anew_and_frees_what_was_held(fakes: ModuleType, open_fake, moving_square) -> None:
    cuda = fakes.Cuda()
    backend, _ = open_fake(cuda)
    tracker = Tracker(backend)
    held = []
    for turn in range(6):
        cut = slice(None, 66 if turn % 2 else 50)
        tracker.start(moving_square[0][0][cut], [MaskObject(1, moving_square[1][0][cut])])
        for frame in moving_square[0][1:]:
            tracker.step(frame[cut])
        gc.collect()
        held.append(sum(map(len, cuda.memory.values())))
    assert held[2:4] == held[4:6]
    backend.close()
    del tracker, backend
    gc.collect()
    assert not cuda.memory and not cuda.graphs


def test_no_gpu_is_one_sentence_with_the_remedy(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fakes.Cuda()
    cuda.cudaGetDeviceCount = lambda: (35, None)
    with pytest.raises(
        InputError, match=r"expected an NVIDIA GPU and its driver, found none \(error 35\); install the driver"
    ):
        CudaDevice(cuda)
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
    with pytest.raises(InputError, match=r"CUDA's Python bindings .* pip install 'cuda-core\[cu12\]'"):
        CudaDevice()


def test_a_failing_gpu_says_which_call_failed(fakes: ModuleType) -> None:
    cuda = fakes.Cuda()
    device = CudaDevice(cuda)
    cuda.cudaMalloc = lambda size: (2, None)
    with pytest.raises(CorrflowError, match="the GPU failed: cudaMalloc says error 2"):
        device.allocate((4,), np.float32)
    with pytest.raises(CorrflowError, match="error 900"):  # and what cannot be recorded leaves the stream usable
        device.record(device.wait)
    device.wait()


def test_the_fake_has_what_the_real_runtime_has(fakes: ModuleType) -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    for name in (name for name in dir(fakes.Cuda) if name.startswith("cuda")):
        mine = getattr(fakes.Cuda, name)
        assert hasattr(real, name)
        if isinstance(mine, SimpleNamespace):
            assert {key: int(getattr(getattr(real, name), key)) for key in vars(mine)} == vars(mine)
        elif isinstance(mine, int):
            assert getattr(real, name) == mine
    properties = real.cudaDeviceProp()
    assert all(hasattr(properties, name) for name in vars(fakes.Cuda().properties))
