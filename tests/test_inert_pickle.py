"""The reader of pickles gives back data, and executes nothing whatever a file says."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from corrflow.errors import InputError
from corrflow.evaluate.datasets.safe_pickle import read_inert_pickle

EXAMPLE = {
    "name": {
        "video": np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3),
        "points": np.random.default_rng(0).random((3, 2, 2), np.float32),
        "occluded": np.array([[True, False], [False, False], [True, True]]),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big endian": np.arange(5, dtype=">i4"),
        "empty": np.zeros((0, 3), np.int64),
        "frames": [b"jpeg one", b"", b"jpeg two" * 40],
        "numbers": (1, -5, 2**40, 3.5, True, None, np.float32(0.25), np.int64(7)),
        "text": "grün",
        "shared": [],
    }
}
EXAMPLE["name"]["again"] = EXAMPLE["name"]["video"]


def written(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_reads_as_it_was_written(tmp_path: Path, protocol: int) -> None:
    assert same(read_inert_pickle(written(tmp_path / "a.pkl", EXAMPLE, protocol)), EXAMPLE)


def test_arrays_of_objects_come_as_lists(tmp_path: Path) -> None:
    frames = np.array([b"one", b"two"], dtype=object)
    assert read_inert_pickle(written(tmp_path / "a.pkl", frames)) == [b"one", b"two"]


def test_arrays_are_views_that_cannot_be_written(tmp_path: Path) -> None:
    array = read_inert_pickle(written(tmp_path / "a.pkl", np.zeros(4)))
    assert not array.flags.writeable and not array.flags.owndata


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "evil",
    [
        Evil(os.system, "touch executed"),
        Evil(eval, "open('executed', 'w')"),
        Evil(getattr, "text", "upper"),
        Evil(np.load, "executed"),
        Evil(np.memmap, "executed", "u1", "w+", 0, (3,)),
        np.zeros(2, [("x", "f4")]),
        np.array(["text"]),
        np.zeros(1, "M8[s]"),
        {1, 2},
        1j,
        Path("x"),
    ],
    ids=["system", "eval", "getattr", "load", "memmap", "fields", "text", "time", "set", "complex", "path"],
)
def test_anything_but_data_is_refused_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 3, 4, 5):
        path = written(tmp_path / "evil.pkl", {"video": [evil]}, protocol)
        with pytest.raises(InputError, match="nothing in it was executed"):
            read_inert_pickle(path)
    assert [item.name for item in tmp_path.iterdir()] == ["evil.pkl"]


def test_hand_written_attacks_are_refused(tmp_path: Path) -> None:
    attacks = {
        "global": b"cos\nsystem\n(X\x04\x00\x00\x00exit\x85R.",
        "instance": b"(X\x01\x00\x00\x00aios\nsystem\n.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        "itself": b"]q\x00h\x00a.",
        "huge": b"\x80\x04B\xff\xff\xff\xff.",
        "negative": b"T\xff\xff\xff\xff.",
        "name alone": b"cnumpy\nndarray\n.",
        "endless name": b"c" + b"a" * 5000,
    }
    for name, content in attacks.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="expected a pickle"):
            read_inert_pickle(tmp_path / name)


def test_lists_that_double_on_and_on_cost_no_time(tmp_path: Path) -> None:
    laughs = (
        b"]" + b"".join(b"q" + bytes([k]) + b"]h" + bytes([k]) + b"ah" + bytes([k]) + b"a" for k in range(60)) + b"."
    )
    (tmp_path / "laughs").write_bytes(laughs)
    assert len(read_inert_pickle(tmp_path / "laughs")) == 2


def test_a_length_that_does_not_fit_the_bytes_is_refused(tmp_path: Path) -> None:
    content = pickle.dumps(np.zeros((3, 5), np.float64), 4)
    shape = struct.pack("<BBBB", ord("K"), 3, ord("K"), 5)
    assert shape in content
    (tmp_path / "a").write_bytes(content.replace(shape, struct.pack("<BBBB", ord("K"), 3, ord("K"), 6)))
    with pytest.raises(InputError, match="120 bytes for an array of 144"):
        read_inert_pickle(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"\x80", b"no pickle at all"])
def test_files_that_are_no_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match="expected a pickle"):
        read_inert_pickle(tmp_path / "a")
    with pytest.raises(InputError, match="no readable file"):
        read_inert_pickle(tmp_path / "b")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    protocol=st.integers(2, 5),
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
        path = tmp_path / "fuzzed.pkl"
        path.write_bytes(candidate)
        try:
            read_inert_pickle(path)
        except InputError as error:
            assert "\n" not in str(error)
