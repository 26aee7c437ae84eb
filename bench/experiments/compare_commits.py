"""Comparison of the results of two commits: a redesign must change none of them.

    python -m corrflow.bench.experiments.compare_commits run OLD_ENV/bin old/ --davis DAVIS --checkpoint FILE
    python -m corrflow.bench.experiments.compare_commits run NEW_ENV/bin new/ --davis DAVIS --checkpoint FILE
    python -m corrflow.bench.experiments.compare_commits compare old/ new/

`run` tracks, processes a batch in every format and exports a model with the commands of one environment.
`compare` counts, for each kind of file, identical bytes, identical content and differences.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import typer

from corrflow.errors import CorrflowError, InputError, errors_reported

SEQUENCES = ("bmx-bumps", "scooter-gray", "soccerball")  # occlusion, look-alikes, a small fast object
FORMATS = (
    "davis", "binary", "csv", "coco", "youtube-vos", "labelme", "cvat", "yolo-seg", "yolo-pose", "deeplabcut",
    "deeplabcut-h5", "sleap", "tapvid", "boxes", "cutouts", "jsonl", "report", "overlay",
)  # fmt: skip
# The ways to give an option, the newest first: the commits may differ in names.
MODEL, SHORT_SIDE = ("--model", "--artifact"), ("--short-side", "--rows")
MEMORY_FRAMES, NO_REDETECT = ("--memory-frames", "--recent"), ("--no-redetect", "--no-watch")
SETTINGS_FROM_BUNDLED = ("--settings-from quarter", "--like bundled")
RENAMED_KEYS = ("artifact.json", "item.json", "manifest.json")  # values are compared in their order, keys are not
MOST_NAMES = 20  # printed, of files that differ; the table counts them all
DIGEST = re.compile(r"[0-9a-f]{64}")  # of files whose bytes may differ
# Version of the keys, sizes of such files, names of training files.
IGNORED_KEYS = ("format", "bytes", "sources")

app = typer.Typer(help=__doc__.splitlines()[0] if __doc__ else "", pretty_exceptions_enable=False)


def produce(commands: Path, out: Path, davis: Path, checkpoint: Path, frames: int) -> None:
    """Write the results of the commands in the folder `commands` to `out`: the first `frames` frames of SEQUENCES.

    Raises InputError for missing input, CorrflowError when a command fails.
    """
    if out.exists():
        raise InputError(f"expected a new folder for results, got {out}, which exists; remove it")
    with tempfile.TemporaryDirectory() as folder:
        videos, labels = Path(folder, "videos"), Path(folder, "labels")
        for name in SEQUENCES:
            _prepare_input(davis, name, frames, videos / name, labels)
        for name in SEQUENCES:
            line = (videos / name, "--init", labels / name / "00000.png")
            _call(commands, ("track",), *line, "--masks", out / name / "masks", "--jsonl", out / name / "tracks.jsonl")
        name = SEQUENCES[0]  # small and whole: the rider is lost, found and lost again
        line = (davis / "JPEGImages" / "480p" / name, "--init", labels / name / "00000.png", SHORT_SIDE, "240")
        _call(commands, ("track",), *line, "--masks", out / "lost" / "masks", "--jsonl", out / "lost" / "tracks.jsonl")
        name, points = SEQUENCES[-1], out / "keypoints"
        line = (videos / name, "--keypoints", labels / f"{name}-first.csv", "--csv", points / "points.csv")
        _call(commands, ("track",), *line, "--jsonl", points / "tracks.jsonl")

        formats = [word for name in FORMATS for word in ("--format", name)]
        sources = [videos / name for name in SEQUENCES[1:]]
        _call(commands, ("batch",), *sources, "--labels", labels, "--out", out / "batch", *formats, "--workers", "1")

        model = out / "model"
        _call(commands, ("export", "onnx"), checkpoint.absolute(), model, SETTINGS_FROM_BUNDLED)
        line = (videos / name, "--init", labels / name / "00000.png", "--masks", out / "options" / "masks")
        _call(commands, ("track",), *line, MODEL, model, SHORT_SIDE, "240", MEMORY_FRAMES, "3", NO_REDETECT)


def _prepare_input(davis: Path, name: str, frames: int, video: Path, labels: Path) -> None:
    """Link the first frames; label the first and the middle one by a mask and by four of its outermost pixels."""
    import cv2
    import numpy as np

    pictures = sorted((davis / "JPEGImages" / "480p" / name).glob("*.jpg"))[:frames]
    if len(pictures) < 2:
        raise InputError(f"expected two frames of {name} or more in {davis}, got {len(pictures)}")
    video.mkdir(parents=True)
    (labels / name).mkdir(parents=True)
    for picture in pictures:
        (video / picture.name).symlink_to(picture.absolute())
    rows = ["frame,object,point,x,y"]
    for index in (0, len(pictures) // 2):
        path = (davis / "Annotations" / "480p" / name / pictures[index].name).with_suffix(".png")
        (labels / name / path.name).symlink_to(path.absolute())
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if mask is None or not mask.any():
            raise InputError(f"expected a mask with an object in {path}, got none")
        y, x = np.nonzero(mask)
        outermost = {"top": y.argmin(), "bottom": y.argmax(), "left": x.argmin(), "right": x.argmax()}
        rows += [f"{index},points,{point},{x[at]},{y[at]}" for point, at in outermost.items()]
    (labels / f"{name}.csv").write_text("\n".join(rows) + "\n")
    (labels / f"{name}-first.csv").write_text("\n".join(rows[:5]) + "\n")


def _call(commands: Path, command: tuple[str, ...], *words: str | Path | tuple[str, ...]) -> None:
    """Run a command on one thread; a tuple holds the ways to give one option, of which --help has one."""
    line = [str(commands / f"corrflow-{command[0]}"), *command[1:]]
    # libx264 reads memory that nobody wrote (macroblock tree, assembly), so videos differ from run to run without
    # MALLOC_PERTURB_, by which glibc fills that memory.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_PERTURB_": "165", "COLUMNS": "200"}

    def output(*further: str) -> str:
        done = subprocess.run([*line, *further], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise CorrflowError(f"{' '.join([*line, *further])} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    known = set(re.findall(r"--[\w-]+", output("--help")))
    chosen: list[str] = []
    for word in words:
        ways = [way.split() for way in word if way.split()[0] in known] if isinstance(word, tuple) else [[str(word)]]
        if not ways:
            raise CorrflowError(f"expected one of {word} in the help of {' '.join(line)}, found none")
        chosen += ways[0]
    output(*chosen, *(("--threads", "1") if "--threads" in known else ()))


def compare(old: Path, new: Path) -> tuple[dict[str, Counter[str]], list[str]]:
    """Return the counts of each kind of file, and the names of files that differ in content or are in one folder only.

    Hidden folders, which are caches, are left out. Raises InputError when a folder has no results.
    """
    found = [{str(path.relative_to(folder)): path for path in _results(folder)} for folder in (old, new)]
    for folder, files in zip((old, new), found, strict=True):
        if not files:
            raise InputError(f"expected results in {folder}, got none; run the commands first")
    kinds: dict[str, Counter[str]] = {}
    different = []
    for name in sorted(found[0].keys() | found[1].keys()):
        one, other = (files.get(name) for files in found)
        if one is None or other is None:
            outcome = "in one only"
        elif one.read_bytes() == other.read_bytes():
            outcome = "same bytes"
        else:
            outcome = "same content" if content(one) == content(other) else "different"
        if outcome in ("in one only", "different"):
            different.append(f"{name}: {outcome}")
        kind = Path(name).name if Path(name).name in RENAMED_KEYS else Path(name).suffix
        kinds.setdefault(kind, Counter())[outcome] += 1
    return kinds, different


def _results(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def content(path: Path) -> Any:
    """Return the decoded content of a file, as a reader gets it, for comparison by ==.

    Names of keys in RENAMED_KEYS, names inside ONNX graphs and the words of reports are left out.
    """
    if path.name in RENAMED_KEYS:
        values: list[Any] = []
        _flatten(json.loads(path.read_text()), values)
        return values
    reader = _READERS.get(path.suffix)
    return reader(path) if reader else path.read_bytes()


def _flatten(value: Any, values: list[Any]) -> None:
    """Append the leaves of decoded JSON in their order: one constant for digests, the last part of absolute paths."""
    if isinstance(value, dict):
        value = [inner for key, inner in value.items() if key not in IGNORED_KEYS]
    if isinstance(value, list):
        for inner in value:
            _flatten(inner, values)
    elif isinstance(value, str):
        values.append("digest" if DIGEST.fullmatch(value) else value.rpartition("/")[2] if value[:1] == "/" else value)
    else:
        values.append(value)


def _array(array: Any) -> tuple[str, tuple[int, ...], Any]:
    """Return values that == compares as a whole and NaN with NaN."""
    return array.dtype.str, array.shape, repr(array.tolist()) if array.dtype.hasobject else array.tobytes()


def _picture(path: Path) -> Any:
    import cv2

    return _array(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def _npz(path: Path) -> Any:
    import numpy as np

    with np.load(path) as arrays:
        return {name: _array(arrays[name]) for name in arrays.files}


def _hdf5(path: Path) -> Any:
    import h5py
    import numpy as np

    found = {}

    def visit(name: str, item: Any) -> None:
        attributes = {key: _array(np.asarray(value)) for key, value in item.attrs.items()}
        found[name] = (attributes, _array(np.asarray(item[()])) if isinstance(item, h5py.Dataset) else None)

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def _video(path: Path) -> Any:
    import av

    with av.open(str(path)) as container:
        return [(frame.pts, frame.time_base, _array(frame.to_ndarray())) for frame in container.decode(video=0)]


def _onnx(path: Path) -> Any:
    """Return the text of the graph with every name replaced by its place in the order of first appearance."""
    import onnx

    names: dict[str, int] = {}
    lines = re.sub(r"^ *(doc_string|producer_\w+): .*\n", "", str(onnx.load(path)), flags=re.M)
    return re.sub(
        r'^( *(?:name|input|output|dim_param)): "(.*)"$',
        lambda match: f"{match[1]}: {names.setdefault(match[2], len(names))}",
        lines,
        flags=re.M,
    )


def _report(path: Path) -> Any:
    """Return a report's pictures, bars and the numbers of its text, without its words and style."""
    text = re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.S)
    pictures, bars = re.findall(r"base64,([^\"']+)", text), re.findall(r"<rect[^>]* y=.*? height=\"[\d.]+\"", text)
    return pictures, bars, re.findall(r"\d+(?:\.\d+)?", re.sub(r"<[^>]*>", " ", text))


