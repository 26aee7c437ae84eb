"""The reader of pickles returns data, and executes nothing whatever a file says."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from corrflow.errors import InputError
from corrflow.evaluate.datasets import safe_pickle
from corrflow.evaluate.datasets.safe_pickle import read_pickle

EXAMPLE = {
    "name": {
        "video": np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3),
        "points": np.random.default_rng(0).random((3, 2, 2), np.float32),
        "occluded": np.array([[True, False], [False, False], [True, True]]),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
        "big endian": np.arange(5, dtype=">i4"),
        "large, big endian": np.arange(5000, dtype=">f8"),
        "also big endian": np.arange(7, dtype=">i4"),
        "empty": np.zeros((0, 3), np.int64),
        "objects": np.array([b"one", "two", None], dtype=object),
        "frames": [b"jpeg one", b"", b"jpeg two" * 40],
        "numbers": (1, -5, 2**40, 2**70, 3.5, True, None, np.float32(0.25), np.int64(7)),
        "text": "grün",
        "shared": [],
        1: 2.5,
    }
}
EXAMPLE["name"]["again"] = EXAMPLE["name"]["video"]


def written(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def read_bytes(folder: Path, content: bytes) -> Any:
    (folder / "a.pkl").write_bytes(content)
    return read_pickle(folder / "a.pkl")


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        types = [array.dtype.newbyteorder("=") for array in (one, other)]  # which NumPy also changes
        return type(one) is type(other) and types[0] == types[1] and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_reads_as_it_was_written(tmp_path: Path, protocol: int) -> None:
    assert same(read_pickle(written(tmp_path / "a.pkl", EXAMPLE, protocol)), EXAMPLE)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_both_names_of_numpys_core_are_read(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(np.arange(3), protocol)
    at, end = content.index(b"numpy"), content.index(b"multiarray")
    for core in (b"numpy.core.", b"numpy._core."):
        name = core + b"multiarray"
        if protocol == 4:  # the length of the name comes before the name; the frame's length goes
            changed = b"\x80\x04" + content[11 : at - 1] + bytes([len(name)]) + name + content[end + 10 :]
        else:
            changed = content[:at] + name + content[end + 10 :]
        assert same(read_bytes(tmp_path, changed), np.arange(3))


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class WithState:
    """Pickled by NEWOBJ and BUILD."""

    def __init__(self) -> None:
        self.field = 1


@pytest.mark.parametrize(
    "evil",
    [
        Call(os.system, "touch executed"),
        Call(eval, "open('executed', 'w')"),
        Call(getattr, "text", "upper"),
        Call(np.load, "executed"),
        Call(np.memmap, "executed", "u1", "w+", 0, (3,)),
        Call(np.fromfile, "executed"),
        Call(np.ndarray, (1,), "O"),
        Call(np.dtype, "O", False, True),
        Call(np.dtype, [("x", "f4")]),
        Call(np.dtype, "f4,(1000000000,)f8"),
        Call(bytes, 2**40),
        Call(__import__("codecs").encode, "text", "hex"),
        np.zeros(2, [("x", "f4")]),
        np.array(["text"]),
        np.zeros(1, "M8[s]"),
        np.zeros(1, np.complex64),
        WithState(),
        {1, 2},
        frozenset({1}),
        {(1, 2): 3},
        1j,
        Path("x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_but_data_is_refused_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = written(tmp_path / "evil.pkl", {"video": [evil]}, protocol)
        with pytest.raises(InputError, match="nothing in it was executed"):
            read_pickle(path)
    assert [item.name for item in tmp_path.iterdir()] == ["evil.pkl"]


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btRq\x00"
"""An array without bytes, remembered as 0."""

F4 = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4I00\nI01\ntRq\x01"

ATTACKS = {
    "GLOBAL": b"cos\nsystem\n(X\x05\x00\x00\x00touchtR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93(\x8c\x0etouch executedtR.",
    "INST": b"(X\x0e\x00\x00\x00touch executedios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x0e\x00\x00\x00touch executedo.",
    "NEWOBJ": b"cbuiltins\nopen\n(X\x08\x00\x00\x00executedX\x01\x00\x00\x00wt\x81.",
    "NEWOBJ of a known name": b"cnumpy\nndarray\n(K\x01t\x81.",
    "NEWOBJ_EX": b"\x80\x04cnumpy\nndarray\n(K\x01t}\x92.",
    "PERSID": b"Pname\n.",
    "BINPERSID": b"K\x01Q.",
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x00.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    "name in two halves": b"\x80\x04\x8c\x05numpy\x8c\x05ctypeslib.load_library\x93.",
    "call of text": b"X\x02\x00\x00\x00hi)R.",
    "call of an array": ARRAY + b")R.",
    "BUILD of text": b"X\x02\x00\x00\x00hi}b.",
    "BUILD of a name": b"c_codecs\nencode\n}X\x08\x00\x00\x00__code__K\x01sb.",
    "BUILD of a dictionary": b"}}X\x01\x00\x00\x00aK\x01sb.",
    "BUILD of slots": b"cnumpy\nndarray\n(N}X\x08\x00\x00\x00__name__K\x01stb.",
    "BUILD of an array twice": ARRAY + 2 * (b"(K\x01K\x01\x85" + F4 + b"I00\nC\x04aaaatb") + b".",
    "array of negative sides": ARRAY + b"(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86" + F4 + b"I00\nC\x04aaaatb.",
    "array of claimed terabytes": ARRAY + b"(K\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x85" + F4 + b"I00\nC\x04aaaatb.",
    "objects that are claimed": ARRAY
    + b"(K\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x85cnumpy\ndtype\n(X\x02\x00\x00\x00O8I00\nI01\ntRI00\n]tb.",
    "pointers as numbers": ARRAY
    + b"(K\x01K\x01\x85cnumpy\ndtype\n(X\x02\x00\x00\x00O8I00\nI01\ntRI00\nC\x08aaaaaaaatb.",
    "flags of a type": F4 + b"(K\x03X\x01\x00\x00\x00<N(X\x01\x00\x00\x00at}K\x08K\x08K\x3ftb.",
    "objects in a buffer": b"cnumpy.core.numeric\n_frombuffer\n(C\x08aaaaaaaacnumpy\ndtype\n"
    b"(X\x02\x00\x00\x00O8I00\nI01\ntR(K\x01tX\x01\x00\x00\x00CtR.",
    "bytes that are not there": b"\x80\x04B\xff\xff\xff\xff.",
    "terabytes that are not there": b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00.",
    "a buffer that is not there": b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",
    "endless name": b"c" + b"a" * 5000,
    "endless number in binary": b"\x8b\x00\x00\x01\x00" + b"\x01" * 65536 + b".",
    "endless number": b"L" + b"9" * 100_000 + b"L\n.",
    "deep tuple as a key": b"}K\x01" + b"\x85" * 200_000 + b"K\x01s.",
    "deep tuple as a key, in a row": b"}(K\x01" + b"\x85" * 200_000 + b"K\x01u.",
    "deep tuple as a key, protocol 0": b"(K\x01" + b"\x85" * 200_000 + b"K\x01d.",
    "a key without a value": b"}(K\x01u.",
    "keys of a list": b"](K\x00K\x01u.",
    "no values": b"R",
    "nothing": b".",
}


@pytest.mark.parametrize("content", ATTACKS.values(), ids=ATTACKS)
def test_attacks_are_refused_at_once_and_take_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="nothing in it was executed") as refusal:
            read_bytes(tmp_path, content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20 + 200 * len(content)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400
    assert [item.name for item in tmp_path.iterdir()] == ["a.pkl"]


@pytest.mark.parametrize(
    "content",
    [b"K\x07r\xff\xff\xff\x7f.", b"\x80\x04\x95\x00\x00\x00\x00\x00\x01\x00\x00K\x07."],
    ids=["index of the memo", "length of a frame"],
)
def test_a_number_alone_takes_no_memory(tmp_path: Path, content: bytes) -> None:
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path, content) == 7
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_types_of_numpy_are_as_before(tmp_path: Path) -> None:
    read_bytes(tmp_path, pickle.dumps(np.zeros(3, ">f4"), 2))
    assert np.dtype("f4").isnative and np.dtype("f4") == np.float32


def test_an_array_that_others_look_at_is_left_as_it_is(tmp_path: Path) -> None:
    view = b"cnumpy.core.numeric\n_frombuffer\n(h\x00h\x01(K\x01tX\x01\x00\x00\x00CtR"
    first = ARRAY + b"(K\x01K\x01\x85" + F4 + b"I00\nC\x04aaaatb"
    with pytest.raises(InputError, match="nothing in it was executed"):
        read_bytes(tmp_path, first + view + b".")


def test_lists_that_double_on_and_on_cost_no_time(tmp_path: Path) -> None:
    laughs = (
        b"]" + b"".join(b"q" + bytes([k]) + b"]h" + bytes([k]) + b"ah" + bytes([k]) + b"a" for k in range(60)) + b"."
    )
    assert len(read_bytes(tmp_path, laughs)) == 2


def test_one_object_may_be_referred_to_often(tmp_path: Path) -> None:
    shared = {"array": np.zeros(1000), "frame": b"x" * 1000, "size": (3, 4)}
    for protocol in (0, 2, 4, 5):
        content = written(tmp_path / "a.pkl", [shared["array"], shared["frame"], shared["size"]] * 7000, protocol)
        read = read_pickle(content)
        assert len(read) == 21_000 and len({id(item) for item in read}) == 3


@pytest.mark.parametrize(
    "again",
    [
        b"c_codecs\nencode\n(h\x05X\x06\x00\x00\x00latin1tR",
        ARRAY.replace(b"q\x00", b"") + b"(K\x01M\xe8\x03\x85h\x07I00\nh\x06tb",
    ],
    ids=["text", "array"],
)
def test_bytes_that_are_copied_again_and_again_are_refused(tmp_path: Path, again: bytes) -> None:
    kept = b"X\x40\x1f\x00\x00" + b"x" * 8000 + b"q\x05" + b"B\x40\x1f\x00\x00" + b"x" * 8000 + b"q\x06"
    kept += F4.replace(b"f4", b"f8").replace(b"q\x01", b"") + b"(K\x03X\x01\x00\x00\x00>NNNtbq\x07"
    assert len(read_bytes(tmp_path, b"(" + kept + b"(" + again * 2 + b"ll.")) == 4
    with pytest.raises(InputError, match="more bytes in its arrays than in the file"):
        read_bytes(tmp_path, b"(" + kept + b"(" + again * 1000 + b"ll.")


def test_a_file_of_too_many_bytes_or_opcodes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(list(range(1000)))
    monkeypatch.setattr(safe_pickle, "MAX_OPCODES", 900)
    with pytest.raises(InputError, match="more than 900 opcodes"):
        read_bytes(tmp_path, content)
    monkeypatch.setattr(safe_pickle, "MAX_BYTES", len(content) - 1)
    with pytest.raises(InputError, match=f"a file of {len(content)} bytes"):
        read_bytes(tmp_path, content)


def test_a_length_that_does_not_fit_the_bytes_is_refused(tmp_path: Path) -> None:
    for protocol in (4, 5):
        content = pickle.dumps(np.zeros((3, 5), np.float64), protocol)
        shape = struct.pack("<BBBB", ord("K"), 3, ord("K"), 5)
        assert shape in content
        with pytest.raises(InputError, match="nothing in it was executed"):
            read_bytes(tmp_path, content.replace(shape, struct.pack("<BBBB", ord("K"), 3, ord("K"), 6)))


@pytest.mark.parametrize("content", [b"", b"\x80", b"no pickle at all"])
def test_files_that_are_no_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="expected a pickle"):
        read_bytes(tmp_path, content)
    with pytest.raises(InputError, match="no readable file"):
        read_pickle(tmp_path / "b")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    protocol=st.integers(0, 5),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    cut=st.floats(0, 1),
    noise=st.binary(max_size=80),
)
@example(protocol=4, changes=[(0.03125, 10)], cut=0.0, noise=b"")  # a line feed in a name
def test_any_bytes_are_data_or_one_sentence(
    tmp_path: Path, protocol: int, changes: list[tuple[float, int]], cut: float, noise: bytes
) -> None:
    content = bytearray(pickle.dumps(EXAMPLE, protocol))
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    for candidate in (bytes(content), bytes(content[: int(cut * len(content))]), noise):
        try:
            read_bytes(tmp_path, candidate)
        except InputError as error:
            assert "\n" not in str(error)
