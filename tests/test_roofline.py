"""The roofline of the CUDA kernel is counted from its tiles, and the page about it shows what the command prints."""

from __future__ import annotations

from pathlib import Path

from corrflow.bench.op.roofline import DEVICES, Frame, milliseconds, table, work, work_table
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model


def test_the_page_shows_what_the_command_prints() -> None:
    page = (Path(__file__).parents[1] / "docs" / "cuda.md").read_text(encoding="utf-8")
    assert work_table() in page and table() in page


def test_the_frame_is_that_of_the_bundled_model() -> None:
    artifact, frame = load_artifact(resolve_model(None)), Frame()
    assert (frame.channels, frame.references) == (artifact.channels, artifact.settings.references)
    assert frame.attributes == artifact.settings.attributes


def test_one_tile_is_counted_as_by_hand() -> None:
    # 16 columns and 8 rows in one block; with radius 1, row 0 sees 2 rows of keys, rows 1 to 6 see 3, row 7 sees 2.
    counted = work(
        Frame(height=8, width=16, channels=16, classes=2, references=1, radius=(1,), dilation=(1,)), "float16"
    )
    assert counted.blocks == 1
    assert counted.memory == 8 * 16 * 2 * (16 + 2 + 16 + 2)
    assert counted.cached == 8 * 16 * 16 * 2
    # 16 columns and a halo of one at either side are planned as two groups of 16 keys.
    assert counted.operations == (2 + 6 * 3 + 2) * 2 * 2 * 16**3


def test_more_work_is_never_faster_and_no_product_is_left_out() -> None:
    for top_k in (5, 0):
        small, large = (work(Frame(references=K, top_k=top_k), "float16") for K in (1, 6))
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
            assert (
                milliseconds(large, device, "float32")["products"] > milliseconds(large, device, "float16")["products"]
            )
