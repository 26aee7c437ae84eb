"""corrflow-eval: score artifacts on data sets in their published layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corrflow.plugins.errors import errors_reported

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would take as long as the rest of --help
)


# With a callback the one command keeps its name on the command line.
@app.callback(
    help="""Score trackers on data sets in their published layouts.

    \b
    Examples:
      corrflow-eval davis DAVIS --split val
      corrflow-eval davis DAVIS --split val --artifact bundled --artifact artifacts/mine --identity --workers 2
    """
)
def corrflow_eval() -> None: ...


@app.command()
def davis(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with ImageSets, JPEGImages and Annotations.")],
    split: Annotated[str, typer.Option(help="List of sequences: ImageSets/<year>/<split>.txt.")] = "val",
    artifact: Annotated[
        list[Path] | None,
        typer.Option(help="Artifact to score, or bundled; repeat to compare several. (default: bundled)"),
    ] = None,
    identity: Annotated[bool, typer.Option("--identity", help="Also score the first mask, repeated.")] = False,
    rows: Annotated[
        int | None,
        typer.Option(min=0, help="Short side that frames are shrunk to; 0 keeps it. (default: the artifact's)"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; from 2 on one thread each.")] = 1,
    sequence: Annotated[
        list[str] | None,
        typer.Option(help="Score this sequence only; repeat for several."),
    ] = None,
    year: Annotated[
        str | None,
        typer.Option(help="Folder of the list, where several have the split."),
    ] = None,
    resolution: Annotated[str, typer.Option(help="Folder of the frames and masks.")] = "480p",
    output: Annotated[
        Path | None,
        typer.Option(help="Also write every object's scores to this JSON file."),
    ] = None,
) -> None:
    """Track the first frame's objects through DAVIS and print J, F, J&F (percent) and seconds per frame.

    J and F agree with the official DAVIS-2017 code; the mean is over objects.

    Examples:

        corrflow-eval davis DAVIS --split val --year 2016

        corrflow-eval davis DAVIS --artifact models/a --artifact models/b --identity --workers 4 --output scores.json

        corrflow-eval davis DAVIS --sequence bear --rows 240
    """
    with errors_reported():
        from corrflow.evaluate.davis import evaluate_davis
        from corrflow.evaluate.report import print_davis_table

        report = evaluate_davis(
            root,
            split,
            artifact or (),
            identity=identity,
            rows=rows,
            workers=workers,
            sequence_names=sequence or (),
            year=year,
            resolution=resolution,
            output=output,
            show_progress=True,
        )
        print_davis_table(report)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