def _xml(path: Path) -> Any:
    return [(item.tag, sorted(item.attrib.items()), item.text) for item in ElementTree.parse(path).iter()]


_READERS = {
    ".png": _picture, ".jpg": _picture, ".npz": _npz, ".h5": _hdf5, ".slp": _hdf5, ".mp4": _video, ".onnx": _onnx,
    ".html": _report, ".xml": _xml,
    ".csv": lambda path: list(csv.reader(path.read_text().splitlines())),
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
}  # fmt: skip


@app.command("run")
def run_command(
    commands: Annotated[Path, typer.Argument(metavar="BIN", help="Folder of the corrflow commands of an environment.")],
    out: Annotated[Path, typer.Argument(help="New folder for results.")],
    davis: Annotated[Path, typer.Option(help="Data set in the layout of DAVIS, with the three sequences.")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint to export.")],
    frames: Annotated[int, typer.Option(help="Frames of each sequence.", min=2)] = 40,
) -> None:
    """Write the results of one environment."""
    with errors_reported():
        produce(commands, out, davis, checkpoint, frames)


@app.command("compare")
def compare_command(old: Path, new: Path) -> None:
    """Print a table of the files of two folders of results; exit code 1 when any differs in content."""
    with errors_reported():
        kinds, different = compare(old, new)
    outcomes = ("same bytes", "same content", "different", "in one only")
    print(f"{'kind':14s} {'files':>8s}" + "".join(f"{outcome:>14s}" for outcome in outcomes))
    for kind, counts in sorted(kinds.items()):
        print(f"{kind:14s} {counts.total():8d}" + "".join(f"{counts[outcome]:14d}" for outcome in outcomes))
    print(*different[:MOST_NAMES], sep="\n")
    raise typer.Exit(bool(different))


if __name__ == "__main__":
    app()
