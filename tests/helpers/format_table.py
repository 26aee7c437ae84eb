"""Table of formats in docs/formats.md: what is read, written and kept is found out by writing and reading files.

python tests/helpers/format_table.py    # writes the table anew
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import numpy as np

from corrflow.runtime.formats.annotations import Annotations, ReadContext
from corrflow.runtime.formats.label_schema import Category, LabelSchema
from corrflow.runtime.formats.registry import FORMATS, Format, open_sink, read_annotations, read_object_mask
from corrflow.runtime.live.outputs.destinations import LiveSource
from corrflow.runtime.tracking.results import absent_result, frame_result, keypoints_result, mask_result
from corrflow.runtime.types import Annotation, Frame, FrameResult, KeypointsObject, MaskObject

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "formats.md"
BEGIN, END = "<!-- table of formats: tests/helpers/format_table.py -->", "<!-- end of the table -->"
SIZE = (66, 98)

TOOLS: dict[str, tuple[str, ...]] = {
    "coco": ("pycocotools", "datumaro"),
    "cvat": ("datumaro",),
    "labelme": ("labelme", "supervision"),
    "yolo-seg": ("ultralytics", "supervision"),
    "yolo-pose": ("ultralytics",),
    "deeplabcut": ("pandas", "deeplabcut", "movement"),
    "deeplabcut-h5": ("pandas", "deeplabcut", "movement"),
    "sleap": ("sleap-io", "movement"),
    "davis": ("opencv-python",),
    "binary": ("opencv-python",),
}
"""Tools that open our files in the tests, by format."""

SCHEMA = LabelSchema(
    (
        Category("car", 7, (), (), "vehicle"),
        Category("fly", 9, ("head", "wing", "leg"), ((0, 1), (0, 2))),
    ),
    "anna",
    {index: f"film/frame_{index:06d}.png" for index in range(4)},
)


@dataclass(frozen=True)
class Probe:
    """Question about a format.

    ask: returns True if a written and read clip has kept what the question is about, from its annotations
    """

    title: str
    of_masks: bool
    of_points: bool
    ask: Callable[[Annotations, list[FrameResult]], bool]


def clip() -> list[FrameResult]:
    """Return results of four frames: two cars and two flies; on the last frame one car and one fly are lost."""
    results = []
    for index in range(4):
        ring, block = np.zeros(SIZE, np.uint8), np.zeros(SIZE, bool)
        cv2.ellipse(ring, (25 + index, 30), (16, 11), 0, 0, 360, 1, -1)
        cv2.ellipse(ring, (25 + index, 30), (6, 4), 0, 0, 360, 0, -1)
        block[40:60, 70:90] = block[5:15, 60:75] = True
        cars = [MaskObject(1, ring.astype(bool), "car", 300, "car"), MaskObject(2, block, "car", "b", "car")]
        places = np.array([[20.25, 50.5], [30.75, 55], [33, 58]], np.float32)
        names = ("head", "wing", "leg")
        flies = [
            KeypointsObject(3, places, names, "queen", "queen", "fly"),
            KeypointsObject(4, places + np.array([20, -25], np.float32), names, "worker", "worker", "fly"),
        ]
        soft = [one.mask.astype(np.float32) for one in cars]
        objects = [mask_result(one, own) for one, own in zip(cars, soft, strict=True)]
        if index == 3:
            objects[1], soft[1] = absent_result(cars[1]), np.zeros(SIZE, np.float32)
        sure = np.array([1, 1, 0 if index else 1], np.float32)
        objects.append(keypoints_result(flies[0], flies[0].points, sure))
        gone = np.zeros(3, np.float32) if index == 3 else np.ones(3, np.float32)
        objects.append(keypoints_result(flies[1], flies[1].points, gone))
        frame = Frame(np.zeros((*SIZE, 3), np.uint8), index, index / 25, f"{index:05d}")
        results.append(frame_result(frame, SIZE, [1, 2], soft, objects))
    return results


def _prompts(annotations: Annotations, frame: int) -> list[Annotation]:
    return [packed.unpacked() for packed in annotations.objects.get(frame, ())]


def _masks(annotations: Annotations, frame: int) -> list[MaskObject]:
    return [one for one in _prompts(annotations, frame) if isinstance(one, MaskObject)]


def _points(annotations: Annotations, frame: int) -> list[KeypointsObject]:
    return [one for one in _prompts(annotations, frame) if isinstance(one, KeypointsObject)]


def _same_masks(annotations: Annotations, results: list[FrameResult], margin: int) -> bool:
    own, found = results[0].mask > 0, np.zeros(SIZE, bool)
    for one in _masks(annotations, 0):
        found |= one.mask
    kernel = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    grown = cv2.dilate(own.astype(np.uint8), kernel) > 0
    shrunk = cv2.erode(own.astype(np.uint8), kernel) > 0
    return bool(found.any() and not (found & ~grown).any() and not (shrunk & ~found).any())


def _tracks(annotations: Annotations, kind: type) -> set[object]:
    return {one.track_id for one in _prompts(annotations, 0) if isinstance(one, kind)}


def _has_names(annotations: Annotations) -> bool:
    names = {one.name or one.category for one in _prompts(annotations, 0)}
    return bool(names) and names <= {"car", "fly", "queen", "worker"}


PROBES = (
    Probe("masks to the pixel", True, False, lambda read, own: _same_masks(read, own, 0)),
    Probe("masks within a pixel", True, False, lambda read, own: _same_masks(read, own, 1)),
    Probe("two objects of a class", True, False, lambda read, own: len(_masks(read, 0)) == 2),
    Probe("identities of masks", True, False, lambda read, own: _tracks(read, MaskObject) == {300, "b"}),
    Probe("absence of a mask", True, False, lambda read, own: len(_masks(read, 3)) == 1),
    Probe("points to 0.01 pixels", False, True, lambda read, own: _same_points(read, own)),
    Probe("names of points", False, True,
          lambda read, own: {n for one in _points(read, 0) for n in one.point_names} == {"head", "wing", "leg"}),
    Probe("identities of points", False, True, lambda read, own: _tracks(read, KeypointsObject) == {"queen", "worker"}),
    Probe("hidden points", False, True,
          lambda read, own: any(one.point_names == ("head", "wing") for one in _points(read, 1))),
    Probe("absence of points", False, True, lambda read, own: len(_points(read, 3)) == 1),
    Probe("names", True, True, lambda read, own: _has_names(read)),
    Probe("class numbers", True, True, lambda read, own: {c.id for c in read.schema.categories} in ({7, 9}, {0, 1})),
    Probe("skeleton", False, True, lambda read, own: any(one.edges for one in read.schema.categories)),
    Probe("image names", True, True, lambda read, own: "frame_000001" in " ".join(read.schema.image_names.values())),
)  # fmt: skip


def _same_points(annotations: Annotations, results: list[FrameResult]) -> bool:
    found = [one.points for one in _points(annotations, 0)]
    own = [obj.points for obj in results[0].objects if obj.points is not None]
    return len(found) == 2 and all(any(np.abs(a - b).max() < 0.011 for b in own) for a in found if len(a) == 3)


def read_back(name: str, place: Path) -> Annotations:
    """Read what a format has written, as a batch does."""
    suffixes = (".txt",) if name == "yolo-pose" else (".png",) if name == "binary" else FORMATS[name].suffixes
    found = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.suffix in suffixes)
    context = ReadContext("film", 0, lambda: SIZE)
    read = read_object_mask if name == "binary" else read_annotations
    return Annotations.of([read(path, replace(context, frame=path.stem)) for path in found])


def kept(entry: Format) -> tuple[list[str], list[str]]:
    """Write a clip in a format, read it back, and return the titles of what is kept and of what is not."""
    results = clip()
    # A class of YOLO is its position.
    numbers = (0, 1) if entry.name.startswith("yolo") else (7, 9)
    categories = tuple(replace(one, id=number) for one, number in zip(SCHEMA.categories, numbers, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / entry.result
        with open_sink(entry.name, place, LiveSource("film"), replace(SCHEMA, categories=categories)) as sink:
            for result in results:
                sink.write(result)
        annotations = read_back(entry.name, place)
    has_masks = any(_masks(annotations, frame) for frame in range(4))
    has_points = any(_points(annotations, frame) for frame in range(4))
    asked = [one for one in PROBES if (one.of_masks and has_masks) or (one.of_points and has_points)]
    answers = {one.title: one.ask(annotations, results) for one in asked}
    if answers.get("masks to the pixel"):
        del answers["masks within a pixel"]
    elif answers.get("masks within a pixel"):
        del answers["masks to the pixel"]
    yes = [title for title, answer in answers.items() if answer]
    return yes, [title for title, answer in answers.items() if not answer]


def tool_versions() -> dict[str, str]:
    """Return the version of every tool that is installed here or in its own environment."""
    versions: dict[str, str] = {}
    for tool in dict.fromkeys(tool for tools in TOOLS.values() for tool in tools):
        python = ROOT / ".venv-test" / "tools" / tool / "bin" / "python"
        try:
            if python.exists():
                program = f"import importlib.metadata as m, json; print(json.dumps(m.version({tool!r})))"
                done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
                versions[tool] = json.loads(done.stdout)
            else:
                versions[tool] = version(tool)
        except (PackageNotFoundError, subprocess.CalledProcessError):
            continue
    return versions


def table(versions: dict[str, str]) -> str:
    """Return the table as Markdown; versions: of the tools, as `tool_versions`."""
    lines = [
        "| format | written to | read from | kept in a round trip | not kept | opened in the tests by |",
        "|---|---|---|---|---|---|",
    ]
    for entry in FORMATS.values():
        yes, no = kept(entry) if entry.read is not None or entry.name in ("binary", "yolo-pose") else ([], [])
        tools = [f"{tool} {versions[tool]}" for tool in TOOLS.get(entry.name, ()) if tool in versions]
        cells = (f"`{entry.name}`", f"`{entry.result}`", ", ".join(f"`{one}`" for one in entry.suffixes))
        lines.append("| " + " | ".join((*cells, ", ".join(yes), ", ".join(no), ", ".join(tools))) + " |")
    return "\n".join(lines)


def written_table() -> str:
    """Return the table that stands in the document."""
    text = DOCUMENT.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table(tool_versions())}\n\n{END}{after}")
    sys.exit(0)
