"""DeepLabCut's projects: config.yaml, labeled-data/VIDEO and videos/VIDEO.

Results get the names under which DeepLabCut looks for those of a network: VIDEO + scorer + .h5 and .csv beside the
video. Images that are extracted but not labelled get machine labels, which its users refine.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from corrflow.atomic_files import write_file
from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.batch.image_projects import Project, read_yaml
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.formats.annotations import ReadContext, number_at_end
from corrflow.runtime.formats.deeplabcut import read_csv_table, table_text
from corrflow.runtime.formats.deeplabcut_h5 import H5Table, read_h5_table
from corrflow.runtime.formats.deeplabcut_table import TITLES
from corrflow.runtime.formats.registry import FORMATS
from corrflow.runtime.video.image_sequence import is_image, natural_order
from corrflow.runtime.video.suffixes import VIDEO_SUFFIXES

_TRACKERS = {"box": "_bx", "ctd": "_ctd", "skeleton": "_sk", "ellipse": "_el", "transformer": "_tr"}
"""Ends of the names of results with several animals, by the project's default_track_method."""

_RESULT = "deeplabcut-h5"


def find_deeplabcut_project(path: Path) -> Project | None:
    """Return the project in a folder or of a config.yaml, or None for another. Raises InputError for a damaged one."""
    folder = path.parent if path.name == "config.yaml" else path
    labels = folder / "labeled-data"
    if not ((folder / "config.yaml").is_file() and labels.is_dir()):
        return None
    config = read_yaml(folder / "config.yaml")
    if not {"Task", "scorer"} <= set(config):
        return None
    listed = config.get("video_sets")
    videos: dict[Any, Any] = listed if isinstance(listed, dict) else {}
    items, notes = list[Item](), list[str]()
    for inner in sorted(labels.iterdir(), key=natural_order):
        if not inner.is_dir() or inner.name.startswith(".") or inner.name.endswith("_labeled"):
            continue
        if not any(inner.glob("CollectedData_*")):
            notes.append(f"{inner}: no CollectedData, so the video is not tracked; label its images first")
        elif _is_cropped(config, videos, inner.name):
            notes.append(f"{inner}: its images are parts of the frames (cropping in config.yaml), so it is not tracked")
        elif (source := _find_video(folder, videos, inner.name)) is None:
            notes.append(f"{inner}: its video is neither where config.yaml says nor in {folder / 'videos'}")
        else:
            items.append(Item(inner.name, source, labels, inner))
    if not items:
        raise InputError(
            f"expected labelled videos in {str(folder)!r}, got none ({'; '.join(notes[:3]) or 'no folder'})"
        )
    out = folder.resolve().with_name(f"{folder.resolve().name}_corrflow")
    finish = _Finish(folder, config, {item.name: item.source for item in items})
    return Project("DeepLabCut", tuple(items), out, (_RESULT, "report"), notes=tuple(notes), finish=finish)


def _is_cropped(config: Mapping[str, Any], videos: Mapping[Any, Any], name: str) -> bool:
    """Return True if the images of a video were cut out of its frames, not at their top left."""
    for path, entry in videos.items():
        if _stem(path) == name and config.get("cropping") and isinstance(entry, dict):
            numbers = [int(word) for word in re.findall(r"[0-9]+", str(entry.get("crop", "")))]
            return len(numbers) == 4 and bool(numbers[0] or numbers[2])
    return False


def _find_video(folder: Path, videos: Mapping[Any, Any], name: str) -> Path | None:
    """Return the video of a folder of labels: as config.yaml has it, or in the folder videos of the project."""
    listed = [_plain(path) for path in videos if _stem(path) == name]
    candidates = [Path(path) for path in listed] + [folder / "videos" / PurePosixPath(path).name for path in listed]
    if (folder / "videos").is_dir():
        candidates += [
            one
            for one in sorted((folder / "videos").iterdir(), key=natural_order)
            if one.stem == name and one.suffix.lower() in VIDEO_SUFFIXES
        ]
    return next((one for one in candidates if one.is_file()), None)


