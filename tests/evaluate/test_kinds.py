"""Kinds of difficulty, each measured on a sequence that has it and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.davis import save_mask
from typer.testing import CliRunner

from corrflow.evaluate import cli
from corrflow.evaluate.data_sets import davis_data
from corrflow.evaluate.datasets.attributes import read_attributes
from corrflow.evaluate.datasets.kinds import area_dips, kinds_of, measure_kinds

SIZE = (120, 160)
RED, BLUE, GREEN = (30, 30, 200), (200, 40, 30), (30, 160, 40)


def disk(centre: tuple[int, int], radius: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    cv2.circle(mask, centre, radius, 1, -1)
    return mask


def add_sequence(root: Path, name: str, masks: list[np.ndarray], colours: list[tuple[int, int, int]], ground) -> None:
    for index, (mask, colour) in enumerate(zip(masks, colours, strict=True)):
        image = np.full((*SIZE, 3), ground, np.uint8)
        image[mask > 0] = colour
        save_mask(mask * 255, root / "Annotations/480p" / name / f"{index:05d}.png")
        path = root / "JPEGImages/480p" / name / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    listed = root / "ImageSets/2017/train.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    with listed.open("a") as file:
        file.write(f"{name}\n")


def masks_of(kind: str) -> list[np.ndarray]:
    times = range(12)
    still = disk((80, 60), 20)
    if kind == "occlusion":
        return [disk((80, 60), 8 if 5 <= t <= 6 else 20) for t in times]
    if kind == "thin parts":
        thin = still.copy()
        thin[59:61, 5:155] = 1
        return [thin for _ in times]
    if kind == "scale change":
        return [disk((80, 60), 15 + t) for t in times]
    if kind == "fast motion":
        return [disk((25 + 6 * t, 60), 20) for t in times]
    return [still for _ in times]


@pytest.mark.parametrize(
    "kind",
    ["", "new appearance", "occlusion", "look-alikes", "thin parts", "scale change", "fast motion"],
)
def test_each_kind_is_measured_apart(tmp_path: Path, kind: str) -> None:
    colours = [GREEN if kind == "new appearance" and t > 4 else RED for t in range(12)]
    add_sequence(tmp_path, "one", masks_of(kind), colours, RED if kind == "look-alikes" else BLUE)
    (sequence,) = davis_data(tmp_path, "train").sequences
    assert kinds_of(measure_kinds(sequence)) == ([kind] if kind else [])


def test_dips_need_the_object_before_and_after() -> None:
    assert area_dips([10, 8, 6, 4, 2]).max() == 0  # it goes away
    assert area_dips([2, 4, 6, 8, 10]).max() == 0
    assert area_dips([10, 10, 0, 0, 5]).tolist() == [0, 0, 1, 1, 0]
    assert area_dips([10]).tolist() == [0]


def test_the_command_writes_a_file_of_attributes(tmp_path: Path) -> None:
    add_sequence(tmp_path, "moves", masks_of("fast motion"), [RED] * 12, BLUE)
    add_sequence(tmp_path, "rests", masks_of(""), [RED] * 12, BLUE)
    path = tmp_path / "kinds.json"
    for _ in range(2):  # an earlier file is replaced
        done = CliRunner().invoke(cli.app, ["kinds", str(tmp_path), "--out", str(path)])
        assert done.exit_code == 0, done.output
    assert "moves" in done.stdout and "0.17 *" in done.stdout
    assert read_attributes(path) == {"moves": ("fast motion",), "rests": ()}
    assert json.loads(path.read_text())["sequences"][0]["measures"]["fast motion"] == 0.169
    path.write_text("notes of mine")
    refused = CliRunner().invoke(cli.app, ["kinds", str(tmp_path), "--out", str(path)])
    assert refused.exit_code == 2 and path.read_text() == "notes of mine"
