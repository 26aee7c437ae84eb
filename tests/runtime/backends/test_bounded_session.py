"""Graphs that compute sizes when they run stay within the limit on memory, measured from outside the process."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from corrflow.runtime.artifacts.onnx_check import check_onnx

pytestmark = pytest.mark.faults

LIMIT, MOST_PEAK = 64, 400  # MB: of the sessions in this test, and of the process with its libraries
PROGRAM = f"""
import sys
from pathlib import Path
import numpy as np
from corrflow.errors import CorrflowError
from corrflow.runtime.backends import bounded_session
from corrflow.runtime.backends.onnx_encoder import OnnxEncoder, OnnxEncoderSession
bounded_session.most_memory = lambda: {LIMIT} << 20
try:
    session = OnnxEncoderSession(OnnxEncoder(Path(sys.argv[1]), "nchw"), 1)
    print(session.maps(np.zeros((1, 8, 8, 3), np.uint8)).maps.shape)
except CorrflowError as error:
    print(error)
# ru_maxrss would begin at the size of the process that started this one.
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) >> 10)
"""


def integers(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def floats(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(np.float32), name)


def joined(first: str, count: int) -> list[onnx.NodeProto]:
    """Return nodes that join a value with itself `count` times, to "y"."""
    names = [first, *(f"joined {number}" for number in range(1, count)), "y"]
    return [helper.make_node("Concat", [a, a], [b], axis=3) for a, b in itertools.pairwise(names)]


FOUR = [integers("one", 1), integers("side", 2**14)]
SQUARE = helper.make_node("Concat", ["one", "one", "wide", "wide"], ["s"], axis=0)
WIDE = helper.make_node("Mul", ["side", "one"], ["wide"])
COMPUTED = {  # a gigabyte of floats each
    "ConstantOfShape": ([WIDE, SQUARE, helper.make_node("ConstantOfShape", ["s"], ["y"])], FOUR),
    "Expand": ([WIDE, SQUARE, helper.make_node("ReduceMean", ["x"], ["m"]),
                helper.make_node("Expand", ["m", "s"], ["y"])], FOUR),
    "Tile": ([WIDE, SQUARE, helper.make_node("ReduceMean", ["x"], ["m"]),
              helper.make_node("Tile", ["m", "s"], ["y"])], FOUR),
    "Pad": ([WIDE, helper.make_node("Concat", ["none"] * 6 + ["wide", "wide"], ["s"], axis=0),
             helper.make_node("Pad", ["x", "s"], ["y"])], [*FOUR, integers("none", 0)]),
    "Resize": ([WIDE, helper.make_node("Concat", ["one", "channels", "wide", "wide"], ["s"], axis=0),
                helper.make_node("Resize", ["x", "", "", "s"], ["y"])], [*FOUR, integers("channels", 3)]),
    "Range": ([helper.make_node("Mul", ["side", "side"], ["end"]), helper.make_node("Squeeze", ["end"], ["limit"]),
               helper.make_node("Range", ["zero", "limit", "step"], ["row"]),
               helper.make_node("Cast", ["row"], ["y"], to=TensorProto.FLOAT)],
              [*FOUR, numpy_helper.from_array(np.array(0), "zero"), numpy_helper.from_array(np.array(1), "step")]),
    "OneHot": ([helper.make_node("Mul", ["side", "side"], ["depth"]),
                helper.make_node("OneHot", ["one", "depth", "values"], ["y"])],
               [*FOUR, floats("values", np.array([0, 1]))]),
    "the input's shape": ([helper.make_node("Shape", ["x"], ["q"]), helper.make_node("Mul", ["q", "by"], ["s"]),
                           helper.make_node("ConstantOfShape", ["s"], ["y"])], [integers("by", 1, 1, 2**11, 2**9)]),
    "an input that is joined with itself": (joined("x", 22), []),
    "a constant that is joined with itself": (joined("c", 28), [floats("c", np.ones((1, 1, 1, 1)))]),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED)
def test_a_graph_that_computes_its_sizes_ends_in_a_sentence(name: str, tmp_path: Path) -> None:
    nodes, weights = COMPUTED[name]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "height", "width"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [image], [result], weights)
    path = tmp_path / "encoder.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    check_onnx(path.name, path.read_bytes())  # which cannot know
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    message, peak = done.stdout.splitlines()
    assert "cannot encode an image" in message and int(peak) < MOST_PEAK, (message, peak)
