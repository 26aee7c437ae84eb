"""corrflow-eval: score artifacts on data sets in their published layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corrflow.errors import errors_reported

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would take as long as the rest of --help
)

# Options that several commands have.
DavisRoot = Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with ImageSets, JPEGImages and Annotations.")]
Artifacts = Annotated[
    list[str] | None,
    typer.Option(
        help="Model: a bundled name, a path, or random-init:PRESET[:SEED]; repeat to compare. (default: quarter)"
    ),
]
Protocols = Annotated[
    list[str] | None,
    typer.Option(help="default, plain, paper, mast, crw, vfs or hvc; repeat to compare. (default: default)"),
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
OneArtifact = Annotated[str, typer.Option(help="Artifact to track with.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: all.")]
Redetect = Annotated[
    bool, typer.Option("--redetect/--no-redetect", help="Drop strays and notice that objects are lost.")
]
Sequences = Annotated[list[str] | None, typer.Option(help="This sequence only; repeat for several.")]
Year = Annotated[str | None, typer.Option(help="Folder of the list, where several have the split.")]
Resolution = Annotated[str, typer.Option(help="Folder of the frames and masks.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for report.html, report.json, CSV files and masks; a run given again goes on there."),
]
PointOut = Annotated[Path | None, typer.Option(help="Also write every video's scores to this JSON file.")]
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
      corrflow-eval search DAVIS --split train --short-side 240,480 --radius 6,8,12 --out search
    """
)
def corrflow_eval() -> None: ...


