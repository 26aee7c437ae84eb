"""Check of ONNX files before a runtime loads them: no external data, no unknown operators, no bombs.

Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from corrflow.errors import InputError
from corrflow.runtime.artifacts.onnx_sizes import SizeCheck, TooLarge
from corrflow.runtime.artifacts.protobuf import message_fields

ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "corrflow"})
_MAX_DEPTH = 32  # of nested messages; exported artifacts have one subgraph level
_MOST_MESSAGES = 1_000_000

# Message fields by message and field number; other fields are skipped.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 8: "OperatorSet", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Function": {7: "Node", 9: "OperatorSet", 11: "Attribute"},
    "Training": {1: "Graph", 2: "Graph"},
    "OperatorSet": {},
    "Tensor": {},
}
_DOMAIN_FIELD = {"Node": 7, "OperatorSet": 1, "Function": 10}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_ONLY_OURS = "only artifacts written by corrflow-export are loaded"


def check_onnx(name: str, content: bytes) -> None:
    """Raise InputError unless `content` is an ONNX model without external data, unknown operators and bombs.

    A bomb is a constant that lets an operator make far more values than the file has.
    """
    check = _Check(name)
    try:
        kinds = check.message(memoryview(content), "Model", 0)
        check.sizes.finish()
    except TooLarge as error:
        raise InputError(f"{name}: expected a graph without {error}; {_ONLY_OURS}") from error
    except (IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{name} is damaged: expected an ONNX model, got bytes that end early or make no sense"
                         "; export the artifact again") from error  # fmt: skip
    if "Graph" not in kinds:
        raise InputError(f"{name}: expected an ONNX model, got a file without a graph; export the artifact again")


class _Check:
    """Check of one file."""

    def __init__(self, name: str) -> None:
        self._name, self._messages = name, 0
        self.sizes = SizeCheck()

    def message(self, content: memoryview, kind: str, depth: int) -> set[str]:
        """Check a message and its submessages, and return the kinds of the latter. Raises InputError and IndexError."""
        self._messages += 1
        if depth > _MAX_DEPTH or self._messages > _MOST_MESSAGES:
            raise InputError(
                f"{self._name}: expected at most {_MOST_MESSAGES} messages nested at most {_MAX_DEPTH} deep; refused"
            )
        if kind == "SparseTensor":
            raise TooLarge("sparse weights, which are unpacked to any size")
        kinds: set[str] = set()
        fields = list(message_fields(content))
        for field, value in fields:
            inner = _MESSAGES[kind].get(field)
            if inner is not None and isinstance(value, memoryview):
                kinds.add(inner)
                self.message(value, inner, depth + 1)
            elif field == _DOMAIN_FIELD.get(kind) and isinstance(value, memoryview):
                domain = bytes(value).decode()
                if domain not in ALLOWED_DOMAINS:
                    raise InputError(
                        f"{self._name}: expected operators of {sorted(ALLOWED_DOMAINS - {''})}, got the domain"
                        f" {domain!r}; {_ONLY_OURS}"
                    )
            elif kind == "Tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)):
                raise InputError(
                    f"{self._name}: expected all weights inside the file, got a tensor with external data; {_ONLY_OURS}"
                )
        if kind == "Node":
            self.sizes.add_node(fields)
        elif kind == "Graph":
            self.sizes.add_weights([value for field, value in fields if field == 5 and isinstance(value, memoryview)])
        return kinds