def _plain(path: Any) -> str:
    return str(path).replace("\\", "/")


def _stem(path: Any) -> str:
    return PurePosixPath(_plain(path)).stem


@dataclass(frozen=True)
class _Finish:
    """Writer of a project's results to the places of DeepLabCut.

    sources: video of each item
    """

    folder: Path
    config: Mapping[str, Any]
    sources: Mapping[str, Path]

    def __call__(self, out: Path, names: Collection[str]) -> list[str]:
        """Write the results of these items, and return a line for each file, or for why there is none."""
        lines: list[str] = []
        for name in names:
            path = out / name / FORMATS[_RESULT].result
            if not path.is_file():
                continue
            columns, rows, values = read_h5_table(path)
            scorer = result_scorer(self.folder, self.config)
            columns = [(scorer, *column[1:]) for column in columns]
            base = self.sources[name].with_name(f"{name}{scorer}{self._tracker()}")
            lines += _write(base, scorer, columns, [int(row[0]) for row in rows], values)
            images, indices = self._unlabelled(name, len(rows))
            if images:
                base = self.folder / "labeled-data" / name / f"machinelabels-iter{self.config.get('iteration', 0)}"
                lines += _write(base, scorer, columns, images, values[indices], base.with_name("machinelabels.csv"))
        return lines

    def _tracker(self) -> str:
        if not self.config.get("multianimalproject"):
            return ""
        return _TRACKERS.get(str(self.config.get("default_track_method")), _TRACKERS["ellipse"])

    def _unlabelled(self, name: str, frames: int) -> tuple[list[str], list[int]]:
        """Return the images of a video that have no label of the user, and the indices of their frames."""
        inner = self.folder / "labeled-data" / name
        labelled: set[str] = set()
        for table in [*inner.glob("CollectedData_*.h5"), *inner.glob("CollectedData_*.csv")]:
            labelled |= _images_of(table)
        images, indices = [], []
        for image in sorted(inner.iterdir(), key=natural_order):
            index = number_at_end(image.stem)
            if is_image(image) and image.name not in labelled and index is not None and index < frames:
                images.append(f"labeled-data/{name}/{image.name}")
                indices.append(index)
        return images, indices


def _images_of(table: Path) -> set[str]:
    """Return the names of the images that have a label in a table."""
    try:
        if table.suffix == ".h5":
            _, rows, values = read_h5_table(table)
            return {PurePosixPath(rows[k][-1]).name for k in np.flatnonzero(np.isfinite(values).any(1)).tolist()}
        with table.open(encoding="utf-8-sig", newline="") as file:
            _, lines = read_csv_table(file, ReadContext(table.stem, 0, lambda: (0, 0)))
            return {PurePosixPath(key[-1]).name for key, numbers in lines if np.isfinite(numbers).any()}
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, csv.Error, InputError):
        return set()


def _write(
    base: Path, scorer: str, columns: Sequence[tuple[str, ...]], rows: Sequence[int | str], values: np.ndarray,
    text: Path | None = None,
) -> list[str]:  # fmt: skip
    """Write a table as .h5 and .csv; what another tool has written there stays. Return a line for each file.

    text: path of the CSV; None for that of the .h5
    """
    path, text = base.with_name(f"{base.name}.h5"), text or base.with_name(f"{base.name}.csv")
    titles = TITLES if len(columns[0]) == 4 else tuple(title for title in TITLES if title != "individuals")
    for one in (path, text):
        if one.exists() and not _is_own(one, scorer):
            return [f"{one}: it is not of corrflow, so it stays as it is and the results are not written there"]
    try:
        table = H5Table(path)
        for row, numbers in zip(rows, values.tolist(), strict=True):
            table.append(row, numbers)
        table.finish(columns, titles)
        write_file(text, table_text(columns, titles, rows, values))
    except CorrflowError as error:
        return [str(error)]
    return [f"{path}: {len(rows)} rows", f"{text}: the same as text"]


