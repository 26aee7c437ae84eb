"""Options of corrflow-label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from corrflow.command_line import with_options
from corrflow.errors import InputError
from corrflow.output_paths import is_within
from corrflow.runtime.commands.model_options import TrackerOptions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, kw_only=True)
class LabelOptions(TrackerOptions):
    """Options of corrflow-label."""

    source: Annotated[str, typer.Argument(help="Video file, image, folder of images, or glob pattern.")]
    frame: Annotated[int, typer.Option(help="Frame to start with, from 0.")] = 0
    out: Annotated[Path, typer.Option(help="Folder of the saved files.")] = Path(".")
    save_prompt: Annotated[
        Path | None, typer.Option(help="Save the frame with its objects as well, for --prompt-file.")
    ] = None
    serve: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the page; port 0 takes a free port.")] = (
        "127.0.0.1:0"
    )
    token: Annotated[str, typer.Option(envvar="CORRFLOW_TOKEN", help="Token of the page [a new one].")] = ""
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True


@app.command(
    help="""Draw objects on a frame of a video in the browser, save them, and track them.

    The page starts with the first frame; a slider leads to others. Boxes are cut out by GrabCut; there are a lasso, a
    brush, an eraser, and points with names. "Save labels" writes SOURCE_mask.png and SOURCE_points.csv for
    corrflow-track. Labels of other frames are written to SOURCE_labels/ for corrflow-batch. "Track" writes
    SOURCE_tracked.mp4 from the frame on display. No existing file is overwritten; a taken name gets a number.

    \b
    Examples:
      corrflow-label video.mp4
      corrflow-label video.mp4 --frame 120 --out labels/
      corrflow-label frames/ --no-browser --serve 0.0.0.0:8080    # from a phone; needs the token that is printed
    """
)
@with_options
def label(options: LabelOptions) -> None:
    """Check the options and serve the page."""
    from corrflow.runtime.artifacts.bundled import resolve_model
    from corrflow.runtime.live.label import run_label
    from corrflow.runtime.live.web.auth import parse_access

    if is_within(options.source, options.out) and is_within(options.out, options.source):
        raise InputError(
            f"expected --out apart from the images, got {str(options.out)!r} for both; name another folder"
        )
    resolve_model(options.model)  # a wrong name is reported before anything is drawn
    run_label(
        options.source,
        options.frame,
        options.out,
        options.save_prompt,
        parse_access(options.serve, options.token, always_token=True),
        options.browser,
        options.tracker_options().open,
    )


def main() -> None:
    """Run the console command."""
    app()


if __name__ == "__main__":
    main()