@app.command()
def davis(
    root: DavisRoot,
    split: Annotated[str, typer.Option(help="List of sequences: ImageSets/<year>/<split>.txt.")] = "val",
    model: Artifacts = None,
    protocol: Protocols = None,
    baseline: Baselines = None,
    encoder: Encoders = None,
    encoder_layout: EncoderLayout = "auto",
    encoder_colours: EncoderColours = "rgb",
    encoder_mean: EncoderMean = IMAGENET[0],
    encoder_std: EncoderStd = IMAGENET[1],
    short_side: Rows = None,
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

        corrflow-eval davis DAVIS --model models/a --model random-init:quarter --baseline identity --workers 4

        corrflow-eval davis DAVIS --protocol paper --protocol crw --sequence bear --short-side 240

        corrflow-eval davis DAVIS --model models/a --encoder resnet.onnx --baseline lab --out results
    """
    with errors_reported():
        from corrflow.evaluate import commands

        choice = commands.choice(
            model,
            protocol,
            baseline,
            encoder,
            encoder_layout,
            encoder_colours,
            encoder_mean,
            encoder_std,
            short_side,
            out,
        )
        data = commands.davis_data(root, split, year, resolution, sequence or [])
        commands.run_masks(data, choice, commands.Outputs(out, attributes), workers, fresh, official_decay)


@app.command()
def youtube_vos(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with JPEGImages and Annotations.")],
    model: Artifacts = None,
    protocol: Protocols = None,
    baseline: Baselines = None,
    encoder: Encoders = None,
    encoder_layout: EncoderLayout = "auto",
    encoder_colours: EncoderColours = "rgb",
    encoder_mean: EncoderMean = IMAGENET[0],
    encoder_std: EncoderStd = IMAGENET[1],
    short_side: Rows = None,
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
            model,
            protocol,
            baseline,
            encoder,
            encoder_layout,
            encoder_colours,
            encoder_mean,
            encoder_std,
            short_side,
            out,
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


@app.command()
def jhmdb(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="JHMDB's folder, or one clip's.")],
    split: Annotated[int | None, typer.Option(min=1, max=3, help="Test clips of this split only.")] = None,
    drop_lost: Annotated[
        bool,
        typer.Option("--drop-lost", help="Leave lost joints out, as common public code does; else they are wrong."),
    ] = False,
    model: Artifacts = None,
    protocol: Protocols = None,
    baseline: Baselines = None,
    short_side: Rows = None,
    workers: Workers = 1,
    out: PointOut = None,
) -> None:
    """Track the joints of the first frame through JHMDB's clips and print PCKinstance and PCKmax (percent).

    Examples:

        corrflow-eval jhmdb JHMDB --split 1 --workers 2

        corrflow-eval jhmdb JHMDB --split 1 --baseline identity --baseline flow --model quarter --drop-lost
    """
    with errors_reported():
        from corrflow.evaluate import point_commands

        chosen = point_commands.Chosen(model, protocol, baseline, short_side, workers, out)
        point_commands.run_jhmdb(root, split, drop_lost, chosen)


@app.command()
def badja(
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="Folder of JSON files, or one of them.")],
    root: Annotated[Path, typer.Option(help="Folder that the files' paths start from.")],
    model: Artifacts = None,
    protocol: Protocols = None,
    baseline: Baselines = None,
    short_side: Rows = None,
    workers: Workers = 1,
    out: PointOut = None,
) -> None:
    """Track the joints of animals and print the share within 0.2 * sqrt(area of the mask) (percent).

    Examples:

        corrflow-eval badja BADJA/joint_annotations --root BADJA

        corrflow-eval badja bear.json --root BADJA --baseline identity --model quarter
    """
    with errors_reported():
        from corrflow.evaluate import point_commands

        chosen = point_commands.Chosen(model, protocol, baseline, short_side, workers, out)
        point_commands.run_badja(annotations, root, chosen)


@app.command()
def tapvid(
    file: Annotated[Path, typer.Argument(metavar="PICKLE", help="Published pickle; nothing in it is executed.")],
    queries: Annotated[str, typer.Option(help="first or strided.")] = "first",
    native: Annotated[bool, typer.Option("--native", help="Track at the videos' own size, not at 256x256.")] = False,
    model: Artifacts = None,
    protocol: Protocols = None,
    baseline: Baselines = None,
    short_side: Rows = None,
    workers: Workers = 1,
    out: PointOut = None,
) -> None:
    """Track TAP-Vid's points and print average Jaccard, share within 1 to 16 pixels and occlusion accuracy (percent).

    Examples:

        corrflow-eval tapvid tapvid_davis.pkl --queries first --workers 2

        corrflow-eval tapvid tapvid_rgb_stacking.pkl --queries strided --baseline flow
    """
    with errors_reported():
        from corrflow.evaluate import point_commands

        chosen = point_commands.Chosen(model, protocol, baseline, short_side, workers, out)
        point_commands.run_tapvid(file, queries, native, chosen)


@app.command()
def search(
    root: DavisRoot,
    split: Annotated[
        str, typer.Option(help="List of sequences; never the one that results are reported on.")
    ] = "train",
    model: Annotated[str, typer.Option(help="Artifact to choose settings for.")] = "quarter",
    protocol: Annotated[str, typer.Option(help="Where to start from.")] = "default",
    short_side: Annotated[str, typer.Option(help="Working sizes to try, with commas.")] = "",
    radius: Annotated[str, typer.Option(help="Window radii to try, in cells.")] = "6,8,12",
    memory_frames: Annotated[str, typer.Option(help="Numbers of last frames to try as references.")] = "3,5,10",
    top_k: Annotated[str, typer.Option(help="Numbers of kept scores to try; 0 is all.")] = "5,10,20",
    temperature: Annotated[str, typer.Option(help="Temperatures to try.")] = "0.05,0.07,0.1",
    grid: Annotated[bool, typer.Option("--grid", help="Try every combination, not one setting after another.")] = False,
    slowest: Annotated[float, typer.Option(min=0, help="Most seconds a frame; 0 for any.")] = 0.0,
    workers: Workers = 1,
    sequence: Sequences = None,
    year: Year = None,
    resolution: Resolution = "480p",
    out: Annotated[
        Path | None, typer.Option(help="Folder for settings.json and every result; given again it goes on there.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Also write an artifact with the chosen settings here.")] = None,
) -> None:
    """Choose tracking settings by measured J&F and seconds per frame, and write them into an artifact.

    An empty list keeps what the artifact has. --write needs corrflow[export].

    Examples:

        corrflow-eval search DAVIS --split train --short-side 240,480 --out search --write artifacts/tuned

        corrflow-eval search DAVIS --split train --sequence bear --radius 8,12 --memory-frames 5 --grid --slowest 0.5
    """
    with errors_reported():
        from corrflow.evaluate import commands
        from corrflow.evaluate.method_selection import settings_of
        from corrflow.evaluate.search import SearchRequest, run_search

        space = commands.search_space(short_side, radius, memory_frames, top_k, temperature)
        data = commands.davis_data(root, split, year, resolution, sequence or [])
        path, start = settings_of(model, protocol)
        run_search(data, path, start, SearchRequest(space, grid, slowest, workers, out, write))


@app.command()
def presence(
    root: DavisRoot,
    split: Annotated[str, typer.Option(help="List of sequences: ImageSets/<year>/<split>.txt.")] = "train",
    model: OneArtifact = "quarter",
    short_side: Rows = None,
    begin: Annotated[int, typer.Option(help="Frame from which the object is hidden.")] = 8,
    hidden: Annotated[int, typer.Option(help="Frames that it is hidden for.")] = 8,
    redetect: Redetect = True,
    threads: Threads = 0,
    sequence: Sequences = None,
    year: Year = None,
    resolution: Resolution = "480p",
) -> None:
    """Hide objects behind a plank: are they noticed to be lost, and found again within ten frames?

    Examples:

        corrflow-eval presence DAVIS --split train --short-side 240

        corrflow-eval presence DAVIS --split train --short-side 240 --no-redetect
    """
    with errors_reported():
        from corrflow.evaluate import commands
        from corrflow.evaluate.full_occlusion import Occlusion, run_presence

        data = commands.davis_data(root, split, year, resolution, sequence or [])
        run_presence(data.sequences, model, short_side, Occlusion(begin, hidden), redetect, threads)


@app.command()
def post(
    root: DavisRoot,
    split: Annotated[str, typer.Option(help="List of sequences: ImageSets/<year>/<split>.txt.")] = "train",
    model: OneArtifact = "quarter",
    short_side: Rows = None,
    width: Annotated[float, typer.Option(help="Width of the post, as a share of the root of the object's area.")] = 0.4,
    frames: Annotated[int, typer.Option(help="Frames in which it crosses the object.")] = 48,
    redetect: Redetect = True,
    threads: Threads = 0,
    sequence: Sequences = None,
    year: Year = None,
    resolution: Resolution = "480p",
) -> None:
    """Let a post cross objects: is what comes out behind it still tracked?

    Examples:

        corrflow-eval post DAVIS --split train --short-side 240

        corrflow-eval post DAVIS --split train --short-side 240 --no-redetect
    """
    with errors_reported():
        from corrflow.evaluate import commands
        from corrflow.evaluate.partial_occlusion import Post, run_posts

        data = commands.davis_data(root, split, year, resolution, sequence or [])
        run_posts(data.sequences, model, short_side, Post(width, frames), redetect, threads)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