def _is_own(path: Path, scorer: str) -> bool:
    """Return True for a table with the name of our scorer."""
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig") as file:
                return scorer in file.readline(1 << 20).strip().split(",")
        return read_h5_table(path)[0][0][0] == scorer
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError):
        return False


def result_scorer(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the scorer of our results: that of the project's network and `_corrflow`, or a similar one without it.

    DeepLabCut finds results by their beginning, which is the scorer of the network of shuffle 1.
    """
    task, date = str(config.get("Task", "")), str(config.get("date", ""))
    fractions = config.get("TrainingFraction")
    fraction = fractions[0] if isinstance(fractions, list) and fractions else 0.95
    name = f"{task}{date}-trainset{int(float(fraction) * 100)}shuffle1"
    networks: tuple[tuple[str, Callable[[Path, object], str]], ...] = (
        ("dlc-models-pytorch", _pytorch_network), ("dlc-models", _tensorflow_network),
    )  # fmt: skip
    for models, find in networks:
        train = folder / models / f"iteration-{config.get('iteration', 0)}" / name / "train"
        if train.is_dir() and (found := find(train, config.get("snapshotindex"))):
            network, _, snapshot = found.partition(" ")
            return f"DLC_{network}_{task}{date}shuffle1_{snapshot}_corrflow"
    return f"DLC_corrflow_{task}{date}shuffle1_0"


def _pytorch_network(train: Path, index: object) -> str:
    """Return the names of a network and its snapshot as DeepLabCut 3 abbreviates them, with a space between."""
    config = read_yaml(train / "pytorch_config.yaml") if (train / "pytorch_config.yaml").is_file() else {}
    pose, detector = (_snapshot(train, *one) for one in (("snapshot", index), ("snapshot-detector", -1)))
    if not pose or not config.get("net_type"):
        return ""
    is_top_down = str(config.get("method", "")).lower() == "td" and detector
    words = "".join(word.capitalize() for word in str(config["net_type"]).split("_"))
    return f"{words} {f'detector_{detector}_' if is_top_down else ''}snapshot_{pose}"


def _snapshot(train: Path, prefix: str, index: object) -> str:
    """Return a snapshot of those in the order of their epochs, with the best one last; "" without any."""
    found = [re.fullmatch(rf"{prefix}(-best)?-([0-9]+)\.pt", one.name) for one in train.iterdir()]
    snapshots = sorted((bool(match[1]), int(match[2])) for match in found if match)
    names = [f"best-{epochs}" if is_best else str(epochs) for is_best, epochs in snapshots]
    return names[_place(index, len(names))] if names else ""


def _place(index: object, count: int) -> int:
    """Return the place that config.yaml's snapshotindex means; "all" means the last one."""
    return index if isinstance(index, int) and -count <= index < count else -1


def _tensorflow_network(train: Path, index: object) -> str:
    """Return the names of a network and its snapshot as DeepLabCut 2 abbreviates them, with a space between."""
    config = read_yaml(train / "pose_cfg.yaml") if (train / "pose_cfg.yaml").is_file() else {}
    found = [re.fullmatch(r"snapshot-([0-9]+)\.index", one.name) for one in train.iterdir()]
    snapshots = sorted(int(match[1]) for match in found if match)
    kind = str(config.get("net_type", ""))
    if not snapshots or not kind:
        return ""
    if "resnet" in kind:
        kind = "dlcrnetms5" if config.get("multi_stage") else kind.replace("_", "")
    elif "mobilenet" in kind:
        kind = f"mobnet_{int(float(kind.split('_')[-1]) * 100)}"
    elif "efficientnet" in kind:
        kind = f"effnet_{kind.split('-')[-1]}"
    return f"{kind} {snapshots[_place(index, len(snapshots))]}"
