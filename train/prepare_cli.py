"""corrflow-prepare: the shell around `prepare.prepare`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from corrflow.errors import CorrflowError, errors_reported

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="""Turn folders of videos into shards of small JPEG frames, which corrflow-train reads.

    Any layout will do: every video file below SRC is a video, and so is every folder of pictures; of DAVIS and
    YouTube-VOS the frames are taken and the masks are not. The same command again goes on where it was stopped.
    OUT/report.json names what was left out or cut short; where that is anything, the exit code is 1.

    \b
    Examples:
      corrflow-prepare kinetics/train shards/kinetics --workers 16
      corrflow-prepare DAVIS shards/davis --folder-fps 24
      corrflow-train --data shards/kinetics --preset full --steps 200000 --out runs/full
      corrflow-train --data 'https://host/shard-{000000..004799}.tar' --preset full --steps 200000 --out runs/full
    """
)
def prepare(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of videos or of folders of pictures.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards; a run found there goes on.")],
    fps: Annotated[float, typer.Option(help="Frames a second to take.")] = 6.0,
    short_side: Annotated[int, typer.Option(help="Pixels of the short side; smaller videos stay as they are.")] = 256,
    quality: Annotated[int, typer.Option(help="JPEG quality, 1 to 100.")] = 90,
    folder_fps: Annotated[
        float | None, typer.Option(help="Frames a second that folders of pictures hold. [takes every picture]")
    ] = None,
    longest: Annotated[float, typer.Option(help="Seconds of a video to take at most.")] = 600.0,
    per_shard: Annotated[int, typer.Option(help="Videos of a shard.")] = 50,
    workers: Annotated[int | None, typer.Option(help="Processes that decode. [all cores]")] = None,
) -> None:
    with errors_reported():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        from corrflow.train.command import available_threads
        from corrflow.train.data.frames import FrameSampling
        from corrflow.train.data.prepare import REPORT, plan_shards
        from corrflow.train.data.prepare import prepare as run

        plan = plan_shards(source, FrameSampling(fps, short_side, quality, folder_fps), per_shard, longest)
        columns = (
            TextColumn("decoding videos"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Remaining()
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bars:
            bar = bars.add_task("", total=sum(map(len, plan.shards)))
            total = run(plan, out, workers or available_threads(), lambda done: bars.update(bar, completed=done))
        print(
            f"{total.videos} videos, {total.frames} frames, {total.bytes / 1e6:.1f} MB"
            f" ({total.bytes / max(total.frames, 1):.0f} bytes a frame) in {out}"
        )
        missing = len(total.left_out) + len(total.cut)
        if missing:
            name, reason = next(iter({**total.left_out, **total.cut}.items()))
            raise CorrflowError(
                f"{missing} videos could not be read or not to their end, the first {name}: {reason};"
                f" {os.path.join(out, REPORT)} names them all, and the shards hold everything else"
            )


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    sys.exit(main())
