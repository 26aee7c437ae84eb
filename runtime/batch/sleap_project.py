"""SLEAP's projects: one .slp with the labels of several videos, whose paths may be those of another machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.batch.image_projects import Project
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.formats.registry import FORMATS
from corrflow.runtime.formats.sleap_file import SleapVideo, open_sleap
from corrflow.runtime.formats.sleap_merge import check_sleap_target, merge_sleap
from corrflow.runtime.video.image_sequence import is_image

_RESULT = "sleap"


def find_sleap_project(path: Path) -> Project | None:
    """Return the project in a .slp, or None for another path. Raises InputError for a damaged file, or without videos.

    The results of all videos come together in NAME.corrflow.slp beside it.
    """
    if path.suffix.lower() != ".slp" or not path.is_file():
        return None
    try:
        file = open_sleap(path)
        labelled = {int(number) for number in np.unique(file.tables["frames"]["video"])}
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"expected a SLEAP project in {str(path)!r}, got a file that cannot be read ({type(error).__name__})"
        ) from error
    target = path.with_name(f"{path.stem}.corrflow.slp")
    check_sleap_target(path, target)
    found: dict[int, Path] = {}
    notes: list[str] = []
    for video in file.videos:
        name = video.path or f"embedded video {video.number}"
        if video.number not in labelled:
            notes.append(f"{name}: no labels, so it is not tracked")
        elif (source := _find_source(path, video)) is None:
            notes.append(f"{name}: it is neither there nor beside {path.name}, so it is not tracked")
        elif source in found.values():
            notes.append(f"{name}: another video of the project is found at {str(source)!r} as well; it is not tracked")
        else:
            found[video.number] = source
    if not found:
        raise InputError(f"expected labelled videos in {str(path)!r}, got none ({'; '.join(notes[:3]) or 'no video'})")
    names = _names(list(found.values()))
    items = tuple(Item(name, source, path) for name, source in zip(names, found.values(), strict=True))
    finish = _Finish(path, target, dict(zip(names, found, strict=True)))
    out = path.resolve().with_name(f"{path.stem}_corrflow")
    return Project("SLEAP", items, out, (_RESULT, "report"), notes=tuple(notes), finish=finish)


def _find_source(project: Path, video: SleapVideo) -> Path | None:
    """Return the film or the folder of images: at its path, or under the project's folder with as many folders."""
    if not video.path:
        return None
    path = Path(video.path.replace("\\", "/"))
    parts = PurePosixPath(path.as_posix()).parts
    candidates = [path if path.is_absolute() else project.parent / path]
    candidates += [project.parent.joinpath(*parts[start:]) for start in range(1, len(parts))]
    candidates += [project.parent / "videos" / parts[-1]]
    for one in candidates:
        if video.images and one.parent.is_dir() and any(is_image(image) for image in one.parent.iterdir()):
            return one.parent.resolve()
        if not video.images and one.is_file():
            return one.resolve()
    return None


def _names(sources: Sequence[Path]) -> list[str]:
    """Return a name for each source: its own, with those of its folders where others have the same."""
    plain = [source.name if source.is_dir() else source.stem for source in sources]
    names = []
    for name, source in zip(plain, sources, strict=True):
        folders = list(source.parent.parts[1:])
        is_taken = [one.casefold() for one in plain].count(name.casefold()) > 1
        while folders and (is_taken or name.casefold() in (one.casefold() for one in names)):
            name, is_taken = f"{folders.pop()}_{name}", False
        names.append(name)
    return names


@dataclass(frozen=True)
class _Finish:
    """Writer of the merged project.

    numbers: number of each item's video in the project
    """

    project: Path
    target: Path
    numbers: Mapping[str, int]

    def __call__(self, out: Path, names: Collection[str]) -> list[str]:
        """Merge the results of these items, and return a line for the file, or for why there is none."""
        results = {self.numbers[name]: out / name / FORMATS[_RESULT].result for name in names if name in self.numbers}
        results = {number: path for number, path in results.items() if path.is_file()}
        if not results:
            return []
        try:
            lost = merge_sleap(self.project, results, self.target)
        except CorrflowError as error:
            return [str(error)]
        lines = [f"{self.target}: the user's instances of all videos, and predictions of {len(results)}"]
        return lines + ([f"{self.target}: without {', '.join(lost)} of {self.project.name}"] if lost else [])
