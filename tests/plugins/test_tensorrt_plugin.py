"""Life cycle of the TensorRT plugin on TensorRT's Python bindings; stub libraries replace what needs a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.native import COMPILER, build_shared
from helpers.paths import HELPERS, NATIVE

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy import tensorrt_plugin
from corrflow.plugins.local_soft_copy.cuda.launch import Launch, plan
from corrflow.plugins.local_soft_copy.spec import Attributes

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
READ_NUMPY_1 = ("10.3", "10.13")
OPS = ["radius", "dilation", "top_k", "temperature"]

Life = Callable[..., Any]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, gpu_wheels: Callable[[str], Path]) -> Life:
    """Return life("10.3", "v3"): observations of a scenario of on_stub_bindings.py, or its standard error."""
    if sys.platform != "linux" or shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER} on Linux to build stub libraries")
    pytest.importorskip("cuda.core", reason="needs cuda-core")
    folder = tmp_path_factory.mktemp("stubs")

    def run(version: str, scenario: str, numpy: bool = True) -> Any:
        bindings, major = gpu_wheels(f"tensorrt-{version}"), version.partition(".")[0]
        stubs = folder / major
        stubs.mkdir(exist_ok=True)
        for library in LIBRARIES:
            build_shared(NATIVE / "tensorrt_stub.cpp", stubs / f"lib{library}.so.{major}")
        environment = dict(os.environ)
        if version in READ_NUMPY_1 and numpy:
            environment["PYTHONPATH"] = str(gpu_wheels("numpy-1.26"))
        program = [sys.executable, str(HELPERS / "on_stub_bindings.py"), str(bindings), str(stubs), scenario]
        done = subprocess.run(program, capture_output=True, text=True, env=environment)
        return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr

    return run


@pytest.mark.parametrize(
    ("version", "form"),
    [
        ("8.6.1", "none"),
        ("10.2.0", "none"),
        ("10.3.0", "v3"),
        ("10.13.3.9.post1", "v3"),
        ("10.15.1.29", "v3"),
        ("10.16.0.72", "aot"),
        ("11.0.0.114", "aot"),
        ("11.4.0.106", "aot"),
        ("12.0", "aot"),
        ("nonsense", "none"),
    ],
)
def test_the_form_depends_on_the_version(version: str, form: str) -> None:
    assert tensorrt_plugin.form_for(version) == form


def launch_of(height: int, attributes: Attributes) -> Launch:
    """Plan the launch for the sizes of on_stub_bindings.py and plugin_life.cpp."""
    sizes = {"channels": 91, "classes": 4, "num_windows": 5, "height": height, "width": 107}
    return plan(**sizes, attributes=attributes, dtype="float16")


@pytest.mark.parametrize(("version", "form"), [("10.3", "v3"), ("10.16", "aot"), ("11.4", "aot")])
def test_the_real_module_is_registered_once(version: str, form: str, life: Life) -> None:
    observed = life(version, "form")
    assert observed["version"].startswith(version)
    assert (observed["form"], observed["again"]) == (form, form)


def test_an_old_tensorrt_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"expected TensorRT 10.3 or later .* got 8.6.1; .*--plugin off"):
        tensorrt_plugin.register(SimpleNamespace(__version__="8.6.1"))


@pytest.mark.parametrize("version", ["10.3", "10.16", "11.4"])
def test_the_life_cycle_of_the_v3_plugin(version: str, life: Life) -> None:
    observed = life(version, "v3")
    assert observed["fields"] == OPS
    assert observed["parsed"] and observed["default"] and observed["cloned"] and observed["interfaces"]
    assert observed["corrupted"] == 0, "of 200 round trips through serialised fields"
    assert observed["identity"] == ["LocalSoftCopy", "1", "corrflow", 1]
    assert observed["output type"] == ["HALF"]
    assert observed["output shape"] == ["B", "N", "H", "W"]
    refused = dict.fromkeys(["mixed", "int8", "references in half", "other layout"], False)
    assert observed["supported"] == {"half": True, "float": True} | refused
    # Input pointers, sizes, output pointer; two frame sizes share one kernel.
    first, second = observed["launched"]
    assert first["arguments"] == [11, 22, 33, 44, 60, 107, 3, 5, 66]
    assert first["32-bit"] == [False] * 4 + [True] * 4 + [False]
    assert first["stream"] == ["stream", 55]
    planned, taller = (launch_of(height, Attributes((5,), (2,), 7, 0.25)) for height in (60, 68))
    assert (first["grid"], first["block"]) == (list(planned.grid), list(planned.block))
    assert (second["grid"], second["arguments"][4]) == (list(taller.grid), 68)
    assert first["kernel"] == second["kernel"] == ["corrflow_local_soft_copy", True]
    assert observed["kernels"] == 1


@pytest.mark.parametrize("version", ["10.3", "10.13"])
def test_a_process_survives_that_tensorrt_deletes_its_plugins(
    version: str, gpu_wheels: Callable[[str], Path], tmp_path: Path
) -> None:
    """A C++ program leads the plugin's life in a thread of its own, and deletes every clone."""
    if sys.platform != "linux" or shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER} on Linux to build stub libraries")
    bindings, major = gpu_wheels(f"tensorrt-{version}"), version.partition(".")[0]
    for library in LIBRARIES:
        source = "plugin_life.cpp" if library == "nvinfer" else "tensorrt_stub.cpp"
        build_shared(NATIVE / source, tmp_path / f"lib{library}.so.{major}")
    program = [sys.executable, str(HELPERS / "plugin_life.py"), str(bindings), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(gpu_wheels("numpy-1.26"))}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    planned = {height: launch_of(height, Attributes((8, 12), (1, 2), 5, 0.07)) for height in (60, 68)}
    launches = [
        ((launch.grid, launch.block), [11, 22, 33, 44, height, 107, 3, 5, 66]) for height, launch in planned.items()
    ]
    assert done.stdout.splitlines() == [
        "creator: LocalSoftCopy 1 corrflow corrflow",
        "fields: radius dilation top_k temperature",
        "plugin: LocalSoftCopy 1 corrflow 1",
        "output type: 1",
        "output shape: 1 4 60 107",
        "supported: half 1 float 1 mixed 0 references 0 layout 0",
        "serialised: 8 12 1 2 5 0.07",
        *(f"launch: corrflow_local_soft_copy 55 {config} {arguments}" for config, arguments in launches),
        "done: deleted",
    ]


