"""corrflow-batch: the shell around `command.run_batch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corrflow.errors import errors_reported

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="""Track through many videos, each from labels on any of its frames, and go on where a run was stopped.

    SOURCES are video files, folders of pictures, folders of either, glob patterns in quotes, or .txt lists of them.
    Labels are found by name: for clip.mp4, LABELS/clip.png or .csv (points, boxes, DeepLabCut), LABELS/clip.json
    (COCO, LabelMe), LABELS/clip.xml (CVAT), .slp (SLEAP), .h5 (DeepLabCut); of frame 12, counted from 0,
    LABELS/clip/00012.json (LabelMe), .txt (YOLO), .png, or LABELS/clip/OBJECT/00012.png (a mask for each object).
    Each label is tracked forward and backward; frames between two labels of an object are blended from both.
    Results are in OUT/clip/, the state of every item in OUT/manifest.json. OUT/clip/report.html shows the
    weakest frames and which to label by hand. Exit code 1 says that items failed.

    \b
    Examples:
      corrflow-batch videos/ --labels labels/ --out results/
      corrflow-batch "videos/*.mp4" --labels labels/ --out results/ --format coco --format overlay
      corrflow-batch list.txt --labels labels/ --out results/ --workers 8 --shard 1/4
      corrflow-batch videos/ --labels labels/ --out results/ --ray
    """
)
def batch(
    sources: Annotated[list[str], typer.Argument(help="Videos, folders, glob patterns or .txt lists.")],
    labels: Annotated[Path, typer.Option(help="Folder of labels, named as the videos are.")],
    out: Annotated[Path, typer.Option(help="Folder of results, one in it for each video.")],
    format: Annotated[
        list[str] | None,
        typer.Option(
            help="davis, binary, csv, coco, youtube-vos, labelme, cvat, yolo-seg, yolo-pose, deeplabcut, "
            "deeplabcut-h5, sleap, tapvid, boxes, cutouts, jsonl, overlay or report; several times "
            "[davis, jsonl and report]."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0: one for each core or GPU of --gpus, two on one GPU.")] = 0,
    gpus: Annotated[int, typer.Option(help="GPUs that workers are shared out to, for the back ends that use one.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads of each worker; 0: the cores shared out.")] = 0,
    shard: Annotated[str, typer.Option(help="i/n: do the i-th of n parts, on one of n machines.")] = "1/1",
    model: Annotated[Path | None, typer.Option(help="Model: a bundled name, a folder or a zip. [quarter]")] = None,
    short_side: Annotated[
        int | None, typer.Option(help="Short side frames are shrunk to; 0: never [the model's].")
    ] = None,
    memory_frames: Annotated[int | None, typer.Option(help="Last frames kept as references [the model's].")] = None,
    redetect: Annotated[
        bool,
        typer.Option("--redetect/--no-redetect", help="Drop strays; take hidden objects for lost and find them again."),
    ] = True,
    keep: Annotated[
        bool,
        typer.Option(help="Keep soft labels in OUT/clip/.passes, so that added labels recompute what they change."),
    ] = True,
    ray: Annotated[
        bool, typer.Option("--ray", help="Workers on the Ray cluster of RAY_ADDRESS, else of this machine.")
    ] = False,
    backend: Annotated[str, typer.Option(help="As for corrflow-track.")] = "auto",
) -> None:
    with errors_reported():
        from corrflow.runtime.batch.command import run_batch
        from corrflow.runtime.tracking.factory import Model

        options = Model(model, backend, threads, short_side, memory_frames, False, redetect)
        run_batch(
            sources, labels, out, format or ["davis", "jsonl", "report"], workers, shard, options, keep, ray, gpus
        )


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    main()
