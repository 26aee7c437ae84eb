"""Shell of corrflow-batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from corrflow.command_line import with_options
from corrflow.runtime.commands.model_options import TrackerOptions
from corrflow.runtime.formats.registry import FORMATS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

HELP = f"""Track through many videos, each from labels on any of its frames, and continue where a run was stopped.

SOURCES are video files, folders of images, folders of either, glob patterns in quotes, or .txt lists of them. Labels
are found by name: for clip.mp4, LABELS/clip.png or .csv (points, boxes, DeepLabCut), LABELS/clip.json (COCO, LabelMe),
LABELS/clip.xml (CVAT), .slp (SLEAP), .h5 (DeepLabCut); of frame 12, counted from 0, LABELS/clip/00012.json (LabelMe),
.txt (YOLO), .png, or LABELS/clip/OBJECT/00012.png (a mask for each object). Each label is tracked forward and
backward; frames between two labels of an object are blended from both. Results are in OUT/clip/, the state of every
item in OUT/manifest.json. OUT/clip/report.html shows the weakest frames and which to label by hand. Exit code 1 says
that items failed.

\b
Formats:
{chr(10).join(f"  {one.name:15}{one.title}" for one in FORMATS.values())}

\b
Examples:
  corrflow-batch videos/ --labels labels/ --out results/
  corrflow-batch "videos/*.mp4" --labels labels/ --out results/ --format coco --format overlay
  corrflow-batch list.txt --labels labels/ --out results/ --workers 8 --shard 1/4
  corrflow-batch videos/ --labels labels/ --out results/ --ray
"""


@dataclass(frozen=True, kw_only=True)
class BatchOptions(TrackerOptions):
    """Options of corrflow-batch."""

    sources: Annotated[list[str], typer.Argument(help="Videos, folders, glob patterns or .txt lists.")]
    labels: Annotated[Path, typer.Option(help="Folder of labels, named as the videos are.")]
    out: Annotated[Path, typer.Option(help="Folder of results, one in it for each video.")]
    format: Annotated[
        list[str] | None, typer.Option(help="Format of the results; repeat for several. [davis, jsonl, report]")
    ] = None
    workers: Annotated[int, typer.Option(help="Processes; 0: one for each core or GPU of --gpus, two on one GPU.")] = 0
    gpus: Annotated[int, typer.Option(help="GPUs that workers share, for the backends that use one.")] = 0
    threads: Annotated[int, typer.Option(help="CPU threads of each worker; 0: the cores shared equally.")] = 0
    shard: Annotated[str, typer.Option(help="i/n: do the i-th of n parts, on one of n machines.")] = "1/1"
    keep: Annotated[
        bool,
        typer.Option(help="Keep soft masks in OUT/clip/.passes, so that added labels recompute only what they change."),
    ] = True
    ray: Annotated[
        bool, typer.Option("--ray", help="Workers on the Ray cluster of RAY_ADDRESS, else of this machine.")
    ] = False


@app.command(help=HELP)
@with_options
def batch(options: BatchOptions) -> None:
    from corrflow.runtime.batch.command import run_batch

    run_batch(
        options.sources,
        options.labels,
        options.out,
        options.format or ["davis", "jsonl", "report"],
        options.workers,
        options.shard,
        options.tracker_options(),
        options.keep,
        options.ray,
        options.gpus,
    )


def main() -> None:
    """Run the console command."""
    app()


if __name__ == "__main__":
    main()