def test_bindings_that_misread_this_numpy_are_refused(life: Life) -> None:
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("needs NumPy 2, whose arrays TensorRT 10.3 misreads")
    assert "misread the arrays of NumPy" in life("10.3", "form", numpy=False)


@pytest.mark.parametrize("version", ["10.16", "11.4"])
def test_the_ahead_of_time_plugin_is_built_by_tensorrts_template(version: str, life: Life) -> None:
    observed = life(version, "aot")
    assert observed["fields"] == OPS and observed["class"] == "_TemplateAOTPlugin" and observed["parsed"]
    assert observed["output type"] == ["HALF"]
    assert observed["output shape"] == ["B", "4", "H", "W"]
    assert observed["combinations"] == [[kind, "LINEAR"] for kind in ("HALF", "HALF", "HALF", "INT32", "HALF")]
    assert observed["tactics"] == [1]
    # The grid is an expression of the free sizes and has launch.py's value for SIZES.
    planned = launch_of(60, Attributes((5,), (2,), 7, 0.25))
    block = {"block_x": planned.block[0], "block_y": 1, "block_z": 1, "shared_mem": 0}
    assert observed["launch"] == {
        "grid_x": f"CEIL_DIV(W, {planned.tile[0]})",
        "grid_y": f"CEIL_DIV(H, {planned.tile[1]})",
        "grid_z": "PROD(B, 1)",
        **{name: str(value) for name, value in block.items()},
    }
    grid = dict(zip(("grid_x", "grid_y", "grid_z"), planned.grid, strict=True))
    assert observed["values"] == grid | block
    assert observed["extras"] == ["H", "W", "K", "M"]
    assert observed["compiled"] == ["sm_87", "ptx", True]
    assert (observed["kernel"], observed["code"]) == ("corrflow_local_soft_copy", ".version 7.4\n.target sm_87\nret;\n")


@pytest.mark.parametrize("version", ["10.16", "11.4"])
def test_tensorrt_refuses_other_signatures(version: str, life: Life) -> None:
    refused = life(version, "signatures")
    assert set(refused) == {"without tactic", "other order"}
    assert all("does not match the expected input arg schema" in message for message in refused.values())


def test_fields_are_read_by_name_with_any_type() -> None:
    fields = {"temperature": np.array([0.5], np.float64), "radius": np.array([3, 1], np.int32), "top_k": 4}
    assert tensorrt_plugin.attributes_from(fields) == Attributes((3, 1), (1,), 4, 0.5)
    assert tensorrt_plugin.attributes_from({}) == Attributes()


def described(kind: str, *shape: int) -> SimpleNamespace:
    return SimpleNamespace(dtype=SimpleNamespace(name=kind), shape=shape)


ROWS = described("INT32", 9, 4)


def test_free_channels_or_classes_are_refused() -> None:
    query, keys = described("HALF", 1, 8, -1, -1), described("HALF", 1, 2, 8, -1, -1)
    with pytest.raises(InputError, match="given number of classes, got a free one"):
        tensorrt_plugin._largest_launch(query, keys, described("HALF", 1, 2, -1, -1, -1), ROWS, Attributes())
    free = described("HALF", 1, -1, 5, 5)
    with pytest.raises(InputError, match="given number of channels, got a free one"):
        tensorrt_plugin._largest_launch(free, keys, described("HALF", 1, 2, 3, -1, -1), ROWS, Attributes())


@pytest.mark.parametrize(
    "kinds", [("HALF", "FLOAT", "HALF", "INT32"), ("INT8", "INT8", "INT8", "INT32"), ("HALF", "HALF", "HALF", "INT64")]
)
def test_types_that_the_kernel_does_not_support_are_refused(kinds: tuple[str, ...]) -> None:
    shapes = ((1, 8, 5, 5), (1, 2, 8, 5, 5), (1, 2, 3, 5, 5), (9, 4))
    query, keys, values, rows = (described(kind, *shape) for kind, shape in zip(kinds, shapes, strict=True))
    with pytest.raises(CorrflowError, match=f"BF16 and references INT32, got {', '.join(kinds)}; add casts"):
        tensorrt_plugin._largest_launch(query, keys, values, rows, Attributes())
