"""libcorrflow_trt.so: built by CMake, driven as TensorRT does on a driver that records, loaded by tensorrt-rtx."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.native import COMPILER, CUDA_INCLUDE, TENSORRT_INCLUDE, build_shared
from helpers.paths import HELPERS, NATIVE, ROOT

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy import tensorrt_plugin
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.plugins.local_soft_copy.tensorrt import library as plugin_library
from corrflow.plugins.local_soft_copy.tensorrt.library import FILE_NAME, VARIABLE, PluginLibrary
from corrflow.plugins.local_soft_copy.tensorrt.variants import Variant, kernel_hash, main, variant_of, write

SOURCE = ROOT / "plugins/local_soft_copy/tensorrt"
CROSS_COMPILER = "aarch64-linux-gnu-g++"
ATTRIBUTES = Attributes((8, 12), (1, 2), 5, 0.07)
VARIANT = Variant(91, 4, ATTRIBUTES, "float16")
NUM_WINDOWS = 5
LIFE = """\
creator: LocalSoftCopy 1 corrflow corrflow
fields: radius dilation top_k temperature
plugin: LocalSoftCopy 1 corrflow 1
output type: 1
output shape: 1 4 60 107
supported: half 1 float 1 mixed 0 references 0 layout 0
serialised: 8 12 1 2 5 0.07
cuLibraryLoadData: cubin, options 0 0
cuLibraryGetKernel: corrflow_local_soft_copy of library 1
cuKernelGetFunction: 1001
cuLaunchKernel: 1001 grid 7 {down} 1 block {threads} 1 1 shared 0 stream 55 extra 0 arguments 11 22 33 44 60 107 3 5 66
cuLaunchKernel: 1001 grid 7 {more} 1 block {threads} 1 1 shared 0 stream 55 extra 0 arguments 11 22 33 44 68 107 3 5 66
done: deleted"""


def expected_life() -> str:
    """Return the lines of a life; grid and block are those of launch.py."""
    launch = VARIANT.launch()
    down, more = (-(-height // launch.tile[1]) for height in (60, 68))
    return LIFE.format(down=down, more=more, threads=launch.block[0])


def save_model(folder: Path) -> Path:
    """Write the part of an artifact that the kernel depends on."""
    folder.mkdir(exist_ok=True)
    tracking = {"radius": [8, 12], "dilation": [1, 2], "top_k": 5, "temperature": 0.07}
    (folder / "artifact.json").write_text(json.dumps({"channels": 91, "tracking": tracking}))
    return folder


def build(folder: Path, *options: str) -> Path:
    """Build the library for Orin, with one kernel."""
    for program in ("cmake", "nvcc", COMPILER):
        if sys.platform != "linux" or shutil.which(program) is None:
            pytest.skip(f"needs {program} on Linux")
    definitions = {
        "Python3_EXECUTABLE": sys.executable,
        "TENSORRT_INCLUDE": TENSORRT_INCLUDE,
        "CUDA_INCLUDE": CUDA_INCLUDE,
        "CORRFLOW_MODELS": save_model(folder / "model"),
        "CORRFLOW_PRECISIONS": "fp16",
        "CORRFLOW_CLASSES": "4",
        "CORRFLOW_ARCHITECTURES": "87",
    }
    command = ["cmake", "-S", str(SOURCE), "-B", str(folder / "build"), *options]
    for arguments in (
        [*command, *(f"-D{name}={value}" for name, value in definitions.items())],
        ["cmake", "--build", str(folder / "build"), "--parallel", "2"],
    ):
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "build" / FILE_NAME


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory):
    """Return drive(library, RECORDED_GPU="87"): output of the life, after a nonzero exit code its standard error."""
    folder = tmp_path_factory.mktemp("drive")
    nvinfer = folder / "libnvinfer.so.10"

    def run(path: Path, driver: bool = True, **variables: str) -> list[str]:
        if not nvinfer.is_file():
            build_shared(NATIVE / "plugin_life.cpp", nvinfer)
            build_shared(NATIVE / "recording_cuda.cpp", folder / "libcuda.so.1")
        program = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).drive_library(sys.argv[2].encode()))"
        environment = os.environ | variables | ({"LD_LIBRARY_PATH": str(folder)} if driver else {})
        command = [sys.executable, "-c", program, str(nvinfer), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        return (done.stderr if done.returncode else done.stdout).splitlines()

    return run


def test_the_library_launches_as_tensorrt_asks_and_outlives_its_plugins(library: Path, drive) -> None:
    assert drive(library) == [
        # trtexec's --staticPlugins only loads a library; --dynamicPlugins registers its creators.
        "registered when loaded: 1",
        "registered by loadLibrary: 1",
        *expected_life().splitlines(),
    ]


def test_a_gpu_without_an_image_gets_ptx_that_its_driver_accepts(library: Path, drive) -> None:
    lines = drive(library, RECORDED_GPU="110")
    assert "cuLibraryLoadData: PTX, options 0 0" in lines and any(line.startswith("PTX: .version 6.") for line in lines)
    assert lines[-1] == "done: deleted" and "cuLibraryLoadData: cubin, options 0 0" not in lines
    refused = drive(library, RECORDED_REFUSAL="1")
    loads = [line for line in refused if line.startswith("cuLibraryLoadData")]
    assert loads == ["cuLibraryLoadData: cubin, options 0 0", "cuLibraryLoadData: PTX, options 0 0"]
    assert refused[-1] == "done: deleted"


def test_what_is_missing_is_one_sentence(library: Path, drive) -> None:
    (reason,) = drive(library, LIFE_TOP_K="6")
    assert reason.startswith("LocalSoftCopy: expected a kernel for 91 channels, 4 classes, windows 8/1 12/2, top_k 6, ")
    assert "this library has none; build it with the model in CORRFLOW_MODELS" in reason
    if not any(Path(folder, "libcuda.so.1").exists() for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/wsl/lib")):
        (reason,) = drive(library, driver=False)
        assert "expected NVIDIA's driver (libcuda.so.1), found none; run this on a machine" in reason


@pytest.mark.parametrize(
    ("gpu", "image"),
    [(75, 75), (80, 80), (86, 86), (87, 87), (88, 0), (89, 86), (90, 90), (103, 100), (110, 0), (121, 120), (72, 0)],
)
def test_a_gpu_runs_its_own_image_or_that_of_an_older_relative(gpu: int, image: int, choose_image) -> None:
    """Jetson GPUs of the generation 8 share no code with the others of that generation."""
    assert choose_image(gpu) == image


@pytest.fixture(scope="module")
def choose_image(tmp_path_factory: pytest.TempPathFactory):
    if sys.platform != "linux" or shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER} on Linux")
    path = tmp_path_factory.mktemp("images") / "libchoose.so"
    return ctypes.CDLL(
        str(build_shared(NATIVE / "choose_image.cpp", path, f"-I{SOURCE}", str(SOURCE / "driver.cpp")))
    ).image_for


def test_tensorrt_rtx_loads_the_library_and_its_parser_creates_the_plugin(library: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    from corrflow.export.propagate_graph import Sizes, propagate_model

    model = tmp_path / "propagate.onnx"
    sizes = Sizes(3, 4, (60, 107), NUM_WINDOWS)
    graph = propagate_model(ATTRIBUTES, 91, sizes, half=True, body=False, indexed_references=True)
    model.write_bytes(graph.SerializeToString())
    program = [sys.executable, str(HELPERS / "rtx_plugin.py"), str(library), str(model)]
    done = subprocess.run(program, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "LocalSoftCopy 1 corrflow radius dilation top_k temperature"
    # tensorrt-rtx has no plugin layers: the process ends at the next call.
    assert any("Successfully created plugin: LocalSoftCopy" in line for line in lines), done.stdout + done.stderr
    assert any("plugin_version: 1, plugin_namespace: corrflow" in line for line in lines)


def test_the_library_for_aarch64_does_the_same_under_emulation(tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if shutil.which(CROSS_COMPILER) is None or emulator is None:
        pytest.skip(f"needs {CROSS_COMPILER} and qemu-user")
    path = build(tmp_path, f"-DCMAKE_TOOLCHAIN_FILE={SOURCE / 'aarch64.cmake'}", "-DCORRFLOW_PTX=OFF")
    assert path.read_bytes()[18] == 183  # EM_AARCH64
    program = tmp_path / "life"
    common = [CROSS_COMPILER, "-std=c++17", f"-isystem{TENSORRT_INCLUDE}", f"-isystem{CUDA_INCLUDE}"]
    subprocess.run(
        [*common, "-DLIFE_PROGRAM", str(NATIVE / "plugin_life.cpp"), "-o", str(program), "-ldl", "-lpthread"],
        check=True,
    )
    driver = tmp_path / "libcuda.so.1"
    subprocess.run(
        [*common, "-shared", "-fPIC", str(NATIVE / "recording_cuda.cpp"), "-o", str(driver)],
        check=True,
    )
    command = [emulator, "-L", "/usr/aarch64-linux-gnu", "-E", f"LD_LIBRARY_PATH={tmp_path}", str(program), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[2:] == expected_life().splitlines()


def test_python_finds_the_library_and_its_kernels(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(library))
    found = plugin_library.find_library()
    assert found is not None and found.tensorrt_major in (10, 11)
    assert found.has_kernel(VARIANT, NUM_WINDOWS) and found.has_kernel(VARIANT, 1)
    for other in (
        Variant(92, 4, ATTRIBUTES, "float16"),
        Variant(91, 8, ATTRIBUTES, "float16"),
        Variant(91, 4, ATTRIBUTES, "float32"),
        Variant(91, 4, Attributes((8, 12), (1, 2), 6, 0.07), "float16"),
        Variant(91, 4, Attributes((8, 12), (1, 2), 5, 0.08), "float16"),
        Variant(91, 4, Attributes((8, 12), (1,), 5, 0.07), "float16"),
        Variant(91, 4, Attributes((8,), (1,), 5, 0.07), "float16"),
    ):
        assert not found.has_kernel(other, NUM_WINDOWS), other
    monkeypatch.setenv(VARIABLE, "off")
    assert plugin_library.find_library() is None


def test_a_library_that_is_missing_foreign_or_old_is_refused(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(InputError, match=rf"none.so of {VARIABLE}, found none; correct it, or unset it"):
        plugin_library.find_library()
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(InputError, match=r"expected .*text.so to be the plugin library, got .*; build it again"):
        PluginLibrary(tmp_path / "text.so")
    monkeypatch.setattr(plugin_library, "kernel_hash", lambda: "another")
    with pytest.raises(InputError, match="expected the kernels of this corrflow, got those of another version"):
        PluginLibrary(library)
    monkeypatch.setenv(VARIABLE, "off")
    with pytest.raises(InputError, match=rf"with which these engines were built, found none; name it in {VARIABLE}"):
        plugin_library.require_library()


class Registry:
    """TensorRT's registry, which accepts or refuses libraries."""

    def __init__(self, accepts: bool = True) -> None:
        self.loaded: list[str] = []
        self.accepts = accepts

    def load_library(self, path: str) -> object | None:
        self.loaded.append(path)
        return object() if self.accepts else None


