"""Data sets of a command: one folder, or a YAML file that names several data sets.

    full rate:       {root: davis, split: train, attributes: kinds.json}
    every third:     {root: davis, split: train, stride: 3, attributes: kinds.json}
    backward:        {root: davis, split: train, backward: true, attributes: kinds.json}
    several objects: {root: vsb-dev, split: vsb}

Paths are relative to the file. Further keys are year, resolution and sequences (a list of names), as the options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from corrflow.errors import InputError
from corrflow.evaluate.datasets.attributes import read_attributes
from corrflow.evaluate.datasets.masks import open_davis, open_youtube_vos, resample, select_sequences
from corrflow.evaluate.masks import DataSet
from corrflow.evaluate.options import SplitOptions
from corrflow.evaluate.reports.files import file_name
from corrflow.file_budget import read_yaml

_KEYS: dict[str, type] = {
    "root": str,
    "split": str,
    "year": str,
    "resolution": str,
    "sequences": list,
    "stride": int,
    "backward": bool,
    "attributes": str,
}


@dataclass(frozen=True)
class _Set:
    """One data set of a YAML file, with the file's values as they are."""

    root: str
    split: str = "val"
    year: str | None = None
    resolution: str = "480p"
    sequences: Sequence[str] = ()
    stride: int = 1
    backward: bool = False
    attributes: str = ""


def davis_data(
    root: Path,
    split: str,
    year: str | None = None,
    resolution: str = "480p",
    names: Sequence[str] | None = None,
    stride: int = 1,
    backward: bool = False,
) -> DataSet:
    """Open a DAVIS split, or only the sequences of these names, and resample its sequences."""
    sequences = select_sequences(open_davis(root, split, year, resolution), names or ())
    return DataSet(
        "DAVIS", str(root), split, resolution, tuple(resample(sequence, stride, backward) for sequence in sequences)
    )


def youtube_vos_data(root: Path, names: Sequence[str] | None = None) -> DataSet:
    """Open a YouTube-VOS folder, or only the sequences of these names."""
    return DataSet("YouTube-VOS", str(root), "", "", tuple(select_sequences(open_youtube_vos(root), names or ())))


def split_data(root: Path, options: SplitOptions) -> DataSet:
    """Open the data set of a command that takes a single folder."""
    return davis_data(
        root, options.split, options.year, options.resolution, options.sequence, options.stride, options.backward
    )


def open_sets(root: Path, options: SplitOptions, attributes: Path | None = None) -> tuple[DataSet, ...]:
    """Open the data sets of a command: those of a YAML file, or the folder alone.

    attributes: file of attributes for every data set whose entry names none

    Raises InputError for an invalid file, and for options beside a file that chooses them itself.
    """
    common = {} if attributes is None else read_attributes(attributes)
    if root.suffix.lower() not in (".yaml", ".yml"):
        return (replace(split_data(root, options), attributes=common),)
    if options.sequence or options.year or options.stride != 1 or options.backward:
        raise InputError(
            f"expected a folder with --sequence, --year, --stride and --backward, got {root}; write them into the file"
        )
    return tuple(_open_set(root, label, entry, common) for label, entry in _read_sets(root).items())


def set_folder(results: Path, data: DataSet) -> Path:
    """Return the folder of a data set's results."""
    return results / "sets" / file_name(data.label) if data.label else results


def _read_sets(path: Path) -> dict[str, Any]:
    expected = f"expected data sets in {path} as YAML such as 'full rate: {{root: davis, split: train}}'"
    try:
        content = read_yaml(path)
    except OSError as error:
        raise InputError(f"{expected}, got an error ({error.strerror}); check the path") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{expected}, got no valid YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict) or not content or not all(isinstance(entry, dict) for entry in content.values()):
        raise InputError(f"{expected}, got something else; name each data set")
    return {str(label): entry for label, entry in content.items()}


def _open_set(path: Path, label: str, entry: dict[str, Any], attributes: dict[str, tuple[str, ...]]) -> DataSet:
    wrong = [name for name, value in entry.items() if name not in _KEYS or type(value) is not _KEYS[name]]
    if "year" in wrong and isinstance(entry["year"], int):  # YAML reads 2016 as a number
        entry = {**entry, "year": str(entry["year"])}
        wrong.remove("year")
    if wrong or "root" not in entry:
        keys = ", ".join(f"{name} ({kind.__name__})" for name, kind in _KEYS.items())
        found = ", ".join(f"{name}: {entry[name]!r}" for name in wrong) or "no root"
        raise InputError(f"expected keys among {keys} for {label!r} in {path}, got {found}; correct the entry")
    chosen = _Set(**entry)
    data = davis_data(
        path.parent / chosen.root,
        chosen.split,
        chosen.year,
        chosen.resolution,
        [str(name) for name in chosen.sequences],
        chosen.stride,
        chosen.backward,
    )
    if chosen.attributes:
        attributes = read_attributes(path.parent / chosen.attributes)
    return replace(data, label=label, attributes=attributes)
