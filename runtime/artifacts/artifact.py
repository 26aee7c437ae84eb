"""Artifacts: models that export writes and the runtime reads.

An artifact is a folder or a zip with encode.onnx, propagate.onnx and artifact.json. The latter has the settings, the
provenance of the weights, and the SHA-256 of every file. Every file is checked before use.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.file_budget import FileBudget, open_regular, parsed_json, read_bytes
from corrflow.runtime.artifacts.onnx_check import check_onnx
from corrflow.runtime.settings import STRIDE, TrackingSettings, settings_from_json

FORMAT_VERSION = 4
DESCRIPTION, ENCODE, PROPAGATE = "artifact.json", "encode.onnx", "propagate.onnx"
# Optional files: a step as one graph, and encoders for TensorRT.
STEP, ENCODE_FP32, ENCODE_FP16, ENCODE_INT8 = "step.onnx", "encode-fp32.onnx", "encode-fp16.onnx", "encode-int8.onnx"
REFERENCES = "references"  # input of propagate.onnx with the search windows, if it supports window offsets
MAX_FILE_BYTES = 512 * 2**20
_MAX_DESCRIPTION_BYTES = 1 << 20
_FREE_BYTES, _BYTES_PER_BYTE = 64 << 20, 4  # of the files of a zip, and for each byte of a larger one
_REMEDY = "export it again with corrflow-export onnx"


@dataclass(frozen=True)
class Artifact:
    """Artifact whose files are checked.

    files:      content of each file by name
    channels:   feature channels
    provenance: data, minutes and settings of the training
    folder:     folder of the artifact and its engines; None for a zip
    """

    name: str
    files: dict[str, bytes]
    channels: int
    settings: TrackingSettings
    provenance: dict[str, Any]
    folder: Path | None = field(default=None, compare=False)

    @property
    def has_integer_encoder(self) -> bool:
        """True if encode.onnx computes in 8 bits; encode-fp32.onnx is then for other backends."""
        return ENCODE_FP32 in self.files

    def with_float_encoder(self) -> Artifact:
        """Return the artifact with the fp32 encoder as encode.onnx, and without one in 8 bits."""
        if not self.has_integer_encoder:
            return self
        files = {name: content for name, content in self.files.items() if name not in (ENCODE_FP32, ENCODE_INT8)}
        return replace(self, files=files | {ENCODE: self.files[ENCODE_FP32]})

    @property
    def sha256(self) -> str:
        """Hash of all files."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            digest.update(f"{name}:{hashlib.sha256(self.files[name]).hexdigest()}\n".encode())
        return digest.hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        """JSON-ready description for reports."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "channels": self.channels,
            "tracking": asdict(self.settings),
            "provenance": self.provenance,
        }


def save_artifact(
    folder: Path, files: dict[str, bytes], channels: int, settings: TrackingSettings, provenance: dict[str, Any]
) -> None:
    """Write an artifact folder; artifact.json appears last, so that an incomplete artifact is not loadable.

    files: content of encode.onnx, propagate.onnx and optional files, by name

    Raises CorrflowError.
    """
    for name, content in files.items():
        write_file(folder / name, content)
    description = {
        "format": FORMAT_VERSION,
        "stride": STRIDE,
        "channels": channels,
        "tracking": asdict(settings),
        "provenance": provenance,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
    }
    write_file(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def load_artifact(path: Path | str) -> Artifact:
    """Read and check an artifact folder or zip.

    Raises InputError for a missing or damaged file, another version, or an ONNX file that fails `check_onnx`.
    """
    path = Path(path)
    try:
        content = _read(path, DESCRIPTION, _MAX_DESCRIPTION_BYTES)
        description = parsed_json(content, FileBudget(path / DESCRIPTION), is_strict=True)
        version = description["format"]
        if version != FORMAT_VERSION:
            raise InputError(f"{path}: expected artifact format {FORMAT_VERSION}, got {version}; {_REMEDY}")
        if description["stride"] != STRIDE or description["channels"] not in range(1, 4097):
            raise InputError(
                f"{path}: expected stride {STRIDE} and 1 to 4096 channels, got {description['stride']} and"
                f" {description['channels']}; {_REMEDY}"
            )
        settings = settings_from_json(description["tracking"])
        entries = {str(name): str(entry["sha256"]) for name, entry in description["files"].items()}
        channels, provenance = int(description["channels"]), dict(description["provenance"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: {DESCRIPTION} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from error

    files: dict[str, bytes] = {}
    left = _most_bytes(path)
    for name in {ENCODE, PROPAGATE} | set(entries):
        if name not in entries or Path(name).name != name:
            raise InputError(f"{path}: expected {name} among the files of {DESCRIPTION}; {_REMEDY}")
        files[name] = _read(path, name, min(MAX_FILE_BYTES, left))
        left -= len(files[name])
        digest = hashlib.sha256(files[name]).hexdigest()
        if digest != entries[name]:
            raise InputError(
                f"{path}: {name} is damaged: expected SHA-256 {entries[name][:12]}..., got {digest[:12]}...; {_REMEDY}"
            )
        if name.endswith(".onnx"):
            check_onnx(f"{path}: {name}", files[name])
    name = path.stem if path.suffix == ".zip" else path.name
    return Artifact(name, files, channels, settings, provenance, path if path.is_dir() else None)


def _most_bytes(path: Path) -> int:
    """Return the bytes that all files of an artifact may have; weights in a zip are not much smaller than unpacked."""
    size = MAX_FILE_BYTES if path.is_dir() else path.stat().st_size
    return max(_FREE_BYTES, _BYTES_PER_BYTE * size)


def _read(path: Path, name: str, limit: int) -> bytes:
    """Read a file of an artifact folder or zip, at most `limit` bytes. Raises InputError."""
    try:
        if path.is_dir():
            return read_bytes(path / name, limit)
        if not path.exists():
            raise InputError(f"expected an artifact folder or zip at {path}, found nothing; {_REMEDY}")
        with open_regular(path) as packed, zipfile.ZipFile(packed) as archive:
            members = [entry for entry in archive.namelist() if entry == name or entry.endswith(f"/{name}")]
            if not members:
                raise FileNotFoundError(name)
            member = min(members, key=len)
            if archive.getinfo(member).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(f"{path}: expected {name} stored or deflated, got another compression; {_REMEDY}")
            with archive.open(member) as file:
                content = file.read(limit + 1)
            if len(content) > limit:
                raise InputError(f"{path}: expected {name} of at most {limit} bytes, got more; {_REMEDY}")
            return content
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected {name} in the artifact, found none; {_REMEDY}") from error
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        # A damaged archive raises many kinds of errors.
        raise InputError(f"{path} is damaged: expected an artifact folder or zip ({error}); {_REMEDY}") from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma"):
            raise InputError(f"{path} is damaged: {error}; {_REMEDY}") from error
        raise
