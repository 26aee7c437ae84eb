"""Names of YOLO's classes and points: data.yaml where tools put it, or lists of names such as classes.txt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from corrflow.errors import InputError
from corrflow.file_budget import read_text, read_yaml
from corrflow.runtime.formats.label_schema import Category

DATA_YAML = "data.yaml"
DATA_YAMLS = (DATA_YAML, "data.yml", "dataset.yaml")
"""Names of the file that describes a data set, the usual one first."""

# PyYAML's constructors meet damage with these.
YAML_ERRORS = (OSError, ValueError, yaml.YAMLError, RecursionError, TypeError, AttributeError, OverflowError)
_LISTS = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels", "predefined_classes.txt")
_MAX_BYTES = 1 << 20
_MAX_CLASSES, _MAX_POINTS = 10_000, 1000
_FOLDERS = 3  # beside the labels, and one and two folders above: dataset/data.yaml for dataset/labels/train/x.txt


@dataclass(frozen=True)
class YoloClasses:
    """Classes of a data set.

    names:       by class; empty where nothing names them
    point_names: of each class with named points; those of class None are for all
    point_shape: number of points of a line and of numbers for each, 2 or 3; None without points
    flip:        index of each point's left or right counterpart; empty without
    """

    names: dict[int, str]
    point_names: dict[int | None, tuple[str, ...]]
    point_shape: tuple[int, int] | None = None
    flip: tuple[int, ...] = ()

    def name(self, index: int) -> str:
        """Return the name of a class; "class 3" without one."""
        return self.names.get(index) or f"class {index}"

    def points_of(self, index: int, count: int) -> tuple[str, ...]:
        """Return `count` names of the points of a class, unique."""
        names = self.point_names.get(index) or self.point_names.get(None, ())
        numbered = [names[k] if k < len(names) else f"point{k + 1}" for k in range(count)]
        return tuple(name if numbered.index(name) == k else f"{name} {k + 1}" for k, name in enumerate(numbered))

    def categories(self, indices: set[int]) -> tuple[Category, ...]:
        """Return all classes up to the last one that is named or used, so that an index is a position."""
        more = range(len(self._named), max(indices, default=-1) + 1)
        return (*self._named, *map(self._category, more))

    @cached_property
    def _named(self) -> tuple[Category, ...]:
        return tuple(map(self._category, range(max(self.names, default=-1) + 1)))

    def _category(self, index: int) -> Category:
        count = self.point_shape[0] if self.point_shape else 0
        is_whole = len(self.flip) == count and all(0 <= other < count for other in self.flip)
        symmetries = tuple((k, other) for k, other in enumerate(self.flip) if k < other) if is_whole else ()
        return Category(self.name(index), index, self.points_of(index, count), symmetries=symmetries)


def find_classes(labels: Path) -> YoloClasses:
    """Return the classes for a file of labels. Raises InputError for a data.yaml that cannot be read."""
    path = names_file(labels)
    return YoloClasses({}, {}) if path is None else _read(path, path.stat().st_mtime_ns)


def names_file(labels: Path) -> Path | None:
    """Return the file that names the classes for a file of labels; None without one."""
    for folder in list(labels.absolute().parents)[:_FOLDERS]:
        try:
            found = _names_file_of(folder, folder.stat().st_mtime_ns)
        except OSError:
            return None
        if found is not None:
            return found
    return None


@lru_cache(maxsize=16)
def _names_file_of(folder: Path, changed: int) -> Path | None:
    """Return the file of names in a folder, which is listed again when it has changed."""
    files = {path.name: path for path in folder.iterdir() if path.suffix in (".yaml", ".yml")}
    for name in (*DATA_YAMLS, *sorted(files)):
        if name in files and (name == DATA_YAML or _has_names(files[name])):
            return files[name]
    return next((folder / name for name in _LISTS if _is_list(folder / name)), None)


def _has_names(path: Path) -> bool:
    """Return True for YAML of a data set, whatever its name is."""
    try:
        keys = set(_parsed(path))
        return "names" in keys and bool({"train", "val", "path", "nc", "kpt_shape"} & keys)
    except InputError:
        return False


def _is_list(path: Path) -> bool:
    """Return True for a list of names, and not for labels of a frame that is called so."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return False
        first = read_text(path, _MAX_BYTES).split("\n", 1)[0].split()
    except (OSError, UnicodeDecodeError):
        return False
    return not (len(first) >= 5 and all(part.replace(".", "", 1).isdigit() for part in first))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
    except YAML_ERRORS as error:
        raise InputError(
            f"expected YAML with names of classes in {path}, got a file that cannot be read ({yaml_reason(error)});"
            " correct it"
        ) from error
    return content


def yaml_reason(error: Exception) -> str:
    """Return the reason of an error of YAML in one line."""
    text = " ".join(str(error).split())[:200] if isinstance(error, yaml.YAMLError) else ""
    return text or type(error).__name__


@lru_cache(maxsize=16)
def _read(path: Path, changed: int) -> YoloClasses:
    if path.suffix not in (".yaml", ".yml"):
        lines = [line.strip() for line in read_text(path, _MAX_BYTES).splitlines()]
        return YoloClasses(_unique(dict(enumerate(line for line in lines[:_MAX_CLASSES] if line))), {})
    content = _parsed(path)
    try:
        return YoloClasses(
            _unique(_by_class(content.get("names"))),
            _point_names(content.get("kpt_names")),
            _point_shape(content.get("kpt_shape")),
            tuple(_whole(number) for number in content.get("flip_idx") or ()),
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"expected names, and for poses kpt_shape as [points, 2 or 3], in {path}, got other values; correct them"
        ) from error


def _by_class(names: object) -> dict[int, str]:
    listed = dict(enumerate(names)) if isinstance(names, list) else names or {}
    if not isinstance(listed, dict) or len(listed) > _MAX_CLASSES:
        raise ValueError(names)
    found = {_whole(key): _text(value) for key, value in listed.items()}
    if any(not 0 <= key < _MAX_CLASSES for key in found):
        raise ValueError(names)
    return found


def _unique(names: dict[int, str]) -> dict[int, str]:
    """Give a class with the name of another one its number as well."""
    taken: dict[str, int] = {}
    return {k: name if taken.setdefault(name, k) == k else f"{name} {k}" for k, name in names.items()}


def _point_names(names: object) -> dict[int | None, tuple[str, ...]]:
    if isinstance(names, list):
        return {None: tuple(map(_text, names[:_MAX_POINTS]))}
    if not isinstance(names, dict):
        return {}
    return {_whole(k): tuple(map(_text, v[:_MAX_POINTS])) for k, v in names.items() if isinstance(v, list)}


def _point_shape(shape: object) -> tuple[int, int] | None:
    if shape is None:
        return None
    count, each = (_whole(number) for number in shape) if isinstance(shape, list) else (0, 0)
    if not 1 <= count <= _MAX_POINTS or each not in (2, 3):
        raise ValueError(shape)
    return count, each


def _whole(number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, (int, str)):
        raise ValueError(number)
    return int(number)


def _text(value: object) -> str:
    if not isinstance(value, (str, int, float)):
        raise ValueError(value)
    return str(value)
