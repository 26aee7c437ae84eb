"""Engine files of an artifact: build key, signature, loading and saving.

ARTIFACT/engines/ holds encode.engine, propagate.engine and engines.json. The latter has the build key, the SHA-256 of
each engine, and a signature (HMAC-SHA-256) with a key that never leaves this machine. TensorRT runs the code in an
engine without checks, so engines without a signature of this machine are not loaded.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.tensorrt.variants import kernel_hash
from corrflow.runtime.artifacts.artifact import (
    ENCODE,
    ENCODE_FP16,
    ENCODE_FP32,
    ENCODE_INT8,
    MAX_FILE_BYTES,
    PROPAGATE,
    Artifact,
)

FOLDER, SIDECAR, KEY = "engines", "engines.json", "engine.key"
PRECISIONS = ("fp32", "fp16", "int8")
ENCODE_ENGINE, PROPAGATE_ENGINE = "encode.engine", "propagate.engine"
_FORMAT, _KEY_BYTES = 3, 32
_CHANGED = {  # readable reasons for changed hashes
    "onnx": "the ONNX files have changed",
    "kernel": "the CUDA kernel has changed",
    "calibration": "the calibration frames of int8 have changed",
}
_ENCODERS = {"fp32": (ENCODE_FP32, ENCODE), "fp16": (ENCODE_FP16,), "int8": (ENCODE_INT8,)}


@dataclass(frozen=True)
class EngineSpec:
    """Build key of engines, which are rebuilt if any field changes. Raises InputError for a field out of range.

    tensorrt, gpu, compute_capability: TensorRT version and GPU of the build
    precision:   fp32, fp16 or int8; with int8, the encoder's convolutions are int8 and everything else is fp16
    frame:       working size (H, W)
    num_reference_frames, num_channels: maximum of reference frames, and of mask channels
    num_slots, num_windows: K and M, slots of the memory and rows of `references`
    plugin:      LocalSoftCopy is the plugin instead of the ONNX function
    onnx:        SHA-256 of the encoder's file and of propagate.onnx
    kernel:      SHA-256 of the CUDA kernel's source; empty without the plugin
    calibration: SHA-256 of the calibration frames, if the int8 encoder was calibrated during the build; otherwise empty
    library:     the plugin is libcorrflow_trt.so, which must be loaded before the engine
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    precision: str
    frame: tuple[int, int]
    num_reference_frames: int
    num_slots: int
    num_windows: int
    num_channels: int
    plugin: bool
    onnx: tuple[str, str]
    kernel: str
    calibration: str = ""
    library: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"expected --precision {', '.join(PRECISIONS)}, got {self.precision!r}; choose one")
        for option, value, limit in (
            ("--reference-frames", self.num_reference_frames, 80),
            ("--objects", self.num_channels, 256),
        ):
            if not 1 <= value <= limit:
                raise InputError(f"expected {option} from 1 to {limit}, got {value}; choose another number")

    @property
    def names(self) -> tuple[str, ...]:
        """File names of the engines."""
        return ENCODE_ENGINE, PROPAGATE_ENGINE

    def difference(self, other: EngineSpec) -> str:
        """Return the first difference from a wanted build key; empty if there is none."""
        for field in fields(self):
            value, wanted = getattr(self, field.name), getattr(other, field.name)
            if value != wanted:
                if field.name in _CHANGED:
                    return _CHANGED[field.name]
                return f"{field.name.replace('_', ' ')} was {value}, is {wanted}"
        return ""


@dataclass(frozen=True)
class Engines:
    """Engines that this machine has signed."""

    spec: EngineSpec
    contents: dict[str, bytes]


def encoder_for(artifact: Artifact, precision: str) -> bytes:
    """Return the ONNX file of the encoder in this precision. Raises InputError if the artifact has none."""
    for name in _ENCODERS[precision]:
        if name in artifact.files:
            return artifact.files[name]
    more = " --precision int8 --calibration-data VIDEOS" if precision == "int8" else ""
    raise InputError(
        f"{artifact.name}: expected {_ENCODERS[precision][-1]} for {precision}, found none; export it with"
        f" corrflow-export onnx{more}"
    )


def onnx_hashes(artifact: Artifact, precision: str, calibration: str = "") -> tuple[str, str]:
    """Return the SHA-256 of the ONNX files of engines in this precision. calibration: see EngineSpec"""
    contents = encoder_for(artifact, "fp32" if calibration else precision), artifact.files[PROPAGATE]
    first, second = (hashlib.sha256(content).hexdigest() for content in contents)
    return first, second


def private_folder() -> Path:
    """Return the folder of the user's key and of the timing caches."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "corrflow"


def writable_folder(artifact: Artifact) -> Path:
    """Return the folder for the engines of an artifact. Raises InputError if it is not writable."""
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
    """Load the engines of an artifact and verify their signature; `check_matches` compares their build key.

    Raises InputError if engines are missing, damaged or not signed by this machine.
    """
    folder = _folder(artifact)
    remedy = f"build them here with corrflow-export engine {artifact.folder}"
    if not (folder / SIDECAR).is_file():
        raise InputError(f"expected engines in {folder}, found none; {remedy}")
    try:
        sidecar = json.loads(_read(folder / SIDECAR))
        if sidecar["format"] != _FORMAT:
            raise InputError(f"{folder}: expected engines of format {_FORMAT}, got {sidecar['format']!r}; {remedy}")
        body, signature = {name: sidecar[name] for name in ("spec", "files")}, str(sidecar["signature"])
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
    # The signature proves that `save_engines` wrote everything from here on.
    values: dict[str, Any] = dict(body["spec"])
    values.update(frame=tuple(values["frame"]), onnx=tuple(values["onnx"]))
    spec, contents = EngineSpec(**values), {}
    for name in spec.names:
        try:
            contents[name] = _read(folder / name)
        except OSError as error:
            raise InputError(f"{folder}: expected {name}, which cannot be read ({error.strerror}); {remedy}") from error
        if hashlib.sha256(contents[name]).hexdigest() != body["files"].get(name):
            raise InputError(f"{folder}: {name} is not the one that was signed; {remedy}")
    return Engines(spec, contents)


def check_matches(artifact: Artifact, spec: EngineSpec, tensorrt: str, gpu: str, compute_capability: str) -> None:
    """Raise InputError for engines of another TensorRT, GPU, ONNX file or kernel than this machine's."""
    onnx, kernel = onnx_hashes(artifact, spec.precision, spec.calibration), kernel_hash() if spec.plugin else ""
    machine = {"tensorrt": tensorrt, "gpu": gpu, "compute_capability": compute_capability}
    if reason := spec.difference(replace(spec, **machine, onnx=onnx, kernel=kernel)):
        raise InputError(
            f"{artifact.name}: expected engines for this machine and model, got others: {reason}; build them again with"
            f" corrflow-export engine {artifact.folder}"
        )


def _folder(artifact: Artifact) -> Path:
    if artifact.folder is None:
        raise InputError(f"{artifact.name}: expected an artifact folder to have engines in, got a zip; unpack it")
    return artifact.folder / FOLDER


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than {MAX_FILE_BYTES} bytes; refused")
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


def _user_key() -> bytes:
    """Return this user's key on this machine, created at first use and readable by the user only."""
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
