"""The engines beside an artifact: what they are good for, and that this machine made them.

ARTIFACT/engines/ holds encode.engine, propagate.engine, and engines.json: for what they were built, the SHA-256 of
each, and a signature (HMAC-SHA-256) with a key that never leaves this machine. An engine is code, and TensorRT runs it
without looking: one that was not signed here is not loaded.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.runtime.artifacts.artifact import (
    ENCODE,
    ENCODE_FP16,
    ENCODE_FP32,
    ENCODE_INT8,
    LARGEST_FILE,
    PROPAGATE,
    Artifact,
)

FOLDER, SIDECAR, KEY = "engines", "engines.json", "engine.key"
PRECISIONS = ("fp32", "fp16", "int8")
ENCODE_ENGINE, PROPAGATE_ENGINE = "encode.engine", "propagate.engine"
_FORMAT, _KEY_BYTES = 2, 32  # 1 had an engine for each number of references, whose windows did not move
_CHANGED = {  # for what nobody wants to read two hashes of
    "onnx": "the ONNX files have changed",
    "kernel": "the CUDA kernel has changed",
    "calibrated": "the frames that int8 is fitted to have changed",
}
_ENCODERS = {"fp32": (ENCODE_FP32, ENCODE), "fp16": (ENCODE_FP16,), "int8": (ENCODE_INT8,)}


@dataclass(frozen=True)
class EngineSpec:
    """What engines depend on: rebuilt when anything of it differs.

    tensorrt, gpu, compute_capability: where they were built
    precision:  fp32, fp16 or int8; int8 is that of the encoder's convolutions, the rest is fp16 then
    frame:      (H, W); references: the most frames remembered; labels: channels
    slots, rows: of the memory, and of the op's `references`: its K and M
    plugin:     whether LocalSoftCopy is the plugin, and not the ONNX function
    onnx:       SHA-256 of the encoder's file and of propagate.onnx
    kernel:     SHA-256 of the CUDA kernel's source; empty without the plugin
    calibrated: SHA-256 of the frames that the encoder of 8 bits was fitted to when the engines were built, from the
                file of fp32; empty where the artifact's file was taken as it is
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    precision: str
    frame: tuple[int, int]
    references: int
    slots: int
    rows: int
    labels: int
    plugin: bool
    onnx: tuple[str, str]
    kernel: str
    calibrated: str = ""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"expected --precision {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name, value, most in (("--references", self.references, 80), ("--objects", self.labels, 256)):
            if not 1 <= value <= most:
                raise InputError(f"expected {name} from 1 to {most}, got {value}")

    @property
    def names(self) -> tuple[str, ...]:
        """The engines' files."""
        return ENCODE_ENGINE, PROPAGATE_ENGINE

    def difference(self, other: EngineSpec) -> str:
        """The first thing in which these engines differ from what is wanted; empty where nothing does."""
        for field in fields(self):
            mine, wanted = getattr(self, field.name), getattr(other, field.name)
            if mine != wanted:
                if field.name in _CHANGED:
                    return _CHANGED[field.name]
                return f"{field.name.replace('_', ' ')} was {mine}, is {wanted}"
        return ""


@dataclass(frozen=True)
class Engines:
    """Engines that this machine has signed."""

    made: EngineSpec
    contents: dict[str, bytes]


def encoder_for(artifact: Artifact, precision: str) -> bytes:
    """The ONNX file of the encoder in this precision. Raises InputError where the artifact has none."""
    for name in _ENCODERS[precision]:
        if name in artifact.files:
            return artifact.files[name]
    more = " --precision int8 --calibration-data VIDEOS" if precision == "int8" else ""
    raise InputError(
        f"{artifact.name}: expected {_ENCODERS[precision][-1]} for {precision}, found none; export it with"
        f" corrflow-export onnx{more}"
    )


def onnx_hashes(artifact: Artifact, precision: str, calibrated: str = "") -> tuple[str, str]:
    """SHA-256 of what engines of this precision are built from; calibrated: as `EngineSpec` has it."""
    contents = encoder_for(artifact, "fp32" if calibrated else precision), artifact.files[PROPAGATE]
    first, second = (hashlib.sha256(content).hexdigest() for content in contents)
    return first, second


def kernel_hash() -> str:
    """SHA-256 of the CUDA kernel that this package would build into an engine."""
    kernel = files("corrflow.plugins.local_soft_copy.cuda").joinpath("local_soft_copy.cu")
    return hashlib.sha256(kernel.read_bytes()).hexdigest()


