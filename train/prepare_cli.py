"""corrflow-prepare: command line of `prepare.prepare`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from corrflow.command_line import with_options
from corrflow.errors import CorrflowError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Options of corrflow-prepare."""

    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of videos or of image folders.")]
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the shards; an existing run is resumed.")]

    # Frames
    frames_per_second: Annotated[float, typer.Option("--fps", help="Sampling rate of frames.")] = 6.0
    short_side: Annotated[int, typer.Option(help="Short side in pixels to which larger frames are downscaled.")] = 256
    quality: Annotated[int, typer.Option(help="JPEG quality, 1 to 100.")] = 90
    folder_rate: Annotated[
        float | None, typer.Option("--folder-fps", help="Frame rate of image folders. [all images are taken]")
    ] = None
    max_seconds: Annotated[float, typer.Option(help="Duration after which a video is cut off.")] = 600.0

    # Shards
    per_shard: Annotated[int, typer.Option(help="Videos per shard.")] = 50
    workers: Annotated[int | None, typer.Option(help="Decoder processes. [all cores]")] = None


@app.command(
    help="""Convert folders of videos to shards of small JPEG frames for corrflow-train.

    Every video file and every image folder below SRC is one video. Mask folders of DAVIS and YouTube-VOS are ignored.
    The same command resumes a stopped run. OUT/report.json lists skipped and truncated videos; if there are any, the
    exit code is 1.

    \b
    Examples:
      corrflow-prepare kinetics/train shards/kinetics --workers 16
      corrflow-prepare DAVIS shards/davis --folder-fps 24
      corrflow-train --data shards/kinetics --preset full --steps 200000 --out runs/full
      corrflow-train --data 'https://host/shard-{000000..004799}.tar' --preset full --steps 200000 --out runs/full
    """
)
@with_options
def prepare(options: PrepareOptions) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    from corrflow.train.command import available_threads
    from corrflow.train.data.frames import FrameSampling
    from corrflow.train.data.prepare import REPORT, plan_shards
    from corrflow.train.data.prepare import prepare as run

    sampling = FrameSampling(options.frames_per_second, options.short_side, options.quality, options.folder_rate)
    plan = plan_shards(options.source, sampling, options.per_shard, options.max_seconds)
    columns = (TextColumn("decoding videos"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task("", total=sum(map(len, plan.shards)))
        workers = available_threads() if options.workers is None else options.workers
        total = run(plan, options.out, workers, lambda done: bars.update(bar, completed=done))
    print(
        f"{total.videos} videos, {total.frames} frames, {total.bytes / 1e6:.1f} MB"
        f" ({total.bytes / max(total.frames, 1):.0f} bytes per frame) in {options.out}"
    )
    damaged = {**total.skipped, **total.truncated}
    if damaged:
        name, reason = next(iter(damaged.items()))
        raise CorrflowError(
            f"{len(damaged)} videos could not be read completely, the first {name}: {reason};"
            f" {os.path.join(options.out, REPORT)} lists all of them, and the shards contain all other frames"
        )


def main() -> None:
    """Run the console command."""
    app()


if __name__ == "__main__":
    main()
