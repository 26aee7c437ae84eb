"""The check of ONNX files refuses what a runtime would find in them, however it is written."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper, numpy_helper

from corrflow.errors import InputError
from corrflow.runtime.artifacts.bundled import BUNDLED
from corrflow.runtime.artifacts.onnx_check import ALLOWED_DOMAINS, check_onnx

pytestmark = pytest.mark.faults
FLOATS = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
RESULT = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)


def model(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto] | None = None, functions: list | None = None
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", [FLOATS], [RESULT], weights or [])
    return helper.make_model(graph, functions=functions or [], opset_imports=[helper.make_opsetid("", 17)])


def integers(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def looped() -> onnx.ModelProto:
    number = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    goes_on = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    carried = helper.make_tensor_value_info("v", TensorProto.FLOAT, [1])
    body = helper.make_graph([helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["v"], ["w"])],
                             "body", [number, goes_on, carried], [goes_on, carried])  # fmt: skip
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    return model([loop], [integers("n", 2**62)])


BOMBS = {
    "ConstantOfShape of a weight": model([helper.make_node("ConstantOfShape", ["s"], ["y"])], [integers("s", 2**62)]),
    "ConstantOfShape of several sides": model(
        [helper.make_node("ConstantOfShape", ["s"], ["y"])], [integers("s", 2**16, 2**16)]
    ),
    "ConstantOfShape of a node": model(
        [
            helper.make_node("Constant", [], ["s"], value=integers("", 2**40)),
            helper.make_node("ConstantOfShape", ["s"], ["y"]),
        ]
    ),
    "ConstantOfShape of an attribute": model(
        [
            helper.make_node("Constant", [], ["s"], value_ints=[2**31]),
            helper.make_node("ConstantOfShape", ["s"], ["y"]),
        ]
    ),
    "ConstantOfShape in a function": model(
        [helper.make_node("Big", ["x"], ["y"], domain="corrflow")],
        functions=[
            helper.make_function(
                "corrflow",
                "Big",
                ["x"],
                ["y"],
                [
                    helper.make_node("Constant", [], ["s"], value=integers("", 2**40)),
                    helper.make_node("ConstantOfShape", ["s"], ["y"]),
                ],
                [helper.make_opsetid("", 17)],
            )
        ],
    ),
    "Loop": looped(),
    "Expand": model([helper.make_node("Expand", ["x", "s"], ["y"])], [integers("s", 2**50)]),
    "Tile": model([helper.make_node("Tile", ["x", "s"], ["y"])], [integers("s", 2**40)]),
    "Pad": model([helper.make_node("Pad", ["x", "s"], ["y"])], [integers("s", 0, 2**40)]),
    "Range": model([helper.make_node("Range", ["a", "b", "c"], ["y"])], [integers(*one) for one in
                   (("a", 0), ("b", 2**40), ("c", 1))]),
    "Resize": model(
        [helper.make_node("Resize", ["x", "", "s"], ["y"])], [numpy_helper.from_array(np.array([1e9], np.float32), "s")]
    ),
    "RandomNormal": model([helper.make_node("RandomNormal", [], ["y"], shape=[2**16, 2**16])]),
    "pads of a convolution": model([helper.make_node("Conv", ["x", "w"], ["y"], pads=[2**40] * 4)]),
    "sparse weights": model(
        [helper.make_node("Constant", [], ["y"], sparse_value=helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(1, np.float32)), integers("", 0), [2**40]))]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_constant_that_asks_for_far_more_than_the_file_has_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"expected a graph without .*; only artifacts written by corrflow-export"):
        check_onnx("model.onnx", BOMBS[name].SerializeToString())


def test_the_bundled_models_pass() -> None:
    paths = sorted(BUNDLED.glob("*/*.onnx"))
    assert paths
    for path in paths:
        check_onnx(path.name, path.read_bytes())


def varint(value: int, length: int = 0) -> bytes:
    """Encode a varint, with needless bytes up to a length."""
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127)
    groups += [0] * (length - len(groups))
    return bytes(group | 128 for group in groups[:-1]) + bytes(groups[-1:])


def foreign(node: bytes) -> bytes:
    """Return a model with a graph of one node, given as bytes."""
    graph = varint(1 << 3 | 2) + varint(len(node)) + node
    return varint(1 << 3) + varint(8) + varint(7 << 3 | 2) + varint(len(graph)) + graph


@pytest.mark.parametrize("excess", [1 << 32, 1 << 35, 5 << 32, 1 << 62])
@pytest.mark.parametrize("field", [7, 4], ids=["domain", "operator"])
def test_a_key_of_more_than_32_bits_is_refused(field: int, excess: int) -> None:
    text = b"com.microsoft"
    hidden = varint((field << 3 | 2) + excess) + varint(len(text)) + text
    with pytest.raises(InputError, match="damaged"):
        check_onnx("model.onnx", foreign(hidden))


def test_the_domain_of_a_key_with_needless_bytes_is_read() -> None:
    text = b"com.microsoft"
    for length in range(1, 6):
        written = foreign(varint(7 << 3 | 2, length) + varint(len(text), length) + text)
        assert onnx.load_model_from_string(written).graph.node[0].domain == "com.microsoft"
        with pytest.raises(InputError, match=r"domain 'com\.microsoft'"):
            check_onnx("model.onnx", written)


def messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if isinstance(value, (list,)) or hasattr(value, "add") else [value]:
                yield from messages(one)


def hidden_in(content: bytes) -> list[str]:
    """Return what the onnx package finds in a model that must not be in it."""
    try:
        found = onnx.load_model_from_string(content)
    except DecodeError:
        return []
    wrong = []
    for message in messages(found):
        if isinstance(message, (onnx.NodeProto, onnx.OperatorSetIdProto, onnx.FunctionProto)):
            wrong += [message.domain] if message.domain not in ALLOWED_DOMAINS else []
        if isinstance(message, onnx.NodeProto) and message.op_type == "Loop":
            wrong.append("Loop")
        if isinstance(message, onnx.TensorProto) and (message.external_data or message.data_location):
            wrong.append("external data")
        if isinstance(message, onnx.SparseTensorProto):
            wrong.append("sparse weights")
    return wrong


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Return damaged bytes, often with a key or length in more bytes or bits than it needs."""
    damaged = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(len(damaged))
        action = dice.randrange(6)
        if action == 0:
            damaged[at] = dice.randrange(256)
        elif action == 1:
            del damaged[at : at + dice.choice((1, 2, 8))]
        elif action == 2:
            damaged[at : at + 1] = varint(damaged[at] + dice.choice((1 << 32, 1 << 35, 1 << 60, 0)), dice.randrange(11))
        elif action == 3:
            damaged[at:at] = damaged[max(0, at - 20) : at]
        elif action == 4:
            damaged[at] ^= 1 << dice.randrange(8)
        else:
            damaged[at:at] = dice.choice((b"", varint(7 << 3 | 2) + b"\x03com", varint(14 << 3) + b"\x01", b"\x3b\x3c"))
    return bytes(damaged)


def test_what_passes_has_nothing_that_the_onnx_package_finds() -> None:
    external = integers("w", 1)
    external.data_location = TensorProto.EXTERNAL
    external.external_data.add(key="location", value="/etc/passwd")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    seeds = [
        model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]),
        model([node], [external]),
        model([node], [integers("w", 1)]),
        BOMBS["ConstantOfShape in a function"],
        looped(),
    ]
    dice, passed = random.Random(0), 0
    for number in range(3000):
        content = mutated(seeds[number % len(seeds)].SerializeToString(), dice)
        try:
            check_onnx("model.onnx", content)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
            continue
        passed += 1
        assert not (found := hidden_in(content)), (found, content)
    assert passed > 100
