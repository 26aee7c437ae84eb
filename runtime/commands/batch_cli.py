"""Command line of corrflow-batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from corrflow.command_line import with_options
from corrflow.runtime.commands.model_options import LabelOptions
from corrflow.runtime.formats.registry import FORMATS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

HELP = f"""Track objects through many videos, from annotations on any frames, and resume a stopped run.

SOURCES are video files, folders of images, folders of either, glob patterns in quotes, or .txt lists of sources; or one
project: DeepLabCut's folder, SLEAP's .slp, a CVAT export with its images, a YOLO data set with data.yaml, or folders of
images with LabelMe's JSON.

Labels are found by name. For clip.mp4: LABELS/clip.png, .csv (points, boxes, DeepLabCut), .json (COCO, LabelMe),
.xml (CVAT), .slp (SLEAP) or .h5 (DeepLabCut). For its frame 12, counted from 0: LABELS/clip/00012.png, .json (LabelMe)
or .txt (YOLO), or LABELS/clip/OBJECT/00012.png with the mask of one object. Files of several videos, such as
LABELS/all.json, give each video its own. --dry-run prints what is read, and what is left out and why.

Each annotation is tracked forward and backward. Frames between two annotations of an object are blended from both.

Results are in OUT/clip/, the state of every item is in OUT/manifest.json. OUT/clip/report.html shows the
weakest frames, and suggests frames to annotate. Exit code 1: at least one item failed.

\b
Formats:
{chr(10).join(f"  {entry.name:15}{entry.title}" for entry in FORMATS.values())}

\b
Examples:
  corrflow-batch videos/ --labels labels/ --out results/
  corrflow-batch videos/ --labels labels/ --dry-run
  corrflow-batch "videos/*.mp4" --labels labels/ --out results/ --format coco --format overlay
  corrflow-batch my-yolo-dataset/
  corrflow-batch list.txt --labels labels/ --out results/ --workers 8 --shard 1/4
  corrflow-batch videos/ --labels labels/ --out results/ --ray
"""


@dataclass(frozen=True, kw_only=True)
class BatchOptions(LabelOptions):
    """Options of corrflow-batch."""

    sources: Annotated[list[str], typer.Argument(help="Videos, folders, glob patterns or .txt lists.")]
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of labels, with the names of the videos, or one file for all; not for projects."),
    ] = None
    out: Annotated[Path | None, typer.Option(help="Folder of results, with a folder for each video.")] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Track nothing; print what is read of the labels, and what is left out.")
    ] = False
    with_frames: Annotated[
        str, typer.Option(help="Images beside the labels: all, labelled, suggested for labelling, or none. [none]")
    ] = ""
    format: Annotated[
        list[str] | None, typer.Option(help="Format of the results; repeat for several. [davis, jsonl, report]")
    ] = None
    workers: Annotated[
        int, typer.Option(help="Processes; 0: one per core or per GPU of --gpus; two for a single GPU.")
    ] = 0
    gpus: Annotated[int, typer.Option(help="GPUs shared by the workers, for GPU backends.")] = 0
    threads: Annotated[int, typer.Option(help="CPU threads of each worker; 0: an equal share of the cores.")] = 0
    shard: Annotated[str, typer.Option(help="i/n: process the i-th of n parts, for n machines.")] = "1/1"
    keep: Annotated[
        bool,
        typer.Option(
            help="Keep soft masks in OUT/clip/.passes, so that added annotations recompute only affected frames."
        ),
    ] = True
    ray: Annotated[
        bool, typer.Option("--ray", help="Workers on the Ray cluster of RAY_ADDRESS, or on this machine.")
    ] = False


@app.command(help=HELP)
@with_options
def batch(options: BatchOptions) -> None:
    """Process the batch."""
    from corrflow.runtime.batch.command import BatchRequest, run_batch, run_dry

    options.check_labels()
    request = BatchRequest(
        sources=options.sources,
        labels=options.labels,
        out=options.out,
        formats=options.format or (),
        workers=options.workers,
        shard=options.shard,
        keep_passes=options.keep,
        on_ray=options.ray,
        gpus=options.gpus,
        is_strict=options.strict,
        min_score=options.min_score,
        with_frames=options.with_frames,
    )
    if options.dry_run:
        run_dry(request)
    else:
        run_batch(request, options.tracker_options())


def main() -> None:
    """Run the console command."""
    app()


if __name__ == "__main__":
    main()