def private_folder() -> Path:
    """Where this user's key is, and what is kept from build to build."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "corrflow"


def writable_folder(artifact: Artifact) -> Path:
    """The folder for an artifact's engines, made if need be. Raises InputError where nothing can be written there."""
    folder = _folder(artifact)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
        if not any(folder.iterdir()):
            folder.rmdir()  # no empty folder is left
    except OSError as error:
        raise InputError(
            f"expected to write engines to {folder}, got {error.strerror}; copy the artifact to a writable"
            " folder, and use that"
        ) from error
    return folder


def save_engines(artifact: Artifact, engines: Engines) -> Path:
    """Write and sign the engines of an artifact, and return their folder. The sidecar is written last."""
    folder = _folder(artifact)
    for name, content in engines.contents.items():
        write_file(folder / name, content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in engines.contents.items()}
    body = {"spec": asdict(engines.spec), "files": hashes}
    sidecar = {"format": _FORMAT, **body, "signature": _signature(body, _user_key())}
    write_file(folder / SIDECAR, json.dumps(sidecar, indent=2) + "\n")
    for leftover in set(folder.glob("*.engine")) - {folder / name for name in hashes}:
        leftover.unlink()
    return folder


def load_engines(artifact: Artifact) -> Engines:
    """The engines beside an artifact, whole and signed here; whether they suit is for the caller (`check_suits`).

    Raises InputError, in one sentence with the remedy, where there are none or they are not to be trusted.
    """
    folder = _folder(artifact)
    remedy = f"build them here with corrflow-export engine {artifact.folder}"
    if not (folder / SIDECAR).is_file():
        raise InputError(f"expected engines in {folder}, found none; {remedy}")
    try:
        sidecar = json.loads(_read(folder / SIDECAR))
        if sidecar["format"] != _FORMAT:
            raise InputError(f"{folder}: expected engines of format {_FORMAT}, got {sidecar['format']!r}; {remedy}")
        body, signature = {name: sidecar[name] for name in ("made", "files")}, str(sidecar["signature"])
        trusted = _is_ours(body, signature)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{folder}: {SIDECAR} is damaged ({type(error).__name__}: {error}); {remedy}") from error
    except OSError as error:
        raise InputError(f"{folder}: {SIDECAR} cannot be read ({error.strerror}); {remedy}") from error
    if not trusted:
        raise InputError(
            f"{folder}: expected engines that this machine has built and signed, got others, and an engine is code;"
            f" {remedy}"
        )
    # From here on all of it was written by `save_engines`.
    known: dict[str, Any] = dict(body["made"])
    known.update(frame=tuple(known["frame"]), onnx=tuple(known["onnx"]))
    made, contents = EngineSpec(**known), {}
    for name in made.names:
        try:
            contents[name] = _read(folder / name)
        except OSError as error:
            raise InputError(f"{folder}: expected {name}, which cannot be read ({error.strerror}); {remedy}") from error
        if hashlib.sha256(contents[name]).hexdigest() != body["files"].get(name):
            raise InputError(f"{folder}: {name} is not the one that was signed; {remedy}")
    return Engines(made, contents)


def check_suits(artifact: Artifact, made: EngineSpec, tensorrt: str, gpu: str, compute_capability: str) -> None:
    """Raise InputError for engines of another TensorRT, GPU or ONNX file than are here."""
    onnx, kernel = onnx_hashes(artifact, made.precision, made.calibrated), kernel_hash() if made.plugin else ""
    place = {"tensorrt": tensorrt, "gpu": gpu, "compute_capability": compute_capability}
    here = replace(made, **place, onnx=onnx, kernel=kernel)
    if reason := made.difference(here):
        raise InputError(
            f"{artifact.name}: expected engines for what is here, got others: {reason}; build them again with"
            f" corrflow-export engine {artifact.folder}"
        )


def _folder(artifact: Artifact) -> Path:
    if artifact.folder is None:
        raise InputError(f"{artifact.name}: expected an artifact folder to have engines in, got a zip; unpack it")
    return artifact.folder / FOLDER


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise InputError(f"{path} is larger than {LARGEST_FILE} bytes; refused")
    return content


def _signature(body: dict[str, Any], key: bytes) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _is_ours(body: dict[str, Any], signature: str) -> bool:
    try:
        key = (private_folder() / KEY).read_bytes()
    except OSError:
        return False
    return len(key) == _KEY_BYTES and hmac.compare_digest(_signature(body, key).encode(), signature.encode())


def _own_key() -> bytes:
    """This user's key on this machine, made when it is first needed; nobody else can read it."""
    path = private_folder() / KEY
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise InputError(
                f"expected {_KEY_BYTES} bytes in {path}, got {len(key)}; remove it and build again"
            ) from None
        return key
    key = secrets.token_bytes(_KEY_BYTES)
    with os.fdopen(handle, "wb") as file:
        file.write(key)
    return key
