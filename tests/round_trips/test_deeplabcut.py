"""DeepLabCut's own functions in a project: they find our results, filter them, and read our tables of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.tools import ask_tool

from corrflow.runtime.batch.projects import find_project
from corrflow.runtime.formats.deeplabcut_h5 import DeepLabCutH5Sink
from corrflow.runtime.formats.label_schema import Category, LabelSchema
from corrflow.runtime.tracking.results import frame_result, keypoints_result
from corrflow.runtime.types import Frame, KeypointsObject

pytest.importorskip("h5py")
PROGRAM = """
import importlib.abc, importlib.machinery, json, sys
from pathlib import Path
from unittest.mock import MagicMock

class StandIn(MagicMock):
    __path__ = []

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    # Libraries of networks and plots, which these functions do not use.
    NAMES = {"torchvision", "albumentations", "timm", "filterpy", "numba", "huggingface_hub", "skimage", "dlclibrary",
             "statsmodels", "einops", "pycocotools"}
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in self.NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return StandIn(name=spec.name, __spec__=spec, __name__=spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Finder())
import matplotlib
matplotlib.use("agg")
import deeplabcut
import pandas as pd
from deeplabcut.utils.conversioncode import guarantee_multiindex_rows

found = []
for folder in map(Path, sys.argv[1:]):
    deeplabcut.filterpredictions(folder / "config.yaml", [folder / "videos" / "clip.mp4"], save_as_csv=False)
    (path,) = (folder / "videos").glob("*_filtered.h5")
    table = pd.read_hdf(path)
    machine = pd.read_hdf(folder / "labeled-data" / "clip" / "machinelabels-iter0.h5", "df_with_missing")
    guarantee_multiindex_rows(machine)
    found.append({"name": path.name, "columns": [list(one[1:]) for one in table.columns], "rows": len(table),
                  "values": table.iloc[3].fillna(-1).tolist(), "machine": [list(one) for one in machine.index]})
print(json.dumps(found))
"""
PARTS = ("snout", "tail")
CONFIG = """Task: reach
scorer: anna
date: Aug20
multianimalproject: {several}
default_track_method: ellipse
identity:
project_path: {folder}
engine: tensorflow
iteration: 0
TrainingFraction: [0.95]
snapshotindex: -1
video_sets:
  {folder}/videos/clip.mp4:
    crop: 0, 640, 0, 480
bodyparts: {parts}
individuals: [mickey, minnie]
multianimalbodyparts: [snout, tail]
uniquebodyparts: []
"""


def project(folder: Path, several: bool) -> Path:
    """Make a project with a trained network and an image that is extracted but not labelled."""
    labels, train = folder / "labeled-data" / "clip", folder / "dlc-models" / "iteration-0"
    train /= "reachAug20-trainset95shuffle1/train"
    for path in (labels, train, folder / "videos"):
        path.mkdir(parents=True)
    parts = "MULTI!" if several else "[snout, tail]"
    (folder / "config.yaml").write_text(CONFIG.format(several=str(several).lower(), folder=folder, parts=parts))
    (train / "pose_cfg.yaml").write_text("net_type: resnet_50\n")
    for end in ("index", "meta"):
        (train / f"snapshot-1000.{end}").touch()
    (labels / "CollectedData_anna.csv").write_text("scorer,anna\n")
    (labels / "img2.png").touch()
    (folder / "videos" / "clip.mp4").touch()
    return folder


def write_results(folder: Path, out: Path, individuals: dict[str, str]) -> None:
    """Write results of seven frames, and finish them in a project."""
    found = find_project(folder)
    assert found is not None and found.finish is not None
    schema = LabelSchema((Category("animal", point_names=PARTS),), "anna", individuals=individuals)
    prompts = [
        KeypointsObject(k + 1, np.array([[3, 4], [5, 6]], np.float32) + 10 * k, PARTS, name, name or None, "animal")
        for k, name in enumerate(individuals)
    ]
    with DeepLabCutH5Sink(out / "clip" / "deeplabcut.h5", schema) as sink:
        for index in range(7):
            frame = Frame(np.zeros((64, 64, 3), np.uint8), index, 0, f"{index:05d}")
            peaks = np.array([0.9, 0.0 if index == 1 else 0.8], np.float32)
            objects = [keypoints_result(one, one.points + index, peaks) for one in prompts]
            sink.write(frame_result(frame, (64, 64), [], [], objects))
    found.finish(out, ["clip"])


def test_filterpredictions_finds_and_filters_our_results(tmp_path: Path) -> None:
    one, several = project(tmp_path / "one", False), project(tmp_path / "several", True)
    write_results(one, tmp_path / "out1", {"": "animal"})
    write_results(several, tmp_path / "out2", {"mickey": "animal", "minnie": "animal"})
    alone, together = ask_tool("deeplabcut", PROGRAM, one, several)
    assert alone["name"] == "clipDLC_resnet50_reachAug20shuffle1_1000_corrflow_filtered.h5"
    assert together["name"] == "clipDLC_resnet50_reachAug20shuffle1_1000_corrflow_el_filtered.h5"
    parts = [[part, x] for part in PARTS for x in ("x", "y", "likelihood")]
    assert alone["columns"] == parts
    assert together["columns"] == [[name, *part] for name in ("mickey", "minnie") for part in parts]
    for found in (alone, together):
        assert found["rows"] == 7 and found["values"][:3] == pytest.approx([6, 7, 0.9], abs=1e-3)
        assert found["machine"] == [["labeled-data", "clip", "img2.png"]]
