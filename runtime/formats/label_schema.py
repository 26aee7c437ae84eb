"""Schema of labels: classes, skeletons, scorer and image names of the files that were read, for the writers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from corrflow.runtime.types import Frame

FrameKey = int | str
"""Index of a frame from 0, or the name of its image without the suffix, such as "00012", "frame_000012" or "img12"."""


@dataclass(frozen=True)
class Category:
    """Class of objects, with the skeleton of its points.

    id:          number in the file, such as COCO's category id or YOLO's class index; None where it has none
    point_names: names of all points in the order of the file
    edges:       pairs of indices into `point_names`
    symmetries:  pairs of indices of points that are each other's left and right
    """

    name: str
    id: int | None = None
    point_names: tuple[str, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()
    supercategory: str = ""
    symmetries: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class LabelSchema:
    """What a tool expects to find again in the results.

    scorer:      DeepLabCut's name of the person who labelled
    individuals: DeepLabCut's individuals in order, each with the name of its category; one named "" for a table
                 without individuals
    video:       SLEAP's entry of the video as JSON; "" without one
    image_names: path of each frame's image as the file writes it, with its suffix
    has_outlines: True where the file's masks are polygons, for tools that edit the results as polygons as well
    has_only_boxes: True where all masks of the file are boxes, for tools that have boxes
    """

    categories: tuple[Category, ...] = ()
    scorer: str = ""
    image_names: Mapping[FrameKey, str] = field(default_factory=dict)
    individuals: Mapping[str, str] = field(default_factory=dict)
    video: str = ""
    has_outlines: bool = False
    has_only_boxes: bool = False

    def category(self, name: str) -> Category | None:
        """Return the category of a name."""
        return next((one for one in self.categories if one.name == name), None)

    def image_name(self, frame: Frame, suffix: str = ".jpg") -> str:
        """Return the path of a frame's image: as the labels have it, else in their style.

        suffix: suffix of images that neither the labels nor the source name
        """
        if frame.index in self.image_names:
            return self.image_names[frame.index]
        folder, style = "", None
        if numbered := [(index, name) for index, name in self.image_names.items() if isinstance(index, int)]:
            index, path = numbered[0]
            parent = str(PurePosixPath(path).parent)
            folder = "" if parent == "." else f"{parent}/"
            style = re.fullmatch(r"(.*?)([0-9]+)(\.[^.]*)?", PurePosixPath(path).name)
        if frame.file_name:
            return folder + frame.file_name
        if style is not None:
            number = frame.index + int(style[2]) - index
            return f"{folder}{style[1]}{max(number, 0):0{len(style[2])}}{style[3] or ''}"
        return f"{folder}{frame.name}{suffix}"


EMPTY_SCHEMA = LabelSchema()
"""Schema of labels that state none."""


def merged(schemas: Iterable[LabelSchema]) -> LabelSchema:
    """Combine the schemas of several files: the first category of a name, scorer, video and image name counts.

    The points of categories of one name are united.
    """
    categories: dict[str, Category] = {}
    scorer, video, image_names, individuals = "", "", dict[FrameKey, str](), dict[str, str]()
    listed = list(schemas)
    for schema in listed:
        for one in schema.categories:
            known = categories.get(one.name)
            if known is None:
                categories[one.name] = one
            elif set(one.point_names) - set(known.point_names):
                names = tuple(dict.fromkeys((*known.point_names, *one.point_names)))
                categories[one.name] = replace(known, point_names=names)
        scorer, video = scorer or schema.scorer, video or schema.video
        for name, category in schema.individuals.items():
            individuals.setdefault(name, category)
        for frame, image in schema.image_names.items():
            image_names.setdefault(frame, image)
    has_outlines = any(schema.has_outlines for schema in listed)
    only_boxes = bool(listed) and all(schema.has_only_boxes for schema in listed)
    return LabelSchema(tuple(categories.values()), scorer, image_names, individuals, video, has_outlines, only_boxes)
