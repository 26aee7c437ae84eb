"""Roofline of the CUDA kernel: counts per tile, and the tables of the documentation."""

from __future__ import annotations

from dataclasses import replace

from helpers.paths import ROOT

from corrflow.bench.op.roofline import DEVICES, Workload, milliseconds, table, work, work_table
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model


def test_the_documentation_has_the_tables_of_the_command() -> None:
    page = (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
    assert work_table() in page and table() in page


def test_the_default_workload_is_that_of_the_bundled_model_with_the_radius_that_ran_on_a_gpu() -> None:
    artifact, workload = load_artifact(resolve_model(None)), Workload()
    assert (workload.channels, workload.num_windows) == (artifact.channels, artifact.settings.num_reference_frames)
    assert workload.attributes == replace(artifact.settings.attributes, radius=(8, 12))


def test_work_of_one_tile_matches_a_count_by_hand() -> None:
    # 16 columns and 8 rows in one block; with radius 1, rows 0 and 7 search 2 rows of keys, rows 1 to 6 search 3.
    counted = work(
        Workload(height=8, width=16, channels=16, classes=2, num_windows=1, radius=(1,), dilation=(1,)), "float16"
    )
    assert counted.blocks == 1
    assert counted.memory == 8 * 16 * 2 * (16 + 2 + 16 + 2)
    assert counted.cached == 8 * 16 * 16 * 2
    # 16 columns and a halo of 1 on each side need two groups of 16 keys.
    assert counted.operations == (2 + 6 * 3 + 2) * 2 * 2 * 16**3


def test_more_work_takes_longer_and_includes_all_scores() -> None:
    for top_k in (5, 0):
        small, large = (work(Workload(num_windows=K, top_k=top_k), "float16") for K in (1, 6))
        inside = [
            ((2 * radius + 1) * 120 - radius * (radius + 1) * dilation)
            * ((2 * radius + 1) * 214 - radius * (radius + 1) * dilation)
            for radius, dilation in ((8, 1), (12, 2))
        ]
        useful = 2 * 155 * (inside[0] + 5 * inside[1])  # of scores inside the frame
        assert useful < large.operations
        for device in DEVICES:
            times = [milliseconds(counted, device, "float16")["bound"] for counted in (small, large)]
            assert times[0] < times[1]
            assert milliseconds(large, device, "float32")["matrix"] > milliseconds(large, device, "float16")["matrix"]
