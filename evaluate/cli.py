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

# Options that several commands have.
Artifacts = Annotated[
    list[str] | None,
    typer.Option(help="Artifact, bundled, or untrained:PRESET; repeat to compare. (default: bundled)"),
]
Protocols = Annotated[
    list[str] | None,
    typer.Option(help="default, paper, mast, crw, vfs or hvc; repeat to compare. (default: default)"),
]
Baselines = Annotated[list[str] | None, typer.Option(help="identity, lab or flow; repeat for several.")]
Encoders = Annotated[list[Path] | None, typer.Option(help="Encoder as ONNX: picture -> feature map; repeatable.")]
EncoderLayout = Annotated[str, typer.Option(help="Axes of its input: nchw, nhwc or auto.")]
EncoderColours = Annotated[str, typer.Option(help="Order of its input's channels: rgb or bgr.")]
EncoderMean = Annotated[str, typer.Option(help="Mean of pixels 0..1, in that order.")]
EncoderStd = Annotated[str, typer.Option(help="Standard deviation of pixels 0..1, in that order.")]
Rows = Annotated[
    int | None, typer.Option(min=0, help="Short side that frames are shrunk to; 0 keeps it. (default: the artifact's)")
]
Workers = Annotated[int, typer.Option(min=1, help="Processes; from 2 on one thread each.")]
Sequences = Annotated[list[str] | None, typer.Option(help="This sequence only; repeat for several.")]
Year = Annotated[str | None, typer.Option(help="Folder of the list, where several have the split.")]
Resolution = Annotated[str, typer.Option(help="Folder of the frames and masks.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for report.html, report.json, CSV files and masks; a run given again goes on there."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute everything again, whatever the folder holds.")]
Attributes = Annotated[
    Path | None, typer.Option(help="Attributes of the sequences: JSON {name: [attribute]}, or DAVIS's db_info.yaml.")
]
OfficialDecay = Annotated[
    bool, typer.Option("--official-decay", help="Decay as the official code has it, wrong past 256 frames.")
]

IMAGENET = "0.485,0.456,0.406", "0.229,0.224,0.225"


# With a callback the commands keep their names on the command line.
@app.callback(
    help="""Score trackers on data sets in their published layouts.

    \b
    Examples:
      corrflow-eval davis DAVIS --split val --out results
      corrflow-eval davis DAVIS --split val --protocol crw --baseline identity --baseline flow --workers 2
      corrflow-eval score MASKS --gt DAVIS --split val
      corrflow-eval search DAVIS --split train --rows 240,480 --radius 6,8,12 --out search
    """
)
def corrflow_eval() -> None: ...


@app.command()
def davis(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with ImageSets, JPEGImages and Annotations.")],
    split: Annotated[str, typer.Option(help="List of sequences: ImageSets/<year>/<split>.txt.")] = "val",
    artifact: Artifacts = None,
    protocol: Protocols = None,
    baseline: Baselines = None,
    encoder: Encoders = None,
    encoder_layout: EncoderLayout = "auto",
    encoder_colours: EncoderColours = "rgb",
    encoder_mean: EncoderMean = IMAGENET[0],
    encoder_std: EncoderStd = IMAGENET[1],
    rows: Rows = None,
    workers: Workers = 1,
    sequence: Sequences = None,
    year: Year = None,
    resolution: Resolution = "480p",
    out: Out = None,
    fresh: Fresh = False,
    attributes: Attributes = None,
    official_decay: OfficialDecay = False,
) -> None:
    """Track the first frame's objects through DAVIS and print J, F, J&F (percent) and seconds per frame.

    J and F agree with the official DAVIS-2017 code; the mean is over objects.

    Examples:

        corrflow-eval davis DAVIS --split val --year 2016 --out results

        corrflow-eval davis DAVIS --artifact models/a --artifact untrained:quarter --baseline identity --workers 4

        corrflow-eval davis DAVIS --protocol paper --protocol crw --sequence bear --rows 240

        corrflow-eval davis DAVIS --artifact models/a --encoder resnet.onnx --baseline lab --out results
    """
    with errors_reported():
        from corrflow.evaluate import commands

        choice = commands.choice(
            artifact, protocol, baseline, encoder, encoder_layout, encoder_colours, encoder_mean, encoder_std, rows, out
        )
        data = commands.davis_data(root, split, year, resolution, sequence or [])
        commands.run_masks(data, choice, commands.Outputs(out, attributes), workers, fresh, official_decay)


@app.command()
def youtube_vos(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with JPEGImages and Annotations.")],
    artifact: Artifacts = None,
    protocol: Protocols = None,
    baseline: Baselines = None,
    encoder: Encoders = None,
    encoder_layout: EncoderLayout = "auto",
    encoder_colours: EncoderColours = "rgb",
    encoder_mean: EncoderMean = IMAGENET[0],
    encoder_std: EncoderStd = IMAGENET[1],
    rows: Rows = None,
    workers: Workers = 1,
    sequence: Sequences = None,
    out: Out = None,
    fresh: Fresh = False,
    attributes: Attributes = None,
) -> None:
    """Track objects from the frame on that first shows them, and score every later annotated frame.

    Examples:

        corrflow-eval youtube-vos train --workers 2 --out results

        corrflow-eval youtube-vos train --sequence 003234408d --protocol vfs
    """
    with errors_reported():
        from corrflow.evaluate import commands

        choice = commands.choice(
            artifact, protocol, baseline, encoder, encoder_layout, encoder_colours, encoder_mean, encoder_std, rows, out
        )
        data = commands.youtube_vos_data(root, sequence or [])
        commands.run_masks(data, choice, commands.Outputs(out, attributes), workers, fresh, official_decay=False)


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder of <sequence>/<frame>.png.")],
    gt: Annotated[Path, typer.Option(metavar="ROOT", help="Data set that the masks are for.")],
    split: Annotated[str, typer.Option(help="List of sequences: ImageSets/<year>/<split>.txt.")] = "val",
    layout: Annotated[str, typer.Option(help="davis or youtube-vos.")] = "davis",
    workers: Workers = 1,
    sequence: Sequences = None,
    year: Year = None,
    resolution: Resolution = "480p",
    out: Out = None,
    attributes: Attributes = None,
    official_decay: OfficialDecay = False,
) -> None:
    """Score masks made by anything, nothing of them taken on trust.

    Every scored frame has to be there, at the truth's size and with its object ids; otherwise the file is named.

    Examples:

        corrflow-eval score my_masks --gt DAVIS --split val --out results

        corrflow-eval score results/masks/quarter --gt DAVIS --sequence bear
    """
    with errors_reported():
        from corrflow.evaluate import commands

        data = commands.data_of_layout(layout, gt, split, year, resolution, sequence or [])
        commands.run_score(predictions, data, commands.Outputs(out, attributes), workers, official_decay)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