class Module:
    """The TensorRT module, as far as a library is registered with it."""

    def __init__(self, version: str, accepts: bool = True) -> None:
        self.__version__ = version
        self.registry = Registry(accepts)

    def get_plugin_registry(self) -> Registry:
        return self.registry


def test_the_library_is_the_plugin_of_every_version(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_plugin, "_libraries", set())
    found = PluginLibrary(library)
    major = found.tensorrt_major
    refusing, accepting = Module(f"{major}.16.1", accepts=False), Module(f"{major}.3.0")
    with pytest.raises(CorrflowError, match=rf"refused .*{FILE_NAME}, its reason is above; set {VARIABLE}=off"):
        tensorrt_plugin.register(refusing, found)
    assert [tensorrt_plugin.register(accepting, found) for _ in range(2)] == ["library"] * 2
    assert accepting.registry.loaded == [str(library)], "loaded once"
    monkeypatch.setattr(tensorrt_plugin, "_libraries", set())
    with pytest.raises(InputError, match=rf"the library for TensorRT 9, got the one for {major}; build"):
        tensorrt_plugin.register(Module("9.1"), found)


def test_the_table_names_every_kernel_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(save_model(tmp_path / "model"))
    numbers = ["--classes", "4", "--classes", "40", "--architecture", "87", "--architecture", "0"]
    options = ["--model", model, "--model", model, "--precision", "fp16", "--precision", "fp32", *numbers]
    assert main(["write", str(tmp_path / "out"), *options]) == 0
    assert capsys.readouterr().out == "4\n"
    table = (tmp_path / "out/kernels.cpp").read_text()
    assert f'KERNEL_HASH[] = "{kernel_hash()}"' in table and "NUM_KERNELS = 4" in table
    assert "{91, 4, 1, 5, 7.000000000e-02f, 1, 2, windows_0, 16," in table
    assert "{91, 40, 0, 5, 7.000000000e-02f, 1, 2, windows_3, 16," in table
    assert '.incbin "kernel_3.ptx"' in (tmp_path / "out/images.S").read_text()
    few = Variant(8, 1, Attributes((1,), (1,), 20, 1.0), "float32")
    assert few.min_windows == 3, "two windows of nine cells have no more than 20 scores"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "artifact.json, which cannot be read (No such file or directory); give a folder"),
        ("{}", "expected an artifact of corrflow-export, got KeyError('tracking'); export it again"),
        ("[", "expected an artifact of corrflow-export"),
    ],
)
def test_a_folder_without_a_model_is_refused(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "artifact.json").write_text(content)
    options = ["--model", str(tmp_path), "--precision", "fp16", "--classes", "8", "--architecture", "87"]
    assert main(["write", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_an_unchanged_source_keeps_its_time(tmp_path: Path) -> None:
    variant = variant_of(save_model(tmp_path / "model"), "fp16", 4)
    assert variant == VARIANT
    times = []
    for _ in range(2):
        write(tmp_path / "out", [variant], [87])
        times.append((tmp_path / "out/kernel_0.cu").stat().st_mtime_ns)
    assert times[0] == times[1]


def test_the_example_compiles_against_tensorrts_headers() -> None:
    if not (Path(TENSORRT_INCLUDE) / "NvInferVersion.h").is_file():
        pytest.skip("needs TENSORRT_INCLUDE, a folder of TensorRT's headers")
    folders = [f"-isystem{TENSORRT_INCLUDE}", f"-isystem{CUDA_INCLUDE}"]
    command = [COMPILER, "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", *folders, str(SOURCE / "example.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
